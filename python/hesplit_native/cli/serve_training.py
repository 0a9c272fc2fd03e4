"""`hesplit-native serve` for layers that clients train."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from hesplit_native.cli.options import set_threads
from hesplit_native.cli.paths import output_folder
from hesplit_native.cli.serve import KEEP_DAYS, Listening, Model, Screen, Shares, Training, terminal
from hesplit_native.cli.terminal import one_line
from hesplit_native.cli.workers import check_workers, serve_with_workers
from hesplit_native.data.labels import load_labels
from hesplit_native.layer.weights import Weights, weights_of
from hesplit_native.protocols.budget import default_memory, mebibytes
from hesplit_native.protocols.server import Server, prepare
from hesplit_native.transport import GrpcServer, Limits, ServerTls, join_address

_TIDY_SECONDS = 10.0


def serve_training(screen: Screen, listening: Listening, shares: Shares, training: Training, model: Model) -> None:
    """Serve until as many sessions have finished as were asked for, or for ever."""
    for folder in (training.output, training.checkpoints):
        if folder is not None:
            output_folder(folder)
    if listening.workers > 1:
        check_workers(listening, training)
        serve_with_workers(_work, screen, listening, shares, training, model)
        return
    start = _start(model)
    server = _server(screen, shares, training, start)
    prepare()
    transport = _transport(server, screen, listening)
    if screen.counters is not None:
        screen.counters.show("hesplit_sessions", "Sessions that go on.", lambda: len(server.sessions))
        screen.counters.show("hesplit_sessions_ended", "Sessions that came to their end.", lambda: server.ended)
    screen.show_budget(server.budget)
    with transport as bound:
        for layer in start:
            outputs, inputs = layer.weight.shape
            screen.console.print(
                f"training may start from {one_line(layer.name)}: {inputs} -> {outputs}", highlight=False, markup=False
            )
        screen.say_where(listening, bound.port)
        budget = server.budget
        screen.console.print(
            f"memory: {mebibytes(budget.total)} for all clients, {mebibytes(budget.per_client)} for one",
            highlight=False,
        )
        screen.say_queries(shares.queries)
        _until_ended(server, training.sessions)


def _work(
    place: int, listening: Listening, shares: Shares, training: Training, model: Model, say: Callable[[int], None]
) -> None:
    """One of several processes."""
    set_threads(listening.threads)
    screen = Screen(*terminal(), None)
    server = _server(screen, shares, training, _start(model), place)
    prepare()
    with _transport(server, screen, listening):
        said = -1
        tidied = monotonic()
        while True:
            if server.ended != said:
                said = server.ended
                say(said)
            sleep(0.05)
            tidied = _tidied(server, tidied)


def _start(model: Model) -> list[Weights]:
    """The layers that training may start from."""
    if model.model is None:
        return []
    return list(weights_of(model.model, model.layers or "*", transposed=model.transposed or ()))


def _transport(server: Server, screen: Screen, listening: Listening) -> GrpcServer:
    return GrpcServer(
        join_address(listening.host, listening.port),
        server.converse,
        tls=ServerTls.load(listening.tls) if listening.tls is not None else None,
        insecure=listening.insecure,
        limits=Limits(idle_seconds=listening.timeout, max_clients=listening.max_clients),
        shares_port=listening.workers > 1,
        on_event=screen.event,
    )


def _server(
    screen: Screen, shares: Shares, training: Training, start: list[Weights], place: int | None = None
) -> Server:
    total = default_memory() if shares.memory_bytes is None else shares.memory_bytes
    return Server(
        layers=start,
        place=place,
        labels=load_labels(training.labels) if training.labels is not None else None,
        checkpoints=training.checkpoints,
        keep_days=KEEP_DAYS if training.keep_checkpoints is None else training.keep_checkpoints,
        output=training.output,
        memory=total,
        memory_per_client=total // 4 if shares.client_bytes is None else shares.client_bytes,
        memory_kept=total // 2,  # or a few large clients would lock everybody out
        queries=shares.queries,
        query_ledger=shares.query_ledger,
        on_event=screen.event,
    )


def _until_ended(server: Server, sessions: int | None) -> None:
    tidied = monotonic()
    while sessions is None or server.ended < sessions:
        sleep(0.05)
        tidied = _tidied(server, tidied)
    sleep(0.2)  # for the last reply to leave


def _tidied(server: Server, before: float) -> float:
    """Tidy up when it is time to; when that was done last."""
    if monotonic() - before <= _TIDY_SECONDS:
        return before
    server.tidy()
    return monotonic()
