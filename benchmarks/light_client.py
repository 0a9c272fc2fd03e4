"""A gRPC stream for load: little more of HTTP/2 than one call takes, over one TLS socket that does not block.

A client of `transport.grpc` costs as much as the server that it is to load; this one a tenth of it.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from select import select

from hesplit_native.errors import ConnectionLost

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW = 4  # the setting
_LONGEST_FRAME, _WINDOW_BYTES, _LARGEST_WINDOW = 1 << 14, (1 << 16) - 1, (1 << 31) - 1
_PREFIX = struct.Struct(">BI")
_SECONDS = 60.0


def client_context(folder: Path, name: str) -> ssl.SSLContext:
    """For connections of the client whose certificate is in that folder."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / f"client-{name}.pem", folder / f"client-{name}.key")
    context.set_alpn_protocols(["h2"])
    return context


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class LightChannel:
    """One conversation. `send` and `receive` wait, as every channel's do; `put` and `take` do not."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        host, _, port = address.rpartition(":")
        raw = socket.create_connection((host, int(port)), timeout=_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(raw, server_hostname=host)
        self.socket.setblocking(False)
        self._unsent = bytearray()
        self._held: list[bytes] = []  # frames of data for which there is no window yet
        self._received = bytearray()
        self._message = bytearray()
        self._window = self._stream_window = self._initial = _WINDOW_BYTES
        self._ended = False
        self._taken = 0  # bytes of data since the windows were opened
        fields = {
            ":method": "POST", ":scheme": "https", ":path": "/hesplit_native.Split/Converse", ":authority": host,
            "content-type": "application/grpc", "te": "trailers", "takes-pieces": "1",
        }  # fmt: skip
        self._write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, _LARGEST_WINDOW))
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _WINDOW_BYTES))
            + _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(*pair) for pair in fields.items()))
        )

    @property
    def waits_to_write(self) -> bool:
        """Whether `flush` is due when the socket takes more."""
        return bool(self._unsent)

    def put(self, message: bytes) -> None:
        """Send a message as far as socket and windows take it; `take` and `flush` send the rest."""
        data = _PREFIX.pack(0, len(message)) + message
        for start in range(0, len(data), _LONGEST_FRAME):
            self._held.append(data[start : start + _LONGEST_FRAME])
        self._release()

    def take(self) -> Iterator[bytes]:
        """Messages that have arrived as a whole; ConnectionLost where the server has ended the call."""
        while True:
            try:
                more = self.socket.recv(1 << 16)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            if not more:
                raise ConnectionLost("the server closed the connection")
            self._received += more
        self._read_frames()
        while len(self._message) >= _PREFIX.size:
            length = _PREFIX.unpack_from(self._message)[1] + _PREFIX.size
            if len(self._message) < length:
                break
            message = bytes(self._message[_PREFIX.size : length])
            del self._message[:length]
            yield message
        if self._ended:
            raise ConnectionLost("the server ended the call")

    def flush(self) -> None:
        """Write what the socket would not take before."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def send(self, message: bytes) -> None:
        """Hand over a message."""
        self.put(message)

    def receive(self) -> bytes:
        """Wait for a message."""
        while True:
            for message in self.take():
                return message
            found = select([self.socket], [self.socket] if self._unsent else [], [], _SECONDS)
            if not found[0] and not found[1]:
                raise ConnectionLost(f"nothing for {_SECONDS:g} seconds")
            self.flush()

    def close(self) -> None:
        """End the connection without a word."""
        self.socket.close()

    def _write(self, data: bytes) -> None:
        self._unsent += data
        self.flush()

    def _release(self) -> None:
        """Send what the windows have room for."""
        ready = []
        while self._held and len(self._held[0]) <= min(self._window, self._stream_window):
            data = self._held.pop(0)
            self._window -= len(data)
            self._stream_window -= len(data)
            ready.append(_frame(_DATA, 0, 1, data))
        if ready:
            self._write(b"".join(ready))

    def _read_frames(self) -> None:
        at, received = 0, self._received
        while len(received) - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", received, at)
            end = at + 9 + (head >> 8)
            if len(received) < end:
                break
            self._frame(head & 255, flags, stream, bytes(received[at + 9 : end]))
            at = end
        del received[:at]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._message += payload
            self._taken += len(payload)
            if self._taken > _LARGEST_WINDOW // 2:
                more = struct.pack(">I", self._taken)
                self._write(_frame(_WINDOW, 0, 0, more) + _frame(_WINDOW, 0, 1, more))
                self._taken = 0
        elif kind == _WINDOW:
            increment = struct.unpack(">I", payload)[0]
            if stream:
                self._stream_window += increment
            else:
                self._window += increment
            self._release()
        elif kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _INITIAL_WINDOW:
                    self._stream_window += value - self._initial
                    self._initial = value
            self._write(_frame(_SETTINGS, _ACK, 0, b""))
            self._release()
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        if kind in (_RESET, _GOAWAY) or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            self._ended = True
