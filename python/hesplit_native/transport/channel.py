"""What every transport offers: whole messages, in order, in both directions, counted.

The protocols know nothing else about a transport, so an in-process call, a TCP connection or a later
gRPC stream carry the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

#: A frame on a byte stream: the message's length, then the message.
FRAME_HEADER = struct.Struct("<I")


@dataclass(frozen=True)
class ClientInfo:
    """Who is at the other end of a server's connection. `authenticated`: the id is that of a verified certificate."""

    id: str
    authenticated: bool = False
    peer: str = ""


class Channel(Protocol):
    """One conversation between a client and a server.

    `bytes_up` (client to server) and `bytes_down` (server to client) count every byte handed over,
    frame headers included, and mean the same at both ends. A peer that went away or does not answer
    in time is a `ProtocolError`; bytes that are no frame are a `WireError`.
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


def frame_size(message: bytes) -> int:
    """Bytes that `message` takes on a byte stream."""
    return FRAME_HEADER.size + len(message)
