"""A step on SIMD slots, part by part, on the recommended parameters and on the sets that the papers published.

    python -m benchmarks.slots [--rounds 40] [--threads 1] [--beside TREE] [--shapes 4x256x5 ...] [--sets recommended S1 ...]

For each shape and set: milliseconds of process time (medians) for encryption, encoding new weights, the forward pass, the decryption
of its reply, the weight gradient on ciphertexts with its rotations, its opening by the client and its unmasking; bytes of the public
material, which is sent once, and of the requests and replies of a step; the largest errors of logits and of the weight gradient.
With ``--beside``, another tree with its own build runs the same steps in turns, and the last column says how many times as long a
step takes there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np

import hesplit_native as hn
from hesplit_native.layer.published import PARAMETER_SETS

PARTS = ["encrypt", "encode W", "forward", "decrypt", "dW", "open", "unmask"]
RANGES: dict[str, Any] = {"activation_bound": 32.0, "weight_norm": 8.0}
SHAPES = ["4x256x5", "32x256x5", "64x2000x5"]


def parameters(name: str, rows: int, features: int, outputs: int) -> hn.Parameters:
    """A published set, or ``"recommended"``."""
    shape = {"in_features": features, "out_features": outputs, "batch_size": rows}
    if name == "recommended":
        return hn.Parameters.recommend(packing="slots", releases=0, **shape, **RANGES)
    return hn.Parameters.published(name, **shape, **RANGES)


class Step:
    """Client, server and a batch."""

    def __init__(self, name: str, rows: int, features: int, outputs: int) -> None:
        generator = np.random.default_rng(0)
        self.x = generator.normal(size=(rows, features)).astype(np.float32)
        self.weight = generator.normal(size=(outputs, features)) * 2 / np.sqrt(features)
        self.bias = generator.normal(size=outputs)
        self.gradient = generator.normal(size=(rows, outputs)) / rows
        key = hn.SecretKey.generate(parameters(name, rows, features, outputs))
        self.client = hn.LinearClient(key, features, outputs, weight_gradients=True)
        material = self.client.public_material()
        self.server = hn.LinearServer(material, self.weight, self.bias)
        self.material_bytes = len(material)
        self.times: dict[str, float] = {}

    def timed(self, part: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = process_time()
        found = call(*args, **options)
        self.times[part] = 1e3 * (process_time() - start)
        return found

    def run(self) -> dict[str, Any]:
        """One step: its times, bytes and errors."""
        client, server = self.client, self.server
        request = self.timed("encrypt", client.encrypt, self.x)
        self.timed("encode W", server.set_weight, self.weight, self.bias)
        reply, _, kept = self.timed("forward", server.forward_training, request, keep=True)
        y = self.timed("decrypt", client.decrypt, reply, weight_gradient_follows=True)
        message, masked = self.timed("dW", server.weight_gradient, kept, self.gradient)
        opened = self.timed("open", client.open_weight_gradient, message, self.gradient)
        dw = self.timed("unmask", server.unmask, masked, opened)
        x = self.x.astype(np.float64)
        return {
            "times": self.times,
            "bytes": [self.material_bytes, len(request), len(reply), len(message) + len(opened)],
            "errors": [
                float(np.abs(y - (x @ self.weight.T + self.bias)).max()),
                float(np.abs(dw - self.gradient.T @ x).max()),
            ],
        }


def work(threads: int) -> None:
    """A side: a shape and a set on a line of standard input make a step ready, other lines run it."""
    hn.set_num_threads(threads)
    hn.set_work_ahead(False)
    step = None
    for line in sys.stdin:
        try:
            if line.strip():
                name, rows, features, outputs = json.loads(line)
                step = Step(name, rows, features, outputs)
            found = step.run() if step else {}
        except (hn.ParameterError, hn.RangeError) as error:
            found = {"refused": str(error)}
        print(json.dumps(found), flush=True)


class Side:
    """A process that runs the steps of a tree."""

    def __init__(self, tree: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", "--threads", str(threads)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tree / "python")},
        )  # fmt: skip

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to one line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """Lets the process end."""
        self.process.communicate()


def compare(sides: list[Side], name: str, shape: str, rounds: int) -> None:
    """A line for each side."""
    answers = [side.ask(json.dumps([name, *map(int, shape.split("x"))])) for side in sides]
    for answer in answers:
        if "refused" in answer:
            print(f"{shape:10}{name:12}{answer['refused']}")
            return
    taken: list[dict[str, list[float]]] = [defaultdict(list) for _ in sides]
    for _ in range(rounds):
        for times, side in zip(taken, sides, strict=True):
            for part, value in side.ask("")["times"].items():
                times[part].append(value)
    medians = [[median(times[part]) for part in PARTS] for times in taken]
    for found, answer in zip(medians, answers, strict=True):
        print(
            f"{shape:10}{name:12}" + "".join(f"{value:9.3f}" for value in [*found, sum(found)])
            + "".join(f"{value:11}" for value in answer["bytes"])
            + "".join(f"{value:9.1e}" for value in answer["errors"])
            + f"{sum(found) / sum(medians[0]):7.2f}", flush=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--beside", type=Path, metavar="TREE")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="ROWSxINxOUT")
    parser.add_argument("--sets", nargs="+", default=["recommended", *PARAMETER_SETS])
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        work(chosen.threads)
        return
    trees = [Path(__file__).resolve().parents[1], *([chosen.beside] if chosen.beside else [])]
    sides = [Side(tree, chosen.threads) for tree in trees]
    print(
        f"{'shape':10}{'set':12}" + "".join(f"{part:>9}" for part in [*PARTS, "step"])
        + f"{'keys':>11}{'request':>11}{'reply':>11}{'dW, both':>11}{'y error':>9}{'dW error':>9}{'times':>7}"
    )  # fmt: skip
    for shape in chosen.shapes:
        for name in chosen.sets:
            compare(sides, name, shape, chosen.rounds)
    for side in sides:
        side.close()


if __name__ == "__main__":
    main()
