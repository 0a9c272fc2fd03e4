"""Training steps of many clients over mutual TLS: what a server does in a second, what a step costs it, and who waits.

    python -m benchmarks.many_clients [--clients 1,8,64,256] [--workers 1,2] [--protocols splitways,plain] [--seconds 5]

The server is `hesplit-native serve` in processes of its own; batches of 8, M1's layer 256 -> 5, each step as soon as the client's last
one is over. All clients are one thread of one process (`benchmarks.crowd`): requests were encrypted before, of the replies only the
first of each client is decrypted and checked. What they cost is a column, as they take cores that the server does not get. Numbers of
processes are measured in turns. Before that, what a step takes without a transport, and its cryptography alone, in this process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from itertools import count
from pathlib import Path
from ssl import SSLContext
from time import monotonic, process_time, thread_time

import numpy as np
import torch

import hesplit_native as hn
from benchmarks.crowd import Crowd, Requests, make_certificates
from benchmarks.server_process import Serving, cpu_seconds, server_process, tree_memory
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import initial_linear
from hesplit_native.transport import ClientInfo, InProcessChannel

_STEPS = 500  # of the parts alone
_ROUNDS = 2


@dataclass(frozen=True)
class Measured:
    """One phase of a crowd."""

    rate: float  # steps a second
    cost: float  # the server's CPU, ms a step
    cores: float
    clients: float  # the clients' CPU, ms a step
    least: float  # of the clients' shares, over the mean
    most: float
    median: float  # ms
    late: float  # the 99th percentile, ms

    @classmethod
    def of(cls, crowd: Crowd, process: int, seconds: float) -> Measured:
        """Let a crowd run."""
        before, own, start = cpu_seconds(process), process_time(), monotonic()
        crowd.run(seconds)
        spent, own, elapsed = cpu_seconds(process) - before, process_time() - own, monotonic() - start
        counts = np.array([len(walker.latencies) for walker in crowd.walkers])
        latencies = 1e3 * np.concatenate([walker.latencies for walker in crowd.walkers])
        steps = counts.sum()
        return cls(
            steps / elapsed, 1e3 * spent / steps, spent / elapsed, 1e3 * own / steps, counts.min() / counts.mean(),
            counts.max() / counts.mean(), float(np.median(latencies)), float(np.percentile(latencies, 99)),
        )  # fmt: skip


def milliseconds(step: Callable[[], object]) -> float:
    """CPU of this thread for a step."""
    for _ in range(50):
        step()
    start = thread_time()
    for _ in range(_STEPS):
        step()
    return 1e3 * (thread_time() - start) / _STEPS


def without_transport(requests: Requests) -> float:
    """CPU of a server's step, in ms, from message to message."""
    conversation = Server().converse(ClientInfo("client"))
    session = Session(InProcessChannel(conversation), requests.terms, requests.material, Phases())
    body, numbers = requests.forward(), count(1)

    def step() -> None:
        conversation.send(messages.pack(MessageType.FORWARD, next(numbers), session.nonce, body))
        number = next(numbers)
        conversation.send(
            messages.pack(MessageType.BACKWARD, number, session.nonce, requests.backward[number // 2 % 2])
        )

    return milliseconds(step)


def cryptography(requests: Requests) -> float:
    """CPU of what is computed on ciphertexts, with new weights each time, in ms."""
    if not requests.material:
        return 0.0
    layer = initial_linear(requests.terms)
    server = hn.LinearServer(requests.material, layer.weight, layer.bias)
    body = requests.forward()

    def step() -> None:
        server.set_weight(layer.weight, layer.bias)
        server.forward(body)

    return milliseconds(step)


def measure(
    requests: Requests, clients: int, servers: dict[int, Serving], contexts: list[SSLContext], seconds: float
) -> None:
    """A row of the table for each number of processes."""
    before = {workers: tree_memory(process) for workers, (_, process, _) in servers.items()}
    crowds = {workers: Crowd(requests, address, contexts[:clients]) for workers, (address, _, _) in servers.items()}
    found: dict[int, list[Measured]] = {workers: [] for workers in servers}
    for _ in range(_ROUNDS):
        for workers, crowd in crowds.items():
            crowd.run(0.3)
            found[workers].append(Measured.of(crowd, servers[workers][1], seconds))
    for workers, rounds in found.items():
        value = Measured(*(float(np.median(values)) for values in zip(*map(astuple, rounds), strict=True)))
        more = (tree_memory(servers[workers][1]) - before[workers]) / clients
        print(
            f"| {requests.terms.protocol} | {clients} | {workers} | {value.rate:.0f} | {value.cost:.2f} | {value.cores:.2f} "
            f"| {value.clients:.2f} | {value.least:.2f} to {value.most:.2f} | {value.median:.1f} | {value.late:.1f} | {more:.1f} |",
            flush=True,
        )
        crowds[workers].leave()


def main() -> int:
    """Measure everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8,64,256")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--protocols", default="splitways,plain")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    numbers = [int(text) for text in options.clients.split(",")]
    hn.set_num_threads(1)
    torch.set_num_threads(1)
    everything = {protocol: Requests(protocol) for protocol in options.protocols.split(",")}
    for protocol, requests in everything.items():
        print(
            f"{protocol}: {without_transport(requests):.2f} ms of CPU a step without a transport, of which cryptography "
            f"{cryptography(requests):.2f} ms"
        )
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        contexts = make_certificates(folder, max(numbers))
        shared = ["--tls", str(folder), "--max-clients", str(max(numbers) + 8), "--memory", str(128 * max(numbers))]
        servers = {}
        for workers in map(int, options.workers.split(",")):
            more = ["--workers", str(workers), "--checkpoints", str(folder / "checkpoints")] if workers > 1 else []
            servers[workers] = stack.enter_context(server_process(*shared, *more))
        print("| protocol | clients | processes | steps/s | server, ms of CPU a step | cores | clients, ms a step "
              "| shares | median, ms | 99th percentile, ms | memory a client, MiB |")  # fmt: skip
        print("|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|")
        for requests in everything.values():
            for clients in numbers:
                measure(requests, clients, servers, contexts, options.seconds)
        faults = [fault for _, _, found in servers.values() for fault in found]
    for fault in faults:
        print(fault, file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
