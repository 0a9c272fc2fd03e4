"""`hesplit-native serve --workers`: several processes behind one port, each a server of its own.

One process answers one request at a time, however many cores there are, while requests are small. The system gives each new connection
to one of the processes that listen. They share nothing but folders: checkpoints, trained layers and the ledger of queries.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from hesplit_native.errors import HESplitError, ParameterError, ProtocolError

if TYPE_CHECKING:
    from hesplit_native.cli.serve import Listening, Model, Screen, Shares, Training

#: What the worker in that place does until it is told to stop; it says that it listens, and later how many sessions have ended.
Work = Callable[[int, "Listening", "Shares", "Training", "Model", Callable[[int], None]], None]

_PARTING_SECONDS = 10.0
_STARTING_SECONDS = 300.0  # importing torch takes some on a busy machine


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    link: Connection
    listens: bool = False
    ended: int = 0  # sessions


def check_workers(listening: Listening, training: Training) -> None:
    """ParameterError for what several processes cannot do."""
    if sys.platform != "linux":
        raise ParameterError("--workers needs Linux, which alone shares the connections to a port out among processes")
    if training.checkpoints is None:
        raise ParameterError(
            "--workers needs --checkpoints: a client that lost its connection may come to another process, which knows its run from "
            "there alone"
        )
    if listening.metrics is not None:
        raise ParameterError("--metrics shows one process, and goes without --workers")


def serve_with_workers(
    work: Work, screen: Screen, listening: Listening, shares: Shares, training: Training, model: Model
) -> None:
    """Let `listening.workers` processes work until as many sessions have ended as were asked for; one that dies is replaced."""
    from hesplit_native.protocols.budget import default_memory

    count = listening.workers
    total = default_memory() if shares.memory_bytes is None else shares.memory_bytes
    each = replace(
        shares,
        memory=total / count / 2**20,
        memory_per_client=None if shares.memory_per_client is None else shares.memory_per_client / count,
    )
    with _port(listening) as port:
        arguments = (work, replace(listening, port=port), each, training, model)
        workers: list[_Worker] = []
        try:
            for place in range(count):
                workers.append(_start(place, arguments))
            _await_listening(workers)
            screen.say_where(listening, port)
            screen.console.print(f"{count} processes, with {each.memory:,.0f} MiB for clients each", highlight=False)
            screen.say_queries(shares.queries)
            _watch(screen, workers, arguments, training.sessions)
        finally:
            _stop(workers)


def _watch(screen: Screen, workers: list[_Worker], arguments: tuple[Any, ...], sessions: int | None) -> None:
    gone = 0  # sessions that ended in processes that are no more
    while sessions is None or gone + sum(worker.ended for worker in workers) < sessions:
        wait([worker.link for worker in workers])
        for place, worker in enumerate(workers):
            if _hear(worker):
                continue
            worker.process.join(_PARTING_SECONDS)
            screen.event(f"a process ended ({_how(worker.process)}): another takes its place")
            gone += worker.ended
            workers[place] = _start(place, arguments)
            _await_listening([workers[place]])


def _hear(worker: _Worker) -> bool:
    """Take in what a worker says; whether it is still there."""
    try:
        while worker.link.poll():
            said = worker.link.recv()
            if isinstance(said, str):
                raise ProtocolError(said)
            worker.listens, worker.ended = True, said
    except (EOFError, OSError):
        return False
    return True


def _await_listening(workers: list[_Worker]) -> None:
    for worker in workers:
        while not worker.listens:
            if not wait([worker.link], _STARTING_SECONDS):
                raise ProtocolError(f"a process of this server did not listen within {_STARTING_SECONDS:g} seconds")
            if not _hear(worker):
                worker.process.join(_PARTING_SECONDS)
                raise ProtocolError(f"a process of this server ended before it listened ({_how(worker.process)})")


def _how(process: BaseProcess) -> str:
    code = process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"status {code}"


def _start(place: int, arguments: tuple[Any, ...]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # neither gRPC nor torch outlives a fork
    link, other = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(other, place, *arguments), name="hesplit-worker", daemon=True)
    process.start()
    other.close()  # so that its end is heard of
    return _Worker(process, link)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_PARTING_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.link.close()


@contextmanager
def _port(listening: Listening) -> Iterator[int]:
    """A port that belongs to this process and to those that it starts, while nobody listens on it yet."""
    from hesplit_native.transport.grpc import parse_address
    from hesplit_native.transport.hosts import normal_host

    host, _ = parse_address(f"[{listening.host}]:0" if ":" in listening.host else f"{listening.host}:0")
    try:
        found = socket.getaddrinfo(normal_host(host), listening.port, type=socket.SOCK_STREAM)
        family, kind, number, _, where = found[0]
        with socket.socket(family, kind, number) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(where)
            yield int(held.getsockname()[1])
    except OSError as error:
        raise ProtocolError(f"cannot listen on {listening.host}:{listening.port}: {error.strerror or error}") from error


# In a worker


def _run(
    link: Connection,
    place: int,
    work: Work,
    listening: Listening,
    shares: Shares,
    training: Training,
    model: Model,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group, and whoever started this one ends it
    end_on_sigterm()
    threading.Thread(target=_end_with_parent, name="hesplit-parent", daemon=True).start()
    try:
        work(place, listening, shares, training, model, link.send)
    except HESplitError as error:
        link.send(str(error))
    except BrokenPipeError:
        pass  # nobody is interested any more


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: connections are closed, and files that are being written are finished."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
