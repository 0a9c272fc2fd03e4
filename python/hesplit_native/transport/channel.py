"""What every transport offers: whole messages, in order, in both directions, counted.

The protocols know nothing else about a transport: an in-process call and a gRPC stream carry the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from hesplit_native.transport.certificates import check_client_id

#: What gRPC puts before every message: a flag and its length. In-process calls are counted alike.
PREFIX_BYTES = 5
#: No message of this package is longer (rotation keys of the slot packing are the longest).
MAX_MESSAGE = 1 << 28
#: Seconds without an answer after which a peer counts as gone.
TIMEOUT = 300.0
#: Messages up to this length travel in one piece; longer ones are let in by their first piece.
SHORT_MESSAGE = 1 << 20


def _admit_any(beginning: memoryview, length: int) -> None:
    """The transport's own limit is the only one."""


def _never_quick(message: bytes) -> bool:
    """Nobody knows."""
    return False


@dataclass
class Allowance:
    """What one connection may send. A conversation sets it before its first message; the transport asks it.

    `admit` is called with the beginning of every message, up to SHORT_MESSAGE bytes, and its length, before the rest is taken in. It
    raises an HESplitError to end the conversation; True lets in the beginning alone, and the rest is thrown away as it comes.
    `quick` says of a whole message whether it is answered within a millisecond or so, waiting for nobody: a transport may then ask
    for the answer in a thread that serves other connections too.
    `settled` turns True when the handshake is over: until then a connection may be closed to make room for others. None: the first
    answer ends the handshake.
    """

    admit: Callable[[memoryview, int], bool | None] = _admit_any
    quick: Callable[[bytes], bool] = _never_quick
    settled: bool | None = None


@dataclass(frozen=True)
class ClientInfo:
    """Who is at the other end of a server's connection. `authenticated`: the id is that of a verified certificate.

    ParameterError for an id that does not follow the rule (`certificates.check_client_id`).
    """

    id: str
    authenticated: bool = False
    peer: str = ""
    allowance: Allowance = field(default_factory=Allowance, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_client_id(self.id)


class Channel(Protocol):
    """One conversation between a client and a server.

    `bytes_up` (client to server) and `bytes_down` (server to client) count every byte handed over,
    prefixes included, and mean the same at both ends. A peer that went away or does not answer
    in time is a `ProtocolError`; messages above the size limit are a `WireError`.
    """

    @property
    def bytes_up(self) -> int:
        """Bytes from client to server so far."""
        ...

    @property
    def bytes_down(self) -> int:
        """Bytes from server to client so far."""
        ...

    def send(self, message: bytes) -> None:
        """Hand one message to the peer."""
        ...

    def receive(self) -> bytes:
        """Wait for the peer's next message."""
        ...

    def close(self) -> None:
        """End the conversation; closing twice is harmless."""
        ...
