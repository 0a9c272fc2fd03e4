"""A server under load: honest clients alone, then among mute, slow and greedy ones.

    python -m benchmarks.load [--clients 64] [--seconds 180]

Half of the clients are honest, in a process of their own: training steps of the protocol `plain` at a steady pace. Of the others a
third opens connections and says nothing, a third sends large messages a piece at a time and stops in the middle, and a third asks for
as much as it is given. Reported: the honest clients' 99th percentile with and without the others, refusals, and the server's memory.
Ends with 1 where the percentile is more than 3 times what it is alone, an honest client fails, or memory grows beyond the budget.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from time import monotonic, sleep

import numpy as np

from hesplit_native.errors import HESplitError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport import framing
from hesplit_native.transport.channel import SHORT_MESSAGE
from hesplit_native.transport.grpc import GrpcChannel, connect

FEATURES, OUTPUTS, ROWS = 256, 5, 4
BUDGET = 1024  # MiB; an honest client takes 16
PAUSE = 0.2  # seconds between two steps of an honest client
COMMAND = [sys.executable, "-c", "from hesplit_native.cli import app; app()", "serve", "--port", "0"]


def terms(features: int = FEATURES, outputs: int = OUTPUTS) -> Terms:
    return Terms("plain", features, outputs, ROWS, 0, 0, 0.01, "adam", 7)


def matrix(rows: int, columns: int) -> bytes:
    return messages.matrix(np.ones((rows, columns), np.float32), "values")


class Load:
    """What clients of one phase do until its end, and what they found."""

    def __init__(self, address: str, seconds: float) -> None:
        self.address = address
        self.ends = monotonic() + seconds
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self.refused: Counter[str] = Counter()
        self.channels: dict[str, GrpcChannel] = {}

    @property
    def over(self) -> bool:
        return monotonic() > self.ends

    def open(self, name: str) -> GrpcChannel:
        """A connection in place of the client's last one, which ends without a word."""
        if name in self.channels:
            self.channels.pop(name).close()
        return self.channels.setdefault(name, connect(self.address, client_id=name, timeout=30.0))

    def honest(self, name: str) -> None:
        try:
            session = Session(connect(self.address, client_id=name), terms(), b"", Phases())
            while not self.over:
                start = monotonic()
                session.exchange(MessageType.FORWARD, MessageType.LOGITS, matrix(ROWS, FEATURES))
                session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, matrix(ROWS, OUTPUTS))
                self.latencies.append(monotonic() - start)
                sleep(PAUSE)
            session.leave()
        except HESplitError as error:
            self.failures.append(f"{name}: {error}")

    def mute(self, name: str) -> None:
        while not self.over:
            try:
                channel = connect(self.address, client_id=name)
                sleep(1.0)
                channel.close()
            except HESplitError as error:
                self.refused[f"mute: {type(error).__name__}"] += 1
                sleep(0.2)

    def slow(self, name: str) -> None:
        while not self.over:
            try:
                channel = self.open(name)
                session = Session(channel, terms(), b"", Phases())
                whole = messages.pack(MessageType.EVALUATE, 1, session.nonce, matrix(16384, FEATURES))
                for piece in list(framing.pieces(whole))[: len(whole) // SHORT_MESSAGE // 2]:
                    channel._outgoing.put(piece)
                    sleep(0.5)
            except HESplitError as error:
                self.refused[f"slow: {type(error).__name__}"] += 1
                sleep(0.2)

    def greedy(self, name: str) -> None:
        sizes = [(4096, 4096), (2048, 2048), (1024, 4096), (512, 512)]
        while not self.over:
            for size in sizes:
                try:
                    session = Session(self.open(name), terms(*size), b"", Phases())
                    for _ in range(5):
                        session.exchange(MessageType.EVALUATE, MessageType.LOGITS, matrix(512, size[0]))
                except HESplitError as error:
                    self.refused[f"greedy: {type(error).__name__}"] += 1
                    sleep(0.05)

    def run(self, works: list[str]) -> None:
        threads = [
            threading.Thread(target=getattr(self, work), args=(f"{work}-{index}",), daemon=True)
            for index, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
            sleep(0.02)
        for thread in threads:
            thread.join(120)


def honest_clients(address: str, seconds: float, count: int) -> tuple[list[float], list[str]]:
    """Latencies and failures."""
    load = Load(address, seconds)
    load.run(["honest"] * count)
    return load.latencies, load.failures


def percentile(latencies: list[float]) -> float:
    return float(np.percentile(latencies, 99)) if latencies else float("inf")


def resident(pid: int) -> int:
    """Largest memory of a process so far, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) // 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180.0)
    chosen = parser.parse_args()
    os.environ["GRPC_VERBOSITY"] = "NONE"  # connections that end are what this is about
    limits = [
        "--max-clients",
        str(2 * chosen.clients),
        "--memory",
        str(BUDGET),
        "--memory-per-client",
        str(BUDGET // 8),
    ]
    server = subprocess.Popen([*COMMAND, *limits], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r":(\d+) ", server.stdout.readline())
        assert found is not None
        threading.Thread(target=server.stdout.read, daemon=True).start()
        address = f"127.0.0.1:{found[1]}"
        count = chosen.clients // 2
        others = [("mute", "slow", "greedy")[index % 3] for index in range(chosen.clients - count)]
        with multiprocessing.get_context("spawn").Pool(1) as process:
            alone, failures = process.apply(honest_clients, (address, chosen.seconds / 3, count))
            before = resident(server.pid)
            load = Load(address, chosen.seconds)
            among = process.apply_async(honest_clients, (address, chosen.seconds, count))
            load.run(others)
            mixed, more = among.get(120)
            failures += more
        after = resident(server.pid)
    finally:
        server.terminate()
        server.wait(30)
    ratio = percentile(mixed) / percentile(alone)
    print(f"honest alone      {len(alone):7} steps, 99th percentile {1e3 * percentile(alone):.1f} ms")
    print(
        f"honest among all  {len(mixed):7} steps, 99th percentile {1e3 * percentile(mixed):.1f} ms, {ratio:.2f} times"
    )
    print(f"memory            {before} MiB alone, {after} MiB at the most, budget {BUDGET} MiB")
    print(f"refused           {dict(load.refused)}")
    for failure in failures:
        print(f"FAILED            {failure}")
    return 0 if ratio <= 3 and not failures and after <= before + BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
