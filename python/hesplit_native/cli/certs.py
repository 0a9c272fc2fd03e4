"""`hesplit-native certs`."""

from __future__ import annotations

from pathlib import Path

import typer


def certs_command(
    folder: Path = typer.Argument(..., help="Where the certificates and keys go."),
    host: list[str] = typer.Option(
        ["localhost", "127.0.0.1", "::1"], help="Names and addresses of the server; repeatable."
    ),
    client: list[str] = typer.Option(["client"], help="Ids of the clients; repeatable."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is there."),
) -> None:
    """Make a test CA with certificates for a server and its clients. For real use, have your own CA sign them."""
    from rich.console import Console

    from hesplit_native.transport import make_authority, make_client, make_server

    console = Console()
    if overwrite or not (folder / "ca.pem").exists():
        make_authority(folder, overwrite=overwrite)
    if overwrite or not (folder / "server.pem").exists():
        make_server(folder, host, overwrite=overwrite)
    for name in client:
        make_client(folder, name, overwrite=overwrite)
    console.print(f"Written to {folder}: ca, server, {', '.join(f'client-{name}' for name in client)}", highlight=False)
    console.print(
        "A client needs ca.pem, client-<id>.pem and client-<id>.key; keep ca.key away from both.", style="yellow"
    )
