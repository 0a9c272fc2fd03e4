"""`hesplit-native serve`."""

from __future__ import annotations

from pathlib import Path

import typer

from hesplit_native.cli.options import set_threads

_TIDY_SECONDS = 10.0


def serve_command(
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(7000, min=0, max=65535, help="0 lets the system choose."),
    tls: Path | None = typer.Option(None, help="Folder of `hesplit-native certs`: mutual TLS."),
    insecure: bool = typer.Option(False, "--insecure", help="Listen to other machines without TLS."),
    output: Path | None = typer.Option(None, help="Directory for the trained layer of each session."),
    checkpoints: Path | None = typer.Option(
        None, help="Directory from which sessions resume when this process was killed."
    ),
    keep_checkpoints: float = typer.Option(
        30.0, min=0.01, help="Days without a new checkpoint after which a run is removed from --checkpoints."
    ),
    memory: float | None = typer.Option(
        None, min=1.0, help="MiB that all clients together may take; half of the machine's memory unless given."
    ),
    memory_per_client: float | None = typer.Option(
        None, min=1.0, help="MiB that one client may take; a quarter of --memory unless given."
    ),
    sessions: int | None = typer.Option(None, min=1, help="Stop after so many finished sessions."),
    timeout: float = typer.Option(300.0, min=1.0, help="Seconds without a message after which a connection is closed."),
    max_clients: int = typer.Option(32, min=1, help="Connections at once."),
    threads: int = typer.Option(1, min=1, help="Threads of torch and of the core."),
) -> None:
    """Hold the linear layer for any number of clients at once."""
    from time import monotonic, sleep

    from rich.console import Console

    from hesplit_native.cli.paths import output_folder
    from hesplit_native.cli.terminal import one_line
    from hesplit_native.protocols.budget import default_memory, mebibytes
    from hesplit_native.protocols.server import Server, prepare
    from hesplit_native.transport import GrpcServer, Limits, ServerTls

    console = Console()
    set_threads(threads)

    def event(line: str) -> None:
        console.print(one_line(line), highlight=False, markup=False, soft_wrap=True)

    certificates = ServerTls.load(tls) if tls is not None else None
    for folder in (output, checkpoints):
        if folder is not None:
            output_folder(folder)
    total = default_memory() if memory is None else int(memory * 2**20)
    server = Server(
        checkpoints=checkpoints,
        keep_days=keep_checkpoints,
        output=output,
        memory=total,
        memory_per_client=total // 4 if memory_per_client is None else int(memory_per_client * 2**20),
        memory_kept=total // 2,  # or a few large clients would lock everybody out
        on_event=event,
    )
    prepare()
    transport = GrpcServer(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        server.converse,
        tls=certificates,
        insecure=insecure,
        limits=Limits(idle_seconds=timeout, max_clients=max_clients),
        on_event=event,
    )
    try:
        with transport as bound:
            security = "mutual TLS" if tls is not None else "no TLS"
            console.print(f"listening on {host}:{bound.port} ({security})", highlight=False)
            budget = server.budget
            console.print(
                f"memory: {mebibytes(budget.total)} for all clients, {mebibytes(budget.per_client)} for one",
                highlight=False,
            )
            tidied = monotonic()
            while sessions is None or server.ended < sessions:
                sleep(0.05)
                if monotonic() - tidied > _TIDY_SECONDS:
                    server.tidy()
                    tidied = monotonic()
            sleep(0.2)  # for the last reply to leave
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
