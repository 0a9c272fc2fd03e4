"""How a client that trains names its server, and what opens connections to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

from hesplit_native.errors import ParameterError
from hesplit_native.transport.certificates import ClientTls
from hesplit_native.transport.channel import Channel, ClientInfo
from hesplit_native.transport.grpc import connect
from hesplit_native.transport.in_process import Conversation, InProcessChannel

Tls = ClientTls | str | os.PathLike[str]


class Conversing(Protocol):
    """A server in this process."""

    def converse(self, client: ClientInfo) -> Conversation:
        """Answer one connection."""
        ...


#: ``"host:port"``, a server in this process, what opens a connection, or a connection.
ServerAddress = str | Conversing | Callable[[], Channel] | Channel


@dataclass(frozen=True)
class Opener:
    """Opens connections to one server. `again`: as often as one is needed."""

    open: Callable[[], Channel]
    again: bool = True


def opener(
    server: ServerAddress, *, tls: Tls | None = None, client_id: str = "client", insecure: bool = False
) -> Opener:
    """What opens connections to `server`.

    Parameters
    ----------
    server
        ``"host:port"``; a server in this process (`protocols.server.Server`); a function that opens a connection; or a connection,
        which cannot be made again when it is lost.
    tls
        For an address: certificates for mutual TLS, or the folder of `hesplit-native certs` with them; None: no TLS, which takes
        addresses of this machine or ``insecure``.
    client_id
        Who this client says it is; under TLS the name in its certificate.

    Raises
    ------
    ParameterError
        It is none of these.
    DataError
        A certificate that is missing or not in order.
    """
    if isinstance(server, str):
        certificates = tls if tls is None or isinstance(tls, ClientTls) else ClientTls.load(tls, client_id)
        return Opener(partial(connect, server, tls=certificates, client_id=client_id, insecure=insecure))
    if tls is not None:
        raise ParameterError("tls is for a server named by its address, host:port")
    if hasattr(server, "converse"):
        here = server
        return Opener(lambda: InProcessChannel(here.converse(ClientInfo(client_id))))
    if hasattr(server, "receive"):
        channel = cast(Channel, server)
        return Opener(lambda: channel, again=False)
    if callable(server):
        return Opener(server)
    raise ParameterError(f"expected a server as host:port, a connection or what opens one, got {type(server).__name__}")
