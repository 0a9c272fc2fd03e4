"""gRPC: whole messages over one bidirectional stream per connection, with mutual TLS.

The protocols' messages are the payload, as bytes: there is no other schema; long ones travel in pieces (`framing`). Without TLS only
connections within one machine are made, unless asked otherwise.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import grpc

from hesplit_native.errors import ConnectionLost, HESplitError, ParameterError, ProtocolError, WireError
from hesplit_native.transport import framing
from hesplit_native.transport.certificates import ClientTls, ServerTls, check_client_id
from hesplit_native.transport.channel import MAX_MESSAGE, PREFIX_BYTES, ClientInfo
from hesplit_native.transport.hosts import normal_host
from hesplit_native.transport.in_process import Conversation

#: Seconds without an answer after which a peer counts as gone.
TIMEOUT = 300.0

_SERVICE, _METHOD = "hesplit_native.Split", "Converse"
_HEALTH, _CHECK = "grpc.health.v1.Health", "Check"
# The standard's messages are protobuf: field 1 of the request is the name of a service, of the reply 1 for SERVING.
_HEALTH_REQUESTS = (b"", b"\x0a\x00", b"\x0a" + bytes([len(_SERVICE)]) + _SERVICE.encode())
_SERVING = b"\x08\x01"
_CONNECT_SECONDS = 10.0
_GOODBYE_SECONDS = 0.25  # for a server to notice that the client has nothing more to say
_CLIENT_ID = "client-id"
_PIECES = "takes-pieces"  # says a client that can put long messages together
_SPARE_THREADS = 8  # that say no to connections beyond the limit
_HASTE_SECONDS = 2.0  # that every connection has for its handshake, however many others wait
_LEAST_RATE = 1 << 17  # bytes per second of a long first message
# gRPC ends a call with an oversized message in the same ways as one that the client ends.
_ENDED = "disconnected (by the client, a lost connection, or a message above the size limit)"


def _options(max_received: int, max_sent: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", max_sent),
        ("grpc.max_receive_message_length", max_received),
        ("grpc.enable_http_proxy", 0),
        ("grpc.so_reuseport", 0),
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


def _check_security(host: str, tls: object, insecure: bool) -> None:
    if tls is None and not insecure and not _is_loopback(host):
        raise ParameterError(
            f"{host} is another machine: give certificates (--tls, made by `hesplit-native certs`), or accept that anyone on the "
            "way can read and change everything with --insecure"
        )


# The client


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
        stream = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")
        self._call = stream(iter(self._outgoing.get, None), metadata=((_CLIENT_ID, client_id), (_PIECES, "1")))
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
    _check_security(host, tls, insecure)
    target = join_address(host, port)
    if tls is None:
        channel = grpc.insecure_channel(target, options=_options(max_message, max_message))
    else:
        credentials = grpc.ssl_channel_credentials(tls.authority, tls.private_key, tls.certificate)
        channel = grpc.secure_channel(target, credentials, options=_options(max_message, max_message))
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


# The server


@dataclass(frozen=True)
class Limits:
    """What one client may take of a server.

    A client that is faster than `messages_per_second` or `bytes_per_second` (over some seconds, replies counted) is slowed down to
    them. A connection must be through its handshake within `handshake_seconds`; while it is not it is mute: where there are too many
    connections, or too many mute ones of a client, the oldest mute one makes room, if it has had two seconds.
    """

    max_message: int = MAX_MESSAGE
    messages_per_second: float = 20_000.0
    bytes_per_second: float = 1e9
    idle_seconds: float = TIMEOUT
    handshake_seconds: float = 10.0
    max_clients: int = 32
    max_connections_per_client: int = 16
    max_mute_per_client: int = 8


def _check_health(request: bytes, context: Any) -> bytes:
    """Say to load balancers and the like that connections are taken here; who may ask is a matter of TLS."""
    if request not in _HEALTH_REQUESTS:
        context.abort(grpc.StatusCode.NOT_FOUND, f"the services here are {_SERVICE} and the server as a whole")
    return _SERVING


def _close(conversation: Conversation) -> None:
    """End a conversation; one that is at work in another thread, or being closed there, is closed by that one."""
    with contextlib.suppress(ValueError):
        conversation.close()


class _Bucket:
    """A token bucket that holds a few seconds' worth."""

    _SECONDS = 5.0

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self.level = per_second * self._SECONDS
        self.at = monotonic()

    def take(self, amount: float) -> float:
        """Seconds to wait before going on."""
        now = monotonic()
        self.level = min(self.per_second * self._SECONDS, self.level + (now - self.at) * self.per_second)
        self.at = now
        self.level -= amount
        return max(0.0, -self.level / self.per_second)


@dataclass(eq=False)
class _Stream:
    client: ClientInfo
    cancel: Callable[[], object]
    takes_pieces: bool
    began: float
    seen: float
    deadline: float  # of the handshake
    answered: bool = False
    working: bool = False
    gone: bool = False  # nobody waits for an answer any more
    why: str = ""  # the server ended it
    over: bool = False  # ended as it should, or said why not
    conversation: Conversation | None = None

    @property
    def mute(self) -> bool:
        """Not through its handshake yet."""
        settled = self.client.allowance.settled
        return not (self.answered if settled is None else settled)

    @property
    def host(self) -> str:
        """The machine at the other end."""
        return self.client.peer.rpartition(":")[0]


class GrpcServer:
    """Gives every connection a conversation of its own, in a thread of its own.

    These threads compute with as many threads of torch as the one that makes the server (`torch.set_num_threads`). Beside them the
    standard health service (``grpc.health.v1.Health/Check``) answers.

    Parameters
    ----------
    address
        ``"host:port"`` to listen on; port 0 lets the system choose (`port` then says which).
    open_conversation
        Called with who connected; the generator is closed when the connection is over.
    tls
        Certificates for mutual TLS: clients without a certificate of the CA are refused.
    on_event
        Called with a line for the log.
    """

    def __init__(
        self,
        address: str,
        open_conversation: Callable[[ClientInfo], Conversation],
        *,
        tls: ServerTls | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        import torch

        host, port = parse_address(address)
        _check_security(host, tls, insecure)
        self._open = open_conversation
        self._limits = limits = limits or Limits()
        self._on_event = on_event
        self._tls = tls is not None
        self._by_id: dict[int, _Stream] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        # OpenMP's setting belongs to a thread: without this, matrix products in a new one take every core.
        pool = ThreadPoolExecutor(
            limits.max_clients + _SPARE_THREADS, "hesplit-client", torch.set_num_threads, (torch.get_num_threads(),)
        )
        options = _options(min(limits.max_message, framing.MAX_PIECE), MAX_MESSAGE)
        handshake = int(1000 * limits.handshake_seconds)
        options += [
            # Connections that do not get as far as a stream, and more streams in one than a client may have connections.
            ("grpc.server_handshake_timeout_ms", handshake),
            ("grpc.max_connection_idle_ms", handshake),
            ("grpc.max_concurrent_streams", limits.max_connections_per_client),
        ]
        self._server = grpc.server(pool, options=options, maximum_concurrent_rpcs=limits.max_clients + _SPARE_THREADS)
        handlers = {
            _SERVICE: {_METHOD: grpc.stream_stream_rpc_method_handler(self._converse)},
            _HEALTH: {_CHECK: grpc.unary_unary_rpc_method_handler(_check_health)},
        }
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(service, methods) for service, methods in handlers.items())
        )
        target = join_address(host, port)
        try:
            if tls is None:
                self.port: int = self._server.add_insecure_port(target)
            else:
                credentials = grpc.ssl_server_credentials(
                    [(tls.private_key, tls.certificate)], tls.authority, require_client_auth=True
                )
                self.port = self._server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise ProtocolError(f"cannot listen on {address}: {error}") from error
        if self.port == 0:
            raise ProtocolError(f"cannot listen on {address}: the address is not of this machine, or taken")

    def start(self) -> None:
        """Begin to take connections."""
        self._server.start()
        threading.Thread(target=self._watch, name="hesplit-watch", daemon=True).start()

    def stop(self, grace: float = 0.5) -> None:
        """End all connections; those that are being worked on get `grace` seconds."""
        self._stopped.set()
        self._server.stop(grace).wait()

    def __enter__(self) -> GrpcServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _client(self, context: Any) -> ClientInfo:
        peer = str(context.peer())
        if self._tls:
            names = [name.decode("utf-8", "replace") for name in context.auth_context().get("x509_common_name", [])]
        else:
            names = [str(dict(context.invocation_metadata()).get(_CLIENT_ID, "anonymous"))]
        try:
            return ClientInfo(names[0] if len(names) == 1 else "", self._tls, peer)
        except ParameterError as error:
            self._on_event(f"{peer}: refused: {error}")
            source = "the client's certificate must have one common name" if self._tls else "the client must have an id"
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{source} by this rule: {error}")
            raise

    def _converse(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        client, now = self._client(context), monotonic()
        takes_pieces = dict(context.invocation_metadata()).get(_PIECES) == "1"
        stream = _Stream(client, context.cancel, takes_pieces, now, now, now + self._limits.handshake_seconds)
        if not self._enter(stream):
            self._on_event(f"{client.id}: refused: too many connections")
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "the server has as many connections as it takes; try later"
            )
        # gRPC drops the generator of a call that breaks, sometimes before its first step: only this is always called.
        if not context.add_callback(lambda: self._left(stream)):
            self._left(stream)
        return self._talk(requests, stream, context)

    def _enter(self, stream: _Stream) -> bool:
        """Count a connection, and make room for it among those that have not said anything yet."""
        limits = self._limits
        with self._lock:
            everyone = list(self._by_id.values())
            same = [other for other in everyone if other.client.id == stream.client.id]
            # Without TLS an id is what a client says it is; the machine that it comes from is harder to choose.
            near = [] if self._tls else [other for other in everyone if other.host == stream.host]
            leaving: list[_Stream] = []
            for group, most, most_mute in (
                (same, limits.max_connections_per_client, limits.max_mute_per_client),
                (near, limits.max_clients, limits.max_clients // 2),
                (everyone, limits.max_clients, limits.max_clients),
            ):
                staying = [other for other in group if other not in leaving]
                mute = [other for other in staying if other.mute and not other.working]
                if len(staying) < most and len(mute) < most_mute:
                    continue
                oldest = min(mute, key=lambda other: other.began, default=None)
                if oldest is not None and stream.began - oldest.began > _HASTE_SECONDS:
                    leaving.append(oldest)
                elif group is not near:
                    return False
            for other in leaving:
                other.why = "others waited, and it had not said anything yet"
                del self._by_id[id(other)]
            self._by_id[id(stream)] = stream
        for other in leaving:
            self._end(other)
        return True

    def _end(self, stream: _Stream) -> None:
        with contextlib.suppress(Exception):
            stream.cancel()

    def _left(self, stream: _Stream) -> None:
        """The connection is gone; while its thread is at work it counts on."""
        with self._lock:
            stream.gone = True
            working = stream.working
        if not working:
            self._over(stream)

    def _over(self, stream: _Stream) -> None:
        """Free what a connection held; at most once."""
        with self._lock:
            known = self._by_id.pop(id(stream), None) is not None
            if stream.over and not known:
                return
            said, stream.over = stream.over, True
        if stream.why:
            self._on_event(f"{stream.client.id}: disconnected ({stream.why})")
        elif not said:
            self._on_event(f"{stream.client.id}: {_ENDED}")
        if stream.conversation is not None:
            _close(stream.conversation)

    def _talk(self, requests: Iterator[bytes], stream: _Stream, context: Any) -> Iterator[bytes]:
        conversation = self._open(stream.client)
        try:
            next(conversation)
            stream.conversation = conversation  # from here on `_left` may close it, unless it is at work
            for reply in self._exchange(conversation, self._received(requests, stream), stream):
                for piece in framing.pieces(reply) if stream.takes_pieces else (reply,):
                    yield piece
                    stream.seen = monotonic()
        except HESplitError as error:  # of a conversation that does not say so itself
            stream.over = True
            self._on_event(f"{stream.client.id}: refused: {error}")
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception as error:  # whatever one client causes, the others are served
            stream.over = True
            self._on_event(f"{stream.client.id}: internal error: {error!r}")
            context.abort(grpc.StatusCode.INTERNAL, "internal error at the server; its log says which")
        finally:
            _close(conversation)
            with self._lock:
                stream.working, gone = False, stream.gone
            if gone:
                self._over(stream)

    def _exchange(self, conversation: Conversation, requests: Iterator[bytes], stream: _Stream) -> Iterator[bytes]:
        counts, sizes = _Bucket(self._limits.messages_per_second), _Bucket(self._limits.bytes_per_second)
        whole = framing.messages(requests, partial(self._admit, stream))
        while True:
            try:
                request = next(whole, None)
                if request is None:
                    return
                self._wait(stream, max(counts.take(1), sizes.take(len(request))))
                if not self._begin(stream):
                    return
                reply = conversation.send(request)
                del request  # not to be kept while the client is silent
            except StopIteration:
                stream.over = True
                return
            except HESplitError as error:  # a message that is not let in
                if not self._begin(stream):
                    return
                refusal = conversation.throw(error)
                with self._lock:
                    stream.working = False  # who does not take it in is silent
                yield refusal
                stream.over = True
                return
            sizes.take(len(reply))
            with self._lock:
                stream.working, stream.answered, stream.seen = False, True, monotonic()
            if stream.gone:
                return
            yield reply

    def _admit(self, stream: _Stream, beginning: memoryview, length: int) -> bool | None:
        if length > self._limits.max_message:
            raise WireError(
                f"a message of {length} bytes is above the size limit of this server, {self._limits.max_message} bytes"
            )
        dropped = stream.client.allowance.admit(beginning, length)
        stream.deadline += length / _LEAST_RATE
        return dropped

    def _begin(self, stream: _Stream) -> bool:
        """Whether the conversation is still to be given anything: its client is there, and it is not closed meanwhile."""
        with self._lock:
            stream.working = not stream.gone and not stream.why
            return stream.working

    def _wait(self, stream: _Stream, seconds: float) -> None:
        until = monotonic() + min(seconds, self._limits.idle_seconds)
        while not stream.gone and monotonic() < until:
            sleep(min(0.1, max(0.0, until - monotonic())))

    def _received(self, requests: Iterator[bytes], stream: _Stream) -> Iterator[bytes]:
        """What the client sends; ends when the client does, however that happens."""
        while True:
            try:
                request = next(requests)
            except Exception:  # StopIteration, or the bare Exceptions that the iterator raises when a stream breaks
                return
            stream.seen = monotonic()
            yield request

    def _watch(self) -> None:
        """End the connections that are silent for too long, and those that do not get through their handshake."""
        limits = self._limits
        pause = min(1.0, limits.idle_seconds / 4, limits.handshake_seconds / 4)
        while not self._stopped.wait(pause):
            now = monotonic()
            with self._lock:
                ended = []
                for stream in self._by_id.values():
                    if stream.working or stream.why:
                        continue
                    if now - stream.seen > limits.idle_seconds:
                        stream.why = f"nothing for {limits.idle_seconds:g} seconds"
                        ended.append(stream)
                    elif stream.mute and now > stream.deadline:
                        stream.why = f"no handshake within {limits.handshake_seconds:g} seconds"
                        ended.append(stream)
            for stream in ended:
                self._end(stream)
