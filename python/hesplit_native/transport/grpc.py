"""gRPC: whole messages over one bidirectional stream per connection, with mutual TLS; what both sides agree on, and the client.

The protocols' messages are the payload, as bytes: there is no other schema; long ones travel in pieces (`framing`). Without TLS only
connections within one machine are made, unless asked otherwise. The server is `grpc_server`.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from time import monotonic, sleep
from typing import Any

import grpc

from hesplit_native.errors import ConnectionLost, HESplitError, ParameterError, ProtocolError, WireError
from hesplit_native.transport import framing
from hesplit_native.transport.certificates import ClientTls, check_client_id
from hesplit_native.transport.channel import MAX_MESSAGE, PREFIX_BYTES, TIMEOUT
from hesplit_native.transport.hosts import normal_host

SERVICE, METHOD = "hesplit_native.Split", "Converse"
CLIENT_ID = "client-id"
PIECES = "takes-pieces"  # says a client that can put long messages together
_CONNECT_SECONDS = 10.0
_GOODBYE_SECONDS = 0.25  # for a server to notice that the client has nothing more to say


def channel_options(max_received: int, max_sent: int) -> list[tuple[str, int]]:
    """What both sides tell gRPC."""
    return [
        ("grpc.max_send_message_length", max_sent),
        ("grpc.max_receive_message_length", max_received),
        ("grpc.enable_http_proxy", 0),
        # A peer that vanished without a word is noticed within a minute.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]


def parse_address(address: str) -> tuple[str, int]:
    """Host, in one spelling, and port of `"host:port"` (`"[::1]:7000"` for IPv6); `ParameterError` otherwise."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ParameterError(f"expected an address as host:port, for example localhost:7000, got {address!r}")
    return normal_host(host), int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_security(host: str, tls: object, insecure: bool) -> None:
    """ParameterError for another machine without TLS, unless that is accepted."""
    if tls is None and not insecure and not _is_loopback(host):
        raise ParameterError(
            f"{host} is another machine: give certificates (--tls, made by `hesplit-native certs`), or accept that anyone on the "
            "way can read and change everything with --insecure"
        )


class GrpcChannel:
    """The client's `Channel` over one stream. Made by `connect`."""

    def __init__(
        self, channel: Any, client_id: str, address: str, *, tls: bool, timeout: float, max_message: int
    ) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self._channel = channel
        self._address = address
        self._tls = tls
        self._timeout = timeout
        self._max_message = max_message
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        stream = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        self._call = stream(iter(self._outgoing.get, None), metadata=((CLIENT_ID, client_id), (PIECES, "1")))
        self._messages = framing.messages(self._call, self._admit)
        self._waiting_since: float | None = None
        self._late = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="hesplit-timeout", daemon=True).start()

    def send(self, message: bytes) -> None:
        """Send one message."""
        if len(message) > self._max_message:
            raise WireError(f"a message of {len(message)} bytes exceeds the limit of {self._max_message} bytes")
        if self._closed.is_set():
            raise ConnectionLost("the connection is closed")
        for piece in framing.pieces(message):
            self._outgoing.put(piece)
        self.bytes_up += len(message) + PREFIX_BYTES

    def receive(self) -> bytes:
        """Wait for one whole message."""
        self._waiting_since = monotonic()
        try:
            message = next(self._messages)
        except StopIteration:
            raise ConnectionLost(f"the server at {self._address} ended the connection") from None
        except grpc.RpcError as error:
            raise self._explain(error) from error
        finally:
            self._waiting_since = None
        self.bytes_down += len(message) + PREFIX_BYTES
        return message

    def _admit(self, beginning: memoryview, length: int) -> None:
        if length > self._max_message:
            raise WireError(f"a reply of {length} bytes exceeds the limit of {self._max_message} bytes")

    def close(self) -> None:
        """End the conversation."""
        if not self._closed.is_set():
            self._closed.set()
            self._outgoing.put(None)
            deadline = monotonic() + _GOODBYE_SECONDS
            while self._call.is_active() and monotonic() < deadline:
                sleep(0.001)
            self._call.cancel()
            self._channel.close()

    def _watch(self) -> None:
        """Break off a wait that takes too long: a deadline of the stream would count from its beginning."""
        while not self._closed.wait(min(1.0, self._timeout / 4)):
            since = self._waiting_since
            if since is not None and monotonic() - since > self._timeout:
                self._late = True
                self._call.cancel()
                return

    def _explain(self, error: grpc.RpcError) -> HESplitError:
        code, details = error.code(), error.details() or ""
        if self._late:
            return ConnectionLost(f"the server sent nothing for {self._timeout:g} seconds")
        if code is grpc.StatusCode.UNAVAILABLE:
            hint = ": it may not accept this client's certificate" if self._tls and self.bytes_down == 0 else ""
            return ConnectionLost(f"the connection to the server at {self._address} was lost{hint} ({details})")
        if code is grpc.StatusCode.CANCELLED:
            return ConnectionLost(f"the server at {self._address} closed the connection")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return WireError(f"a message exceeds the size limit of one side: {details}")
        refused = f"the server refused the connection: {details or code.name}"
        return (ConnectionLost if code is grpc.StatusCode.RESOURCE_EXHAUSTED else ProtocolError)(refused)


def connect(
    address: str,
    *,
    tls: ClientTls | None = None,
    client_id: str = "client",
    insecure: bool = False,
    timeout: float = TIMEOUT,
    max_message: int = MAX_MESSAGE,
) -> GrpcChannel:
    """Connect to a server.

    Parameters
    ----------
    address
        ``"host:port"``.
    tls
        Certificates for mutual TLS; None: no TLS, which takes an address of this machine or ``insecure``.
    client_id
        Who this client says it is, 1 to 64 letters, digits and ``. _ -``; under TLS the name in its certificate counts instead.

    Raises
    ------
    ParameterError
        The address is not of that form, or of another machine without TLS; a client id that is none.
    ConnectionLost
        Nobody answers there, or TLS fails.
    """
    host, port = parse_address(address)
    check_client_id(client_id)
    check_security(host, tls, insecure)
    target = join_address(host, port)
    if tls is None:
        channel = grpc.insecure_channel(target, options=channel_options(max_message, max_message))
    else:
        credentials = grpc.ssl_channel_credentials(tls.authority, tls.private_key, tls.certificate)
        channel = grpc.secure_channel(target, credentials, options=channel_options(max_message, max_message))
    settled = threading.Event()
    found: list[grpc.ChannelConnectivity] = []

    def changed(state: grpc.ChannelConnectivity) -> None:
        if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            found.append(state)
            settled.set()

    channel.subscribe(changed, try_to_connect=True)
    settled.wait(min(timeout, _CONNECT_SECONDS))
    channel.unsubscribe(changed)
    if not found or found[0] is not grpc.ChannelConnectivity.READY:
        channel.close()
        raise ConnectionLost(_why_not(address, host, port, tls is not None))
    return GrpcChannel(channel, client_id, address, tls=tls is not None, timeout=timeout, max_message=max_message)


def _why_not(address: str, host: str, port: int, tls: bool) -> str:
    """GRPC does not say whether nobody listens or TLS failed; a plain connection tells."""
    try:
        socket.create_connection((host, port), timeout=2.0).close()
    except OSError as error:
        return (
            f"cannot connect to {address} ({error.strerror or error}): start the server there first (hesplit-native serve) or check "
            "host and port"
        )
    if tls:
        return (
            f"the server at {address} does not complete the TLS handshake: its certificate is not of this CA or for another name, or "
            "it speaks no TLS"
        )
    return f"the server at {address} does not answer in plain text: it may want TLS (--tls)"
