"""The messages of the protocols: a fixed header, then a validated body.

    header   magic "HESL", version u16, type u16, step u64, session (16 bytes)      (little endian, 32 bytes)
    matrix   dtype u8, dimensions u8 (= 2), zero u16, rows u32, columns u32, then the raw values, row-major
    rows     count u32, then as many u64
    text     length u32, then UTF-8
    blob     the rest of the body: ciphertexts and public material, validated by the core

`session` is the nonce that the server drew for this session; it is zero in the handshake, before it is known. `step` counts the
requests of a session from 0; a reply carries the step of its request. So a message replayed, reordered or taken from another
session does not fit. Everything that is read here comes from a peer: whatever is not exactly as expected is a `WireError` before
it is used.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import RangeError, WireError

MAGIC = b"HESL"
VERSION = 2
NO_SESSION = bytes(16)

_HEADER = struct.Struct("<4sHHQ16s")
HEADER_BYTES = _HEADER.size
_MATRIX = struct.Struct("<BBHII")
_LENGTH = struct.Struct("<I")
_FLOAT32 = 1
_MAX_TEXT = 1 << 16

Float32Array = npt.NDArray[np.float32]


class MessageType(IntEnum):
    """What a message is, and so what its body holds."""

    HELLO = 1  # text (the session as the client sees it), blob (public material, may be empty)
    WELCOME = 2  # text (the session as the server sees it, and its nonce)
    FORWARD = 3  # activations: a matrix (plain) or a blob (encrypted); a BACKWARD must follow
    LOGITS = 4  # a matrix or a blob
    BACKWARD = 5  # gradient at the logits; splitways: then the weight gradient; sealed: a blob
    INPUT_GRADIENT = 6  # a matrix; vertical: loss and correct predictions before it; sealed: a blob
    EVALUATE = 7  # as FORWARD, but nothing is learnt from it
    END = 8  # empty
    SUMMARY = 9  # text: the server's seconds by phase
    ERROR = 10  # text: why the sender ends the session
    LEARN = (
        11  # vanilla: activations, then labels as a matrix of one column; vertical: rows, then a blob of activations
    )
    LEARNT = 12  # vanilla: loss and correct predictions as a [1, 2] matrix, then the input gradient
    MASKED_GRADIENT = 13  # hesplit, vertical: a blob, the encrypted and masked weight gradient
    OPENED_GRADIENT = 14  # hesplit, vertical: a blob, decrypted and still masked
    REFRESH = 15  # sealed: a blob, all weights anew
    DONE = 16  # empty
    CHECKPOINT = 17  # text: the step whose state the server stores, and whether it stays when later ones are stored
    RESUME = 18  # text: which session and which checkpoints the client has
    RESUMED = 19  # text: how it goes on
    RESTORE = 20  # text (terms, run and step), blob (public material)
    MERGE = 21  # text: this participant's weight in the average
    ADOPT = 22  # empty: take the average of all participants; text: that of these checkpoints of theirs
    JOIN = 23  # triad: empty
    NONCE = 24  # triad: the session's shared nonce
    SUBMIT = 25  # triad: sanitised rows and labels
    LAYERS = 26  # frozen: empty
    OFFER = 27  # frozen: a blob, JSON: the layers that the server has
    HINT = 28  # frozen: text (layer, direction, and how many bytes the client has)
    HINT_PART = 29  # frozen: text (the bytes of the whole hint), blob (those that come next)
    PRODUCT = 30  # frozen: text (layer and direction), blob
    RESULT = 31  # frozen: a blob
    REFUSED = 32  # text: why this request is not answered; the conversation goes on
    RATE = 33  # text: the learning rate of the server's layer from now on
    SHARE = 34  # vertical: a blob, the encrypted and masked logits
    OPENED_SHARE = 35  # vertical: a blob, decrypted and still masked
    KEY = 36  # frozen, without hints: text (the layer as the client knows it), blob (public material)


class Message(NamedTuple):
    """A message whose header has been checked, with its body still to be read."""

    type: MessageType
    step: int
    session: bytes
    body: memoryview


def pack(kind: MessageType, step: int, session: bytes, *parts: bytes | memoryview) -> bytes:
    """A whole message from the parts of its body."""
    return b"".join((_HEADER.pack(MAGIC, VERSION, kind, step, session), *parts))


def unpack(data: bytes | memoryview) -> Message:
    """Check the header of `data`; the body is a view into it, not a copy."""
    if len(data) < _HEADER.size:
        raise WireError(f"a message of {len(data)} bytes is shorter than its header ({_HEADER.size} bytes)")
    magic, version, kind, step, session = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError("these bytes are no message of hesplit_native (wrong magic number)")
    if version != VERSION:
        raise WireError(
            f"the peer speaks version {version} of the messages, this side version {VERSION}: "
            "install the same hesplit_native at both ends"
        )
    try:
        return Message(MessageType(kind), step, session, memoryview(data)[_HEADER.size :])
    except ValueError:
        raise WireError(f"unknown message type {kind}") from None


def matrix(values: Float32Array, name: str) -> bytes:
    """The part of a body that holds a float32 matrix [rows, columns]; `RangeError` for NaN or Inf."""
    rows, columns = values.shape
    _check_finite(values, name)
    return _MATRIX.pack(_FLOAT32, 2, 0, rows, columns) + values.astype("<f4", copy=False).tobytes()


def take_matrix(body: memoryview, name: str, *, rows: range, columns: int) -> tuple[Float32Array, memoryview]:
    """Read a matrix from the front of `body`.

    Parameters
    ----------
    body : memoryview
        What is left of a message.
    name : str
        What the matrix is, for errors.
    rows : range
        The numbers of rows that are acceptable here.
    columns : int
        The number of columns agreed.

    Returns
    -------
    values : ndarray of float32, [rows, columns]
        A read-only view into the message.
    rest : memoryview
        The body after it.
    """
    if len(body) < _MATRIX.size:
        raise WireError(f"{name}: the message ends before the matrix begins")
    dtype, dimensions, zero, height, width = _MATRIX.unpack_from(body)
    if dtype != _FLOAT32 or dimensions != 2 or zero != 0:
        raise WireError(
            f"{name}: expected a float32 matrix (codes {_FLOAT32}, 2, 0), got codes {dtype}, {dimensions}, {zero}"
        )
    if height not in rows or width != columns:
        expected = f"{rows[0]}" if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"
        raise WireError(f"{name}: expected [{expected}, {columns}], got [{height}, {width}]")
    size = 4 * height * width
    if len(body) - _MATRIX.size < size:
        raise WireError(f"{name}: {size} bytes of values announced, {len(body) - _MATRIX.size} there")
    values = np.frombuffer(body, dtype="<f4", count=height * width, offset=_MATRIX.size)
    _check_finite(values, name)
    return values.reshape(height, width), body[_MATRIX.size + size :]


def rows(values: npt.NDArray[np.int64]) -> bytes:
    """The part of a body that names rows of a table, [n], none below 0."""
    return _LENGTH.pack(len(values)) + values.astype("<u8").tobytes()


def take_rows(body: memoryview, name: str, *, most: int, end: int) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Read 1 to `most` rows below `end` from the front of `body`: int64 [n], and the body after them."""
    count = rows_announced(body, name)
    if not 1 <= count <= most or len(body) - _LENGTH.size < 8 * count:
        raise WireError(f"{name}: {count} rows announced in {len(body)} bytes; 1 to {most} are possible here")
    found = np.frombuffer(body, dtype="<u8", count=count, offset=_LENGTH.size)
    if found.max() >= end:
        raise WireError(f"{name}: expected rows between 0 and {end - 1}, got {found.max()}")
    return found.astype(np.int64), body[_LENGTH.size + 8 * count :]


def rows_announced(body: memoryview, name: str) -> int:
    """How many rows the front of `body` announces."""
    if len(body) < _LENGTH.size:
        raise WireError(f"{name}: the message ends before the rows begin")
    count: int = _LENGTH.unpack_from(body)[0]
    return count


def take_nothing(rest: memoryview, name: str) -> None:
    """Insist that a body has been read to its end."""
    if len(rest):
        raise WireError(f"{name}: {len(rest)} bytes too many at the end of the message")


def text(value: str) -> bytes:
    """The part of a body that holds text; what UTF-8 cannot carry, as only a peer's JSON can hold, is escaped."""
    encoded = value.encode(errors="backslashreplace")
    return _LENGTH.pack(len(encoded)) + encoded


def take_text(body: memoryview, name: str) -> tuple[str, memoryview]:
    """Read text from the front of `body`: the text, and the body after it."""
    if len(body) < _LENGTH.size:
        raise WireError(f"{name}: the message ends before the text begins")
    (length,) = _LENGTH.unpack_from(body)
    if length > min(_MAX_TEXT, len(body) - _LENGTH.size):
        raise WireError(f"{name}: a text of {length} bytes is too long for its message")
    end = _LENGTH.size + length
    try:
        return str(body[_LENGTH.size : end], "utf-8"), body[end:]
    except UnicodeDecodeError:
        raise WireError(f"{name}: the text is not UTF-8") from None


def take_json(body: memoryview, name: str) -> tuple[dict[str, Any], memoryview]:
    """Read text that holds a JSON object from the front of `body`."""
    content, rest = take_text(body, name)
    return json_object(content, name), rest


def take_value(body: memoryview, name: str, key: str, kind: type) -> Any:
    """Read a body that is a JSON object, for the value of this type under `key`."""
    values, rest = take_json(body, name)
    take_nothing(rest, name)
    value = values.get(key)
    if type(value) is not kind:
        raise WireError(f"{name}: expected {key} as {kind.__name__}")
    return value


def json_object(content: str, name: str) -> dict[str, Any]:
    """The JSON object that a peer's text or a file's holds; WireError if it holds anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise WireError(f"{name}: the text is not JSON") from None
    if not isinstance(value, dict):
        raise WireError(f"{name}: expected a JSON object")
    return value


def _check_finite(values: Float32Array, name: str) -> None:
    if not np.isfinite(values).all():
        raise RangeError(f"{name}: contains NaN or Inf (a lower learning rate may help)")
