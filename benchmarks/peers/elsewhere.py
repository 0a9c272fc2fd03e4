"""Peers in an interpreter of their own, because their wheels want another Python or older libraries than everybody else's.

    python -m benchmarks.peers.elsewhere benchmarks.peers.openfhe OpenFHE 4 256 5 0

is what runs there: it answers every line on its standard input with a line of JSON, a step's times, bytes and error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.layers import Layer, LeftOut

ROOT = Path(__file__).parents[2]


class Elsewhere:
    """A layer in a process of another interpreter; to those who measure, a layer."""

    def __init__(self, kind: type[Layer], python: str, n: int, d: int, o: int) -> None:
        self.name, self.about = kind.name, kind.about
        command = [
            python,
            "-m",
            "benchmarks.peers.elsewhere",
            kind.__module__,
            kind.__qualname__,
            *map(str, (n, d, o, int(kind.patient))),
        ]
        environment = os.environ | kind.environment
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open while the process is, and no pipe, which fills up
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True
        )  # fmt: skip
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            lines = [line for line in self.said.read().splitlines() if line.strip()] or ["without a word"]
            self.close()
            raise LeftOut(f"its process ended, status {self.process.returncode}: {lines[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "left out" in answer:
            self.close()
            raise LeftOut(answer["left out"])
        self.bytes, self.once, self.worst = tuple(answer["bytes"]), answer["once"], answer["worst"]
        return answer

    def step(self) -> dict[str, float]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        seconds: dict[str, float] = self._answer()["seconds"]
        return seconds

    def close(self) -> None:
        self.process.communicate()  # the end of its input is the end of it
        self.said.close()


def elsewhere(kind: type[Layer], python: str) -> Callable[[int, int, int], Elsewhere]:
    """What makes a layer of this kind in the interpreter `python`."""
    return lambda n, d, o: Elsewhere(kind, python, n, d, o)


def main() -> None:
    # What libraries print goes where errors go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**said: object) -> None:
        print(json.dumps(said), file=answers, flush=True)

    module, name, *shape, patient = sys.argv[1:]
    Layer.patient = bool(int(patient))
    try:
        layer: Layer = getattr(importlib.import_module(module), name)(*map(int, shape))
    except (ImportError, LeftOut) as error:
        answer(**{"left out": str(error)})
        return
    answer(bytes=layer.bytes, once=layer.once, worst=layer.worst)
    for _ in sys.stdin:
        seconds = layer.step()
        answer(seconds=seconds, bytes=layer.bytes, once=layer.once, worst=layer.worst)


if __name__ == "__main__":
    main()
