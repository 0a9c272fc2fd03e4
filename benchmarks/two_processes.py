"""Training steps between two processes over mutual TLS on loopback, every protocol beside `plain` over the same transport.

    python -m benchmarks.two_processes

Both sides work ahead. Steps of all protocols are made in turn, a block each; the ratio of medians counts. The server has a
core of its own where there are two.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

import hesplit_native as hn
from benchmarks.bench_wire import PROTOCOLS
from hesplit_native.data import synthetic_ecg
from hesplit_native.training.client import Client
from hesplit_native.training.config import RunConfig
from hesplit_native.training.recipes import paper_task
from hesplit_native.transport.certificates import ClientTls, make_authority, make_client, make_server
from hesplit_native.transport.grpc import connect

STEPS, ROUNDS = 50, 8
START = "import hesplit_native as hn; hn.set_work_ahead(True); from hesplit_native.cli import app; app()"
COMMAND = [sys.executable, "-c", START, "serve", "--port", "0", "--threads", "1"]


def measure(folder: Path) -> dict[str, float]:
    """Median microseconds of a step by protocol."""
    make_authority(folder)
    make_server(folder, ["localhost", "127.0.0.1"])
    make_client(folder, "bench")
    server = subprocess.Popen(
        [*COMMAND, "--tls", str(folder), "--max-clients", "20", "--output", str(folder / "layers")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        first = re.search(r":(\d+) ", server.stdout.readline())
        assert first is not None
        port = int(first[1])
        tls = ClientTls.load(folder, "bench")
        torch.set_num_threads(1)
        hn.set_num_threads(1)
        hn.set_work_ahead(True)
        clients = {}
        for name, choice in PROTOCOLS.items():
            config = RunConfig(**choice, batch_size=4, accept_leak=True)
            client = Client(
                config, paper_task(config, synthetic_ecg(train=10, test=10)), batches=10**6,
                connect=lambda: connect(f"localhost:{port}", tls=tls),
            )  # fmt: skip
            client.begin()
            clients[name] = client
        x, labels = torch.randn(STEPS, 4, 1, 128), torch.randint(0, 5, (STEPS, 4))
        samples: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(ROUNDS):
            for name, client in clients.items():
                start = perf_counter()
                for batch, target in zip(x, labels, strict=True):
                    client.learn(batch, target)
                samples[name].append(1e6 * (perf_counter() - start) / STEPS)
        for client in clients.values():
            client.end()
            client.close()
        return {name: median(values[1:]) for name, values in samples.items()}
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(Path(temporary))
    for protocol, microseconds in found.items():
        print(f"{protocol:30} {microseconds:8.0f} us   {microseconds / found['plain']:.3f} x plain")
