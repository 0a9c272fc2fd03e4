"""What contexts and tensors are serialized as: a header in JSON, then blobs that the core validates.

magic "HESTS", version u8, length of the header u32, header, then every blob after its length u64     (little endian)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from hesplit_native.errors import WireError

_PREFIX = struct.Struct("<5sBI")
_MAGIC, _VERSION = b"HESTS", 1
_BLOB = struct.Struct("<Q")
_MAX_HEADER = 1 << 16


def write(header: dict[str, Any], blobs: Sequence[bytes]) -> bytes:
    """A header and blobs as bytes."""
    text = json.dumps(header).encode()
    parts = [_PREFIX.pack(_MAGIC, _VERSION, len(text)), text]
    for blob in blobs:
        parts += [_BLOB.pack(len(blob)), blob]
    return b"".join(parts)


def read(data: bytes, kind: str) -> tuple[Fields, list[bytes]]:
    """The header and blobs of `write`, a header of this `kind`.

    Raises
    ------
    WireError
        For anything else.
    """
    if len(data) < _PREFIX.size or not data.startswith(_MAGIC):
        raise WireError(
            f"these bytes are not a {kind} of hesplit_native.tenseal (those of TenSEAL itself cannot be read)"
        )
    _, version, length = _PREFIX.unpack_from(data)
    if version != _VERSION or length > _MAX_HEADER or len(data) < _PREFIX.size + length:
        raise WireError(f"a {kind} that is truncated, damaged or of another version")
    at = _PREFIX.size + length
    try:
        header = json.loads(data[_PREFIX.size : at].decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"a {kind} with a damaged header") from error
    fields = Fields(header, kind)
    if fields.text("kind") != kind:
        raise WireError(f"expected a {kind}")
    blobs = []
    while at < len(data):
        if len(data) - at < _BLOB.size:
            raise WireError(f"a truncated {kind}")
        (size,) = _BLOB.unpack_from(data, at)
        at += _BLOB.size
        if size > len(data) - at:
            raise WireError(f"a truncated {kind}")
        blobs.append(data[at : at + size])
        at += size
    return fields, blobs


class Fields:
    """The fields of a header from outside; whatever is not of the type asked for is a WireError."""

    def __init__(self, values: Any, kind: str) -> None:
        self._kind = kind
        if not isinstance(values, dict):
            raise self._error("header")
        self._values = values

    def _error(self, name: str) -> WireError:
        return WireError(f"a {self._kind} with an impossible {name}")

    def text(self, name: str) -> str:
        """A string."""
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self._error(name)
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            raise self._error(name)
        return value

    def number(self, name: str) -> float:
        """A number of up to 2^1000."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -(2.0**1000) <= value <= 2.0**1000:
            raise self._error(name)
        return float(value)

    def count(self, name: str, most: int) -> int:
        """An integer from 1 to `most`."""
        value = self._values.get(name)
        if type(value) is not int or not 1 <= value <= most:
            raise self._error(name)
        return value

    def counts(self, name: str, most: int, length: int) -> tuple[int, ...]:
        """Up to `length` integers from 1 to `most`."""
        value = self._values.get(name)
        if (
            not isinstance(value, list)
            or len(value) > length
            or any(type(n) is not int or not 1 <= n <= most for n in value)
        ):
            raise self._error(name)
        return tuple(value)

    def parts(self, name: str, length: int) -> list[Fields]:
        """1 to `length` objects."""
        value = self._values.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= length:
            raise self._error(name)
        return [Fields(part, self._kind) for part in value]

    def missing(self, name: str) -> bool:
        """Whether it is null or not there."""
        return self._values.get(name) is None
