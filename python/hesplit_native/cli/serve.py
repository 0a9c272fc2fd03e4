"""`hesplit-native serve`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hesplit_native.choices import Precision
from hesplit_native.cli.options import set_threads

if TYPE_CHECKING:
    from rich.console import Console

    from hesplit_native.protocols.budget import Budget
    from hesplit_native.protocols.metrics import Metrics
    from hesplit_native.protocols.serving import ModelServer

_TIDY_SECONDS = 10.0
_KEEP_DAYS = 30.0
_MODEL = "A model"


def serve_command(
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(7000, min=0, max=65535, help="0 lets the system choose."),
    tls: Path | None = typer.Option(None, help="Folder of `hesplit-native certs`: mutual TLS."),
    insecure: bool = typer.Option(False, "--insecure", help="Listen to other machines without TLS."),
    output: Path | None = typer.Option(None, help="Directory for the trained layer of each session."),
    checkpoints: Path | None = typer.Option(
        None, help="Directory from which sessions resume when this process was killed."
    ),
    keep_checkpoints: float | None = typer.Option(
        None,
        min=0.01,
        help=f"Days without a new checkpoint after which a run is removed from --checkpoints; {_KEEP_DAYS:g} unless given.",
    ),
    memory: float | None = typer.Option(
        None, min=1.0, help="MiB that all clients together may take; half of the machine's memory unless given."
    ),
    memory_per_client: float | None = typer.Option(
        None, min=1.0, help="MiB that one client may take; a quarter of --memory unless given."
    ),
    queries: int | None = typer.Option(
        None,
        min=1,
        help="Answers about a layer that one client gets, over all connections and starts: a row is one, a row of training two. "
        "Clients without a certificate count as one.",
    ),
    query_ledger: Path | None = typer.Option(
        None, help="Directory that counts them, which several servers may share; goes with --queries."
    ),
    sessions: int | None = typer.Option(None, min=1, help="Stop after so many finished sessions."),
    timeout: float = typer.Option(300.0, min=1.0, help="Seconds without a message after which a connection is closed."),
    max_clients: int = typer.Option(32, min=1, help="Connections at once."),
    threads: int = typer.Option(1, min=1, help="Threads of torch and of the core."),
    metrics: str | None = typer.Option(
        None, help="Where Prometheus finds /metrics: host:port; :port is this machine only."
    ),
    model: Path | None = typer.Option(
        None,
        help="A .safetensors file, or a folder of them, whose linear layers are served.",
        rich_help_panel=_MODEL,
    ),
    train: bool = typer.Option(
        False,
        "--train/--freeze",
        help="Layers of the model are what clients' training starts from, each with its copy; or are used as they are.",
        rich_help_panel=_MODEL,
    ),
    layers: list[str] | None = typer.Option(
        None,
        help="Pattern for the names of its layers, e.g. 'encoder.*'; several times for several.",
        rich_help_panel=_MODEL,
    ),
    transposed: list[str] | None = typer.Option(
        None,
        help="Pattern for layers that are stored as inputs by outputs, like those of GPT-2.",
        rich_help_panel=_MODEL,
    ),
    precision: Precision | None = typer.Option(
        None, help="float32 unless given; bfloat16 makes replies smaller.", rich_help_panel=_MODEL
    ),
    no_backward: bool = typer.Option(
        False, "--no-backward", help="Answer no requests for gradients, at half the memory.", rich_help_panel=_MODEL
    ),
    epoch: str | None = typer.Option(
        None, help="Any text; another one is another public matrix (docs/security.md).", rich_help_panel=_MODEL
    ),
) -> None:
    """Hold linear layers for any number of clients at once: such as they train, or those of a model to be used (--model)."""
    from rich.console import Console

    from hesplit_native.cli.paths import output_folder
    from hesplit_native.cli.terminal import one_line
    from hesplit_native.protocols.metrics import Metrics

    of_training: dict[str, object] = {
        "--output": output, "--checkpoints": checkpoints, "--keep-checkpoints": keep_checkpoints, "--sessions": sessions,
    }  # fmt: skip
    of_models: dict[str, object] = {"--layers": layers, "--transposed": transposed, "--train": train or None}
    of_frozen: dict[str, object] = {"--precision": precision, "--no-backward": no_backward or None, "--epoch": epoch}
    if model is None:
        _refuse(of_models | of_frozen, "--model")
    elif train:
        _refuse(of_frozen, "layers that are used as they are, not with --train")
    else:
        _refuse(of_training, "layers that are trained, not with --model alone (--train)")
    if query_ledger is not None:
        output_folder(query_ledger)
    console = Console()
    set_threads(threads)

    def event(line: str) -> None:
        console.print(one_line(line), highlight=False, markup=False, soft_wrap=True)

    total = _mebibytes(memory)
    per_client = _mebibytes(memory_per_client)
    try:
        with nullcontext() if metrics is None else Metrics(metrics) as counters:
            if counters is not None:
                console.print(f"metrics on port {counters.port}", highlight=False)
            if model is None or train:
                _serve_training(
                    console, event, counters, model=model, layers=layers or [], transposed=transposed or [], host=host,
                    port=port, tls=tls, insecure=insecure, output=output, checkpoints=checkpoints,
                    keep_checkpoints=keep_checkpoints, memory=total, memory_per_client=per_client, queries=queries,
                    query_ledger=query_ledger, sessions=sessions, timeout=timeout, max_clients=max_clients,
                )  # fmt: skip
                return
            from hesplit_native.protocols.serving import serve

            server = serve(
                model, layers=layers or "*", transposed=transposed or (), precision=precision or "float32",
                backward=not no_backward, epoch=epoch or "", host=host, port=port, tls=tls, insecure=insecure, memory=total,
                memory_per_client=per_client, queries=queries, query_ledger=query_ledger, max_clients=max_clients,
                timeout=timeout, on_event=event,
                on_request=counters.count if counters is not None else lambda answered: None,
            )  # fmt: skip
            with server:
                _show_model(console, server, host, secure=tls is not None)
                _show_queries(console, queries)
                if counters is not None:
                    _show_memory(counters, server)
                _wait_forever()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _serve_training(
    console: Console,
    event: Callable[[str], None],
    counters: Metrics | None,
    *,
    model: Path | None,
    layers: list[str],
    transposed: list[str],
    host: str,
    port: int,
    tls: Path | None,
    insecure: bool,
    output: Path | None,
    checkpoints: Path | None,
    keep_checkpoints: float | None,
    memory: int | None,
    memory_per_client: int | None,
    queries: int | None,
    query_ledger: Path | None,
    sessions: int | None,
    timeout: float,
    max_clients: int,
) -> None:
    from time import monotonic, sleep

    from hesplit_native.cli.paths import output_folder
    from hesplit_native.cli.terminal import one_line
    from hesplit_native.layer.weights import weights_of
    from hesplit_native.protocols.budget import default_memory, mebibytes
    from hesplit_native.protocols.server import Server, prepare
    from hesplit_native.transport import GrpcServer, Limits, ServerTls, join_address

    certificates = ServerTls.load(tls) if tls is not None else None
    for folder in (output, checkpoints):
        if folder is not None:
            output_folder(folder)
    start = [] if model is None else list(weights_of(model, layers or "*", transposed=transposed))
    total = default_memory() if memory is None else memory
    server = Server(
        layers=start,
        checkpoints=checkpoints,
        keep_days=_KEEP_DAYS if keep_checkpoints is None else keep_checkpoints,
        output=output,
        memory=total,
        memory_per_client=total // 4 if memory_per_client is None else memory_per_client,
        memory_kept=total // 2,  # or a few large clients would lock everybody out
        queries=queries,
        query_ledger=query_ledger,
        on_event=event,
    )
    prepare()
    transport = GrpcServer(
        join_address(host, port),
        server.converse,
        tls=certificates,
        insecure=insecure,
        limits=Limits(idle_seconds=timeout, max_clients=max_clients),
        on_event=event,
    )
    if counters is not None:
        counters.show("hesplit_sessions", "Sessions that go on.", lambda: len(server.sessions))
        counters.show("hesplit_sessions_ended", "Sessions that came to their end.", lambda: server.ended)
        _show_budget(counters, server.budget)
    with transport as bound:
        for layer in start:
            outputs, inputs = layer.weight.shape
            console.print(
                f"training may start from {one_line(layer.name)}: {inputs} -> {outputs}", highlight=False, markup=False
            )
        _say_where(console, host, bound.port, secure=tls is not None)
        budget = server.budget
        console.print(
            f"memory: {mebibytes(budget.total)} for all clients, {mebibytes(budget.per_client)} for one",
            highlight=False,
        )
        _show_queries(console, queries)
        tidied = monotonic()
        while sessions is None or server.ended < sessions:
            sleep(0.05)
            if monotonic() - tidied > _TIDY_SECONDS:
                server.tidy()
                tidied = monotonic()
        sleep(0.2)  # for the last reply to leave


def _refuse(options: dict[str, object], what: str) -> None:
    """ParameterError for options that belong to the other kind of server."""
    from hesplit_native.errors import ParameterError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ParameterError(f"{', '.join(given)} {'goes' if len(given) == 1 else 'go'} with {what}")


def _show_model(console: Console, server: ModelServer, host: str, *, secure: bool) -> None:
    """What is served, and the memory that it takes."""
    from rich.table import Table

    from hesplit_native.protocols.budget import mebibytes

    service = server.service
    table = Table("layer", "inputs", "outputs", "bias", "memory", "hints")
    for layer in service.layers.values():
        about = layer.description
        table.add_row(
            about.name,
            str(about.in_features),
            str(about.out_features),
            "yes" if about.bias else "no",
            mebibytes(layer.resident_bytes),
            mebibytes(sum(matrix.hint_bytes for matrix in layer.matrices)),
        )
    console.print(table)
    first = next(iter(service.layers.values())).description
    console.print(
        f"{len(service.layers)} layers, {first.precision}, {'forward and backward' if first.backward else 'forward only'}; "
        f"memory: {mebibytes(service.resident_bytes)} for them, {mebibytes(service.hints.limit)} for hints, "
        f"{mebibytes(service.budget.total)} for all clients, {mebibytes(service.budget.per_client)} for one",
        highlight=False,
        soft_wrap=True,
    )
    _say_where(console, host, server.port, secure=secure)


def _show_queries(console: Console, queries: int | None) -> None:
    if queries is not None:
        console.print(f"queries: {queries} answers about a layer for one client", highlight=False)


def _say_where(console: Console, host: str, port: int, *, secure: bool) -> None:
    console.print(f"listening on {host}:{port} ({'mutual TLS' if secure else 'no TLS'})", highlight=False)


def _show_memory(counters: Metrics, server: ModelServer) -> None:
    service = server.service
    _show_budget(counters, service.budget)
    counters.show("hesplit_hint_memory_bytes", "Hints that are kept.", lambda: service.hints.held)
    counters.show("hesplit_model_memory_bytes", "The prepared matrices.", lambda: service.resident_bytes)


def _show_budget(counters: Metrics, budget: Budget) -> None:
    counters.show("hesplit_memory_held_bytes", "Memory that clients take.", lambda: budget.held)
    counters.show("hesplit_memory_limit_bytes", "What they may take.", lambda: budget.total)


def _wait_forever() -> None:
    from time import sleep

    from hesplit_native.protocols.budget import give_back_memory

    while True:
        sleep(_TIDY_SECONDS)
        give_back_memory()


def _mebibytes(value: float | None) -> int | None:
    return None if value is None else int(value * 2**20)
