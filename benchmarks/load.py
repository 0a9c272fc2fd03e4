"""A server under load: honest clients alone, then among dishonest ones.

    python -m benchmarks.load [--clients 64] [--seconds 180] [--attack NAME]

Half of the clients are honest, in a process of their own: training steps of the protocol `plain` at a steady pace. Of the others a
third opens connections and says nothing, a third sends large messages a piece at a time and stops in the middle, and a third asks for
as much as it is given; or all of them do the one thing that --attack names (benchmarks/attacks.py). Reported: the honest clients' 99th
percentile with and without the others, refusals, and the server's memory. Ends with 1 where an honest client fails, memory grows
beyond the budget, or the server reports an error of its own; without --attack also where the percentile is more than 3 times what it
is alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
from collections import Counter
from contextlib import AbstractContextManager
from time import monotonic, sleep

import numpy as np

from benchmarks.attacks import ATTACKS, FEATURES, OUTPUTS, ROWS, matrix, terms
from benchmarks.server_process import Serving, largest_memory, server_process
from hesplit_native.errors import HESplitError
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.session import Session
from hesplit_native.transport.grpc import GrpcChannel, connect

BUDGET = 1024  # MiB; an honest client takes 16
PAUSE = 0.2  # seconds between two steps of an honest client


class Load:
    """What clients of one phase do until its end, and what they found."""

    def __init__(self, address: str, seconds: float) -> None:
        self.address = address
        self.ends = monotonic() + seconds
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self.tried: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.channels: dict[str, GrpcChannel] = {}

    @property
    def over(self) -> bool:
        return monotonic() > self.ends

    def open(self, name: str, line: str) -> GrpcChannel:
        """A connection in place of this client's last one, which ends without a word."""
        if line in self.channels:
            self.channels.pop(line).close()
        return self.channels.setdefault(line, connect(self.address, client_id=name, timeout=30.0))

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

    def dishonest(self, name: str) -> None:
        kind = name.split("-")[0]
        # Mute ones all come under two names: a client's share of connections is by name.
        known = f"mute-{int(name.split('-')[1]) % 2}" if kind == "mute" else name
        while not self.over:
            self.tried[kind] += 1
            try:
                ATTACKS[kind](lambda: self.open(known, name))
            except HESplitError as error:
                self.refused[f"{kind}: {type(error).__name__}"] += 1
                sleep(0.05)

    def run(self, works: list[str]) -> None:
        threads = [
            threading.Thread(
                target=self.honest if work == "honest" else self.dishonest, args=(f"{work}-{index}",), daemon=True
            )
            for index, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
            sleep(0.02)
        for thread in threads:
            thread.join(max(0.1, self.ends + 60 - monotonic()))  # others end with the process


def honest_clients(address: str, seconds: float, count: int) -> tuple[list[float], list[str]]:
    """Latencies and failures."""
    load = Load(address, seconds)
    load.run(["honest"] * count)
    return load.latencies, load.failures


def percentile(latencies: list[float]) -> float:
    return float(np.percentile(latencies, 99)) if latencies else float("inf")


def serving(clients: int = 16) -> AbstractContextManager[Serving]:
    """A server that trains, for so many connections."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # connections that end are what this is about
    limits = {"--max-clients": clients, "--memory": BUDGET, "--memory-per-client": BUDGET // 8}
    return server_process(*(text for name, value in limits.items() for text in (name, str(value))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--attack", choices=sorted(ATTACKS))
    chosen = parser.parse_args()
    with serving(2 * chosen.clients) as (address, pid, faults):
        count = chosen.clients // 2
        kinds = (chosen.attack,) if chosen.attack else ("mute", "slow", "greedy")
        others = [kinds[index % len(kinds)] for index in range(chosen.clients - count)]
        with multiprocessing.get_context("spawn").Pool(1) as process:
            alone, failures = process.apply(honest_clients, (address, min(60.0, chosen.seconds / 3), count))
            before = largest_memory(pid)
            load = Load(address, chosen.seconds)
            among = process.apply_async(honest_clients, (address, chosen.seconds, count))
            load.run(others)
            mixed, more = among.get(120)
            failures += more
        after = largest_memory(pid)
    ratio = percentile(mixed) / percentile(alone)
    print(f"honest alone      {len(alone):7} steps, 99th percentile {1e3 * percentile(alone):.1f} ms")
    print(
        f"honest among all  {len(mixed):7} steps, 99th percentile {1e3 * percentile(mixed):.1f} ms, {ratio:.2f} times"
    )
    print(f"memory            {before} MiB alone, {after} MiB at the most, budget {BUDGET} MiB")
    print(f"tried, refused    {dict(load.tried)}, {dict(load.refused)}")
    for failure in failures:
        print(f"FAILED            {failure}")
    for fault in faults:
        print(f"FAULT             {fault.rstrip()}")
    slow = chosen.attack is None and ratio > 3
    return 1 if slow or failures or faults or not mixed or after > before + BUDGET else 0


if __name__ == "__main__":
    sys.exit(main())
