"""A model server under 1, 8 and 64 clients: requests a second, and its memory.

    python -m benchmarks.frozen_load [--clients 1,8,64] [--rows 1,16,128] [--features 768] [--seconds 4]

The server is a process of its own (`hesplit-native serve --model`) with one layer, features to features; the clients are threads of
this process, on the same cores. Every product is checked against float64. Ends with 1 where one is wrong or a client fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import torch
from safetensors.torch import save_file

import hesplit_native as hn
from benchmarks.server_process import memory, server_process


def load(address: str, weight: np.ndarray, clients: int, rows: int, seconds: float) -> tuple[float, list[str]]:
    """Requests a second of all clients together, and what went wrong."""
    counts, failures = [0] * clients, []
    ready, stop = threading.Barrier(clients + 1), threading.Event()
    x = np.random.default_rng(0).normal(size=(rows, len(weight)))
    exact = x @ weight.T
    largest = 1e-5 * np.linalg.norm(x, axis=1).max() * np.linalg.norm(weight, axis=1).max()

    def work(number: int) -> None:
        try:
            with hn.connect(address, client_id=f"client-{number}") as connection:
                connection.multiply("layer", x)  # fetches the hint
                ready.wait()
                while not stop.is_set():
                    if np.abs(connection.multiply("layer", x) - exact).max() > largest:
                        failures.append(f"client {number}: a wrong product")
                    counts[number] += 1
        except (hn.HESplitError, threading.BrokenBarrierError) as error:
            failures.append(f"client {number}: {error!r}")
            ready.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        return 0.0, failures
    start = perf_counter()
    sleep(seconds)
    stop.set()
    elapsed = perf_counter() - start
    done = sum(counts)
    for thread in threads:
        thread.join()
    return done / elapsed, failures


def main() -> int:
    """Run every combination."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--rows", default="1,16,128")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    hn.set_num_threads(1)
    weight = torch.randn(options.features, options.features)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({"layer.weight": weight}, path)
        with server_process("--model", str(path), "--max-clients", "256") as (address, process, faults):
            print("| rows | clients | requests/s | rows/s | memory of the server, MiB |")
            print("|---:|---:|---:|---:|---:|")
            for rows in map(int, options.rows.split(",")):
                for clients in map(int, options.clients.split(",")):
                    rate, wrong = load(address, weight.double().numpy(), clients, rows, options.seconds)
                    failures += wrong
                    print(f"| {rows} | {clients} | {rate:.0f} | {rate * rows:.0f} | {memory(process)} |", flush=True)
    failures += faults
    for failure in failures:
        print(failure, file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
