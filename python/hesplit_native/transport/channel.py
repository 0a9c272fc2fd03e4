"""What every transport offers: whole messages, in order, in both directions, counted.

The protocols know nothing else about a transport: an in-process call and a gRPC stream carry the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

#: What gRPC puts before every message: a flag and its length. In-process calls are counted alike.
PREFIX_BYTES = 5


@dataclass(frozen=True)
class ClientInfo:
    """Who is at the other end of a server's connection. `authenticated`: the id is that of a verified certificate."""

    id: str
    authenticated: bool = False
    peer: str = ""


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
