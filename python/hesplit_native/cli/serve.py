"""`hesplit-native serve`."""

from __future__ import annotations

from pathlib import Path

import typer

from hesplit_native.cli.options import set_threads


def serve_command(
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(7000, min=0, max=65535, help="0 lets the system choose."),
    output: Path | None = typer.Option(None, help="Directory for the trained layer of each session."),
    sessions: int | None = typer.Option(None, min=1, help="Stop after so many clients."),
    timeout: float = typer.Option(300.0, min=1.0, help="Seconds without a message after which a client is gone."),
    threads: int = typer.Option(1, min=1, help="Threads of torch and of the core."),
) -> None:
    """Hold the linear layer for clients, one after another. The connection itself is neither encrypted nor authenticated."""
    from rich.console import Console

    from hesplit_native.protocols.server import serve

    console = Console()
    set_threads(threads)
    try:
        serve(
            host,
            port,
            on_listen=lambda bound: console.print(f"listening on {host}:{bound}", highlight=False),
            on_event=lambda line: console.print(line, highlight=False, markup=False),
            output=output,
            sessions=sessions,
            timeout=timeout,
        )
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
