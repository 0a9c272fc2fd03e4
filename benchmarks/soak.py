"""A server's memory over a long time of many clients.

    python -m benchmarks.soak [--clients 64] [--minutes 60] [--slope 60] [--workers 1]

Clients over mutual TLS make training steps of `splitways` at a steady pace; every ten seconds an eighth of them ends its sessions and
connections and begins new ones. Memory of the server is looked at before each turn. Ends with 1 where it grows by more than `--slope`
MiB an hour, over all but the first fifth of the time, or the server reports an error of its own; a client that is not served ends it
at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import monotonic

import numpy as np

from benchmarks.crowd import Crowd, Requests, Walker, make_certificates
from benchmarks.server_process import cpu_seconds, server_process, tree_memory

TURN, PAUSE = 10.0, 0.2  # seconds: of a turn, between two steps of a client
_COME_AND_GO = 8  # one in so many


def growth(samples: list[tuple[float, int]]) -> float:
    """MiB an hour by which memory grows, from seconds and MiB, the first fifth left out: medians of its thirds are compared."""
    settled = np.array(samples[len(samples) // 5 :], dtype=float)
    third = max(1, len(settled) // 3)
    (began, low), (ended, high) = np.median(settled[:third], axis=0), np.median(settled[-third:], axis=0)
    return float(3600 * (high - low) / max(ended - began, 1.0))


def soak(clients: int, minutes: float, options: list[str]) -> tuple[list[tuple[float, int]], int, list[str]]:
    """Seconds and MiB of each turn, steps, and the server's faults."""
    samples: list[tuple[float, int]] = []
    steps = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        contexts = make_certificates(folder, clients)
        limits = ["--tls", temporary, "--max-clients", str(2 * clients), "--memory", str(128 * clients)]
        more = [text.replace("FOLDER", temporary) for text in options]
        with server_process(*limits, *more) as (address, process, faults):
            requests = Requests("splitways")
            crowd, start = Crowd(requests, address, contexts), monotonic()
            while monotonic() - start < 60 * minutes:
                samples.append((monotonic() - start, tree_memory(process)))
                crowd.run(TURN, PAUSE)
                steps += sum(len(walker.latencies) for walker in crowd.walkers)
                turn = len(samples)
                for number in range(turn % _COME_AND_GO, clients, _COME_AND_GO):
                    crowd.walkers[number].leave()
                    crowd.walkers[number] = Walker.begin(requests, address, contexts[number])
                if turn % 6 == 0:
                    seconds, mebibytes = samples[-1]
                    cost = 1e3 * cpu_seconds(process) / max(steps, 1)
                    print(f"{seconds / 60:5.1f} min  {mebibytes:5} MiB  {steps} steps, {cost:.2f} ms each", flush=True)
            crowd.leave()
    return samples, steps, faults


def main() -> int:
    """Report and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--slope", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    options = ["--workers", str(chosen.workers), "--checkpoints", "FOLDER/checkpoints"] if chosen.workers > 1 else []
    samples, steps, faults = soak(chosen.clients, chosen.minutes, options)
    slope = growth(samples)
    most = max(mebibytes for _, mebibytes in samples)
    print(
        f"{steps} steps of {chosen.clients} clients; memory {most} MiB at the most, growing by {slope:+.1f} MiB an hour"
    )
    for fault in faults:
        print(f"FAULT  {fault.rstrip()}")
    return int(slope > chosen.slope or bool(faults))


if __name__ == "__main__":
    sys.exit(main())
