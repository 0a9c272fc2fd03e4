"""`hesplit-native certs`."""

from __future__ import annotations

from pathlib import Path

import typer

_HOSTS = ["localhost", "127.0.0.1", "::1"]


def certs_command(
    folder: Path = typer.Argument(..., help="Where the certificates and keys are, or go."),
    host: list[str] = typer.Option(
        [], help=f"A name or address of the server; repeatable. Added to those it has.  [default: {', '.join(_HOSTS)}]"
    ),
    client: list[str] = typer.Option([], help="Id of a client; repeatable.  [default: client, if there is none]"),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="Renew what is named (--host: for these alone), or all; under the same CA."
    ),
    new_ca: bool = typer.Option(
        False, "--new-ca", help="Replace the CA, and everything in the folder, which is of no use without the old one."
    ),
) -> None:
    """Make a test CA with certificates for a server and its clients. For real use, have your own CA sign them."""
    from rich.console import Console

    from hesplit_native.cli.paths import output_folder
    from hesplit_native.errors import ParameterError
    from hesplit_native.transport import authority, certificates, hosts

    asked = list(dict.fromkeys(map(hosts.certificate_host, host)))
    named = [certificates.check_client_id(name) for name in dict.fromkeys(client)]
    before, present = authority.server_hosts(folder), authority.client_ids(folder)
    fresh = new_ca or _needs_authority(folder, orphans=bool(before or present))
    replace = overwrite or new_ca
    for name in () if replace else named:
        if name in present:
            raise ParameterError(f"{folder / f'client-{name}.pem'} exists already; renew it with --overwrite")
    whole = new_ca or (overwrite and not asked and not named)
    kept = [] if asked and overwrite else before
    serving = [*kept, *(name for name in asked if name not in kept)] or _HOSTS
    make_server = whole or not before or (bool(asked) and (overwrite or serving != before))
    if make_server and before and not replace:
        authority.check_signed(folder, "server")
    clients = [*present, *(name for name in named if name not in present)] if whole else named
    if not (clients or present):
        clients = ["client"]
    if not (fresh or make_server or clients):
        typer.echo(f"nothing to do: the server's certificate is for {', '.join(before)}")
        return
    output_folder(folder)
    if fresh:
        authority.make_authority(folder, overwrite=new_ca)
        _print(folder, "ca")
    if make_server:
        authority.make_server(folder, serving, overwrite=bool(before) or replace)
        _print(folder, "server", f", for {', '.join(serving)}")
        if before:
            typer.echo(f"  (was for {', '.join(before)}; start the server again with the new files)")
    for name in clients:
        authority.make_client(folder, name, overwrite=replace)
        _print(folder, f"client-{name}")
    typer.echo(f"Written to {folder}")
    Console().print(
        "A client needs ca.pem, client-<id>.pem and client-<id>.key; keep ca.key away from both.", style="yellow"
    )


def _needs_authority(folder: Path, *, orphans: bool) -> bool:
    """Whether the folder has no CA yet; `orphans`: whether there are certificates in it."""
    from hesplit_native.errors import ParameterError
    from hesplit_native.transport import authority

    if any((folder / name).exists() for name in ("ca.pem", "ca.key")):
        authority.load_authority(folder)
        return False
    if orphans:
        raise ParameterError(f"{folder} holds certificates of a CA that is not there; take another folder, or --new-ca")
    return True


def _print(folder: Path, name: str, more: str = "") -> None:
    from hesplit_native.transport.authority import valid_until

    typer.echo(f"{name}: new{more}, valid until {valid_until(folder, name):%Y-%m-%d}")
