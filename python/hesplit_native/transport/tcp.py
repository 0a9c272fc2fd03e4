"""TCP: length-prefixed frames on one connection.

No encryption or authentication of the connection; use it on one machine or inside a trusted network.
"""

from __future__ import annotations

import socket
from types import TracebackType

from hesplit_native.errors import ParameterError, ProtocolError, WireError
from hesplit_native.transport.channel import FRAME_HEADER, frame_size

#: No message of this package is longer (rotation keys of the slot packing are the longest).
MAX_FRAME = 1 << 28
#: Seconds without a byte from the peer after which it counts as gone.
TIMEOUT = 300.0


class TcpChannel:
    """A `Channel` over a connected socket.

    Parameters
    ----------
    connection : socket.socket
        Connected; the channel owns it from here on.
    server_side : bool
        True at the end that accepted the connection (it sends down and receives up).
    timeout : float
        Seconds to wait for the peer in any one call.
    max_frame : int
        Longest message accepted, in bytes; a longer one is refused before memory is taken for it.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        server_side: bool,
        timeout: float = TIMEOUT,
        max_frame: int = MAX_FRAME,
    ) -> None:
        # Nagle's algorithm would hold the second of two small frames back for a round trip.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout)
        self._socket = connection
        self._peer = "client" if server_side else "server"
        self._server_side = server_side
        self._timeout = timeout
        self._max_frame = max_frame
        self._sent = 0
        self._received = 0

    @property
    def bytes_up(self) -> int:
        """Bytes from client to server, frame headers included."""
        return self._received if self._server_side else self._sent

    @property
    def bytes_down(self) -> int:
        """Bytes from server to client, frame headers included."""
        return self._sent if self._server_side else self._received

    def send(self, message: bytes) -> None:
        """Send one frame."""
        if len(message) > self._max_frame:
            raise WireError(f"a message of {len(message)} bytes exceeds the limit of {self._max_frame} bytes")
        try:
            self._socket.sendall(FRAME_HEADER.pack(len(message)) + message)
        except OSError as error:
            raise self._gone(error) from error
        self._sent += frame_size(message)

    def receive(self) -> bytes:
        """Wait for one whole frame."""
        (length,) = FRAME_HEADER.unpack(self._read(FRAME_HEADER.size, "between two messages"))
        if length > self._max_frame:
            raise WireError(
                f"the {self._peer} announced a message of {length} bytes; the limit is {self._max_frame} bytes"
            )
        message = self._read(length, "in the middle of a message")
        self._received += frame_size(message)
        return message

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> TcpChannel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, size: int, where: str) -> bytes:
        # Zeroed pages are only committed when bytes arrive, so an announced length alone costs nothing.
        buffer = bytearray(size)
        view = memoryview(buffer)
        filled = 0
        while filled < size:
            try:
                count = self._socket.recv_into(view[filled:])
            except OSError as error:
                raise self._gone(error) from error
            if count == 0:
                raise ProtocolError(f"the {self._peer} closed the connection {where}")
            filled += count
        return bytes(buffer)

    def _gone(self, error: OSError) -> ProtocolError:
        if isinstance(error, TimeoutError):
            return ProtocolError(f"the {self._peer} sent nothing for {self._timeout:g} seconds")
        return ProtocolError(f"the connection to the {self._peer} was lost: {error.strerror or error}")


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `"host:port"` (`"[::1]:7000"` for IPv6); `ParameterError` otherwise."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ParameterError(f"expected an address as host:port, for example localhost:7000, got {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def connect(address: str, *, timeout: float = TIMEOUT, max_frame: int = MAX_FRAME) -> TcpChannel:
    """Connect to a server.

    Parameters
    ----------
    address : str
        `"host:port"`.
    timeout, max_frame
        As for `TcpChannel`; at most 10 seconds are spent on connecting.

    Raises
    ------
    ParameterError
        The address is not of that form.
    ProtocolError
        Nobody answers there.
    """
    host, port = parse_address(address)
    try:
        connection = socket.create_connection((host, port), timeout=min(timeout, 10.0))
    except OSError as error:
        raise ProtocolError(
            f"cannot connect to {address} ({error.strerror or error}): "
            "start the server there first (hesplit-native serve) or check host and port"
        ) from error
    return TcpChannel(connection, server_side=False, timeout=timeout, max_frame=max_frame)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `host`; port 0 lets the system choose (see `getsockname`)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ProtocolError(f"cannot listen on {host}:{port}: {error}") from error


def accept(listener: socket.socket, *, timeout: float = TIMEOUT, max_frame: int = MAX_FRAME) -> TcpChannel:
    """Wait, without limit of time, for the next client."""
    connection, _ = listener.accept()
    return TcpChannel(connection, server_side=True, timeout=timeout, max_frame=max_frame)
