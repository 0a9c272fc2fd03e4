"""Long messages in pieces, so that a peer knows how long a message is before it takes it in.

    piece    magic "HESC", zero u32, length of the message u64, offset u64      (little endian, 24 bytes), then its bytes

Messages up to `SHORT_MESSAGE` travel as they are; no protocol's begin with this magic, and others that do travel as one piece.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from hesplit_native.errors import WireError
from hesplit_native.transport.channel import SHORT_MESSAGE

_MAGIC = b"HESC"
_HEAD = struct.Struct("<4sIQQ")
#: The longest piece.
MAX_PIECE = SHORT_MESSAGE + _HEAD.size


def pieces(message: bytes) -> Iterator[bytes]:
    """What travels of a message, in order."""
    if len(message) <= SHORT_MESSAGE and not message.startswith(_MAGIC):
        yield message
        return
    view = memoryview(message)
    for offset in range(0, len(message), SHORT_MESSAGE):
        head = _HEAD.pack(_MAGIC, 0, len(message), offset)
        yield b"".join((head, view[offset : offset + SHORT_MESSAGE]))


def messages(received: Iterable[bytes], admit: Callable[[memoryview, int], bool | None]) -> Iterator[bytes]:
    """Whole messages from what was received.

    Parameters
    ----------
    admit
        Called with the beginning of each message and its length before more of it is read; raises to refuse it. Where it says True the
        rest is read and dropped, and the beginning stands for the message.

    Raises
    ------
    WireError
        Pieces that do not follow one another.
    """
    source = iter(received)
    for first in source:
        if first[: len(_MAGIC)] != _MAGIC:
            admit(memoryview(first), len(first))
            yield first
            continue
        message = _whole(first, source, admit)
        if message is None:
            return  # the peer has gone
        yield message
        del message  # whoever has it decides how long it is kept


def _whole(first: bytes, source: Iterator[bytes], admit: Callable[[memoryview, int], bool | None]) -> bytes | None:
    beginning, length = opening(first)
    parts = Parts(beginning, length, wanted=not admit(beginning, length))
    while parts.missing:
        following = next(source, None)
        if following is None:
            return None
        parts.add(following)
    return parts.whole()


def opening(first: bytes) -> tuple[memoryview, int]:
    """The beginning of a message, and its length, from what was received first of it."""
    if first[: len(_MAGIC)] != _MAGIC:
        return memoryview(first), len(first)
    length, beginning = _piece(first, 0)
    return beginning, length


class Parts:
    """A message whose pieces come one after the other; where it is not wanted only its beginning is kept."""

    def __init__(self, beginning: memoryview, length: int, *, wanted: bool) -> None:
        self._length = length
        self._wanted = wanted
        self._parts = [beginning]
        self._have = len(beginning)

    @property
    def missing(self) -> bool:
        """Whether more is to come."""
        return self._have < self._length

    def add(self, piece: bytes) -> None:
        """The piece that must come next."""
        total, part = _piece(piece, self._have)
        if total != self._length:
            raise WireError(f"a piece of a message of {total} bytes among those of one of {self._length} bytes")
        if self._wanted:
            self._parts.append(part)
        self._have += len(part)

    def whole(self) -> bytes:
        """The message."""
        return b"".join(self._parts)


def _piece(data: bytes, offset: int) -> tuple[int, memoryview]:
    """The length of the whole message, and the bytes of a piece that must begin at `offset`."""
    if len(data) < _HEAD.size:
        raise WireError(f"a piece of {len(data)} bytes is shorter than its header ({_HEAD.size} bytes)")
    magic, zero, length, begins = _HEAD.unpack_from(data)
    part = memoryview(data)[_HEAD.size :]
    if magic != _MAGIC or zero or begins != offset or len(part) != min(SHORT_MESSAGE, length - offset):
        raise WireError("a piece of a message that does not follow the one before")
    return length, part
