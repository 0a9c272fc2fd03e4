"""gRPC: the server. One thread reads, writes and answers what is answered quickly; for everything else there are more threads.

A thread to each connection costs a step two to four times as much: threads that hand each other Python's lock between any two calls
of a library have little time left to work. One thread at a time is all that runs Python anyway; native work that takes long enough
to be worth it goes to other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

from hesplit_native.errors import HESplitError, ParameterError, ProtocolError, WireError
from hesplit_native.transport import framing
from hesplit_native.transport.certificates import ServerTls
from hesplit_native.transport.channel import MAX_MESSAGE, ClientInfo
from hesplit_native.transport.grpc import (
    CLIENT_ID,
    METHOD,
    PIECES,
    SERVICE,
    channel_options,
    check_security,
    join_address,
    parse_address,
)
from hesplit_native.transport.in_process import Conversation
from hesplit_native.transport.limits import Bucket, Limits, Roster, Stream

T = TypeVar("T")

_HEALTH, _CHECK = "grpc.health.v1.Health", "Check"
# The standard's messages are protobuf: field 1 of the request is the name of a service, of the reply 1 for SERVING.
_HEALTH_REQUESTS = (b"", b"\x0a\x00", b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode())
_SERVING = b"\x08\x01"
_SPARE_CALLS = 8  # to say no to connections beyond the limit
_LEAST_RATE = 1 << 17  # bytes per second of a long first message
_GOODBYE_SECONDS = 1.0  # for a client to take in that it is not wanted any longer
# gRPC ends a call with an oversized message in the same ways as one that the client ends.
_ENDED = "disconnected (by the client, a lost connection, or a message above the size limit)"


class _Task(asyncio.Task[Any]):
    """A task that knows which one it was made by: gRPC frees a call, and so breaks it off, when that one is cancelled."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, loop: asyncio.AbstractEventLoop, **more: Any) -> None:
        super().__init__(coroutine, loop=loop, **more)
        self.maker = asyncio.current_task(loop)


def _make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **more: Any
) -> _Task:
    return _Task(coroutine, loop=loop, **more)  # type: ignore[arg-type]


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """What all servers of this process run in. It has a thread of its own, to the process's end."""
    import torch

    loop = asyncio.new_event_loop()
    loop.set_task_factory(_make_task)

    def run() -> None:
        torch.set_num_threads(1)  # nothing that is answered here is worth a second one
        loop.run_forever()

    threading.Thread(target=run, name="hesplit-serve", daemon=True).start()
    return loop


def _in_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """What it returns, from another thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result()


async def _check_health(request: bytes, context: Any) -> bytes:
    """Say to load balancers and the like that connections are taken here; who may ask is a matter of TLS."""
    if request not in _HEALTH_REQUESTS:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"the services here are {SERVICE} and the server as a whole")
    return _SERVING


async def _break_off(task: _Task, context: Any, why: str) -> None:
    """End a call that its client may not even listen to."""
    try:
        await asyncio.wait_for(context.abort(grpc.StatusCode.CANCELLED, why), _GOODBYE_SECONDS)
    except asyncio.TimeoutError:
        if task.maker is not None:
            task.maker.cancel()


def _reply(conversation: Conversation, request: bytes) -> bytes | None:
    """The answer to a request; None where it ends the conversation."""
    try:
        return conversation.send(request)
    except StopIteration:
        return None


def _refusal(conversation: Conversation, error: HESplitError) -> bytes | None:
    """What a conversation says of a message that is not let in."""
    try:
        return conversation.throw(error)
    except StopIteration:
        return None


class GrpcServer:
    """Gives every connection a conversation of its own.

    One thread serves all of them and answers requests that are `Allowance.quick`; others are worked on in a thread each, with as many
    threads of torch as the one that makes the server has (`torch.set_num_threads`). Beside them the standard health service
    (``grpc.health.v1.Health/Check``) answers.

    Parameters
    ----------
    address
        ``"host:port"`` to listen on; port 0 lets the system choose (`port` then says which).
    open_conversation
        Called with who connected; the generator is closed when the connection is over.
    tls
        Certificates for mutual TLS: clients without a certificate of the CA are refused.
    shares_port
        Other processes listen on this port, too: the system gives each new connection to one of them (Linux).
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
        shares_port: bool = False,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        import torch

        host, port = parse_address(address)
        check_security(host, tls, insecure)
        self._open = open_conversation
        self._limits = limits = limits or Limits()
        self._on_event = on_event
        self._tls = tls is not None
        self._roster = Roster(limits, by_host=tls is None)
        self._watcher: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Future[None]] = set()
        # OpenMP's setting belongs to a thread: without this, matrix products in a new one take every core.
        self._pool = ThreadPoolExecutor(
            limits.max_clients + _SPARE_CALLS, "hesplit-client", torch.set_num_threads, (torch.get_num_threads(),)
        )
        try:
            self.port: int = _in_loop(self._bind(join_address(host, port), tls, shares_port=shares_port))
        except RuntimeError as error:
            raise ProtocolError(f"cannot listen on {address}: {error}") from error
        if self.port == 0:
            raise ProtocolError(f"cannot listen on {address}: the address is not of this machine, or taken")

    async def _bind(self, target: str, tls: ServerTls | None, *, shares_port: bool) -> int:
        limits = self._limits
        handshake = int(1000 * limits.handshake_seconds)
        options = [
            *channel_options(min(limits.max_message, framing.MAX_PIECE), MAX_MESSAGE),
            ("grpc.so_reuseport", int(shares_port)),
            # Connections that do not get as far as a stream, and more streams in one than a client may have connections.
            ("grpc.server_handshake_timeout_ms", handshake),
            ("grpc.max_connection_idle_ms", handshake),
            ("grpc.max_concurrent_streams", limits.max_connections_per_client),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.max_clients + _SPARE_CALLS)
        handlers = {
            SERVICE: {METHOD: grpc.stream_stream_rpc_method_handler(self._converse)},
            _HEALTH: {_CHECK: grpc.unary_unary_rpc_method_handler(_check_health)},
        }
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(service, methods) for service, methods in handlers.items())
        )
        if tls is None:
            return int(self._server.add_insecure_port(target))
        credentials = grpc.ssl_server_credentials(
            [(tls.private_key, tls.certificate)], tls.authority, require_client_auth=True
        )
        return int(self._server.add_secure_port(target, credentials))

    def start(self) -> None:
        """Begin to take connections."""
        _in_loop(self._start())

    async def _start(self) -> None:
        await self._server.start()
        self._watcher = asyncio.create_task(self._watch())

    def stop(self, grace: float = 0.5) -> None:
        """End all connections; those that are being worked on get `grace` seconds."""
        _in_loop(self._stop(grace))

    async def _stop(self, grace: float) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        await self._server.stop(grace)
        if self._closing:
            await asyncio.wait(self._closing, timeout=grace)
        self._pool.shutdown(wait=False)

    def __enter__(self) -> GrpcServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _watch(self) -> None:
        pause = min(1.0, self._limits.idle_seconds / 4, self._limits.handshake_seconds / 4)
        while True:
            await asyncio.sleep(pause)
            self._roster.end_silent()

    # One connection

    async def _converse(self, requests: object, context: Any) -> None:
        client, limits = await self._client(context), self._limits
        task = asyncio.current_task()
        assert isinstance(task, _Task)
        stream = Stream(
            client,
            task.cancel,
            dict(context.invocation_metadata()).get(PIECES) == "1",
            Bucket(limits.messages_per_second),
            Bucket(limits.bytes_per_second),
            monotonic() + limits.handshake_seconds,
        )
        if not self._roster.enter(stream):
            self._on_event(f"{client.id}: refused: too many connections")
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "the server has as many connections as it takes; try later"
            )
        try:
            await self._talk(stream, context)
        except asyncio.CancelledError:
            if not stream.why:
                raise
        finally:
            if stream.working:  # it counts on
                assert stream.work is not None
                stream.work.add_done_callback(lambda work: self._over(stream))
            else:
                self._over(stream)
        if stream.why:
            await _break_off(task, context, stream.why)

    async def _client(self, context: Any) -> ClientInfo:
        peer = str(context.peer())
        if self._tls:
            names = [name.decode("utf-8", "replace") for name in context.auth_context().get("x509_common_name", [])]
        else:
            names = [str(dict(context.invocation_metadata()).get(CLIENT_ID, "anonymous"))]
        try:
            return ClientInfo(names[0] if len(names) == 1 else "", self._tls, peer)
        except ParameterError as error:
            self._on_event(f"{peer}: refused: {error}")
            source = "the client's certificate must have one common name" if self._tls else "the client must have an id"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{source} by this rule: {error}")
            raise

    async def _talk(self, stream: Stream, context: Any) -> None:
        try:
            conversation = stream.conversation = self._open(stream.client)
            await self._in_thread(stream, next, conversation)
            while not stream.over:
                reply = await self._answer(conversation, stream, context)
                if reply is None:
                    return
                stream.sizes.take(len(reply))
                for piece in framing.pieces(reply) if stream.takes_pieces else (reply,):
                    await context.write(piece)
                    stream.seen = monotonic()
                stream.answered = True
        except HESplitError as error:  # of a conversation that does not say so itself
            stream.over = True
            self._on_event(f"{stream.client.id}: refused: {error}")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (grpc.aio.BaseError, _Gone):
            pass  # the client has gone
        except Exception as error:  # whatever one client causes, the others are served
            stream.over = True
            self._on_event(f"{stream.client.id}: internal error: {error!r}")
            await context.abort(grpc.StatusCode.INTERNAL, "internal error at the server; its log says which")

    async def _answer(self, conversation: Conversation, stream: Stream, context: Any) -> bytes | None:
        """The reply to the next request; None where that is the conversation's end."""
        first = await self._received(stream, context)
        try:
            if stream.client.allowance.quick(first):
                await self._slow_down(stream, len(first))
                reply = _reply(conversation, first)
            else:
                reply = await self._answer_in_thread(conversation, first, stream, context)
        except HESplitError as error:  # a message that is not let in
            reply = await self._in_thread(stream, _refusal, conversation, error)
            stream.over = True
        if reply is None:
            stream.over = True
        return reply

    async def _answer_in_thread(
        self, conversation: Conversation, first: bytes, stream: Stream, context: Any
    ) -> bytes | None:
        beginning, length = framing.opening(first)
        if len(beginning) == len(first):  # it came as it is
            await self._slow_down(stream, length)
            return await self._in_thread(stream, self._admit_and_reply, stream, conversation, first)
        dropped = await self._in_thread(stream, self._admit, stream, beginning, length)
        parts = framing.Parts(beginning, length, wanted=not dropped)
        while parts.missing:
            parts.add(await self._received(stream, context))
        request = parts.whole()
        del parts, first, beginning
        await self._slow_down(stream, length)
        return await self._in_thread(stream, _reply, conversation, request)

    async def _received(self, stream: Stream, context: Any) -> bytes:
        """The next piece that the client sends."""
        received: bytes = await context.read()
        if received is grpc.aio.EOF:
            raise _Gone
        stream.seen = monotonic()
        return received

    def _admit(self, stream: Stream, beginning: memoryview, length: int) -> bool | None:
        if length > self._limits.max_message:
            raise WireError(
                f"a message of {length} bytes is above the size limit of this server, {self._limits.max_message} bytes"
            )
        dropped = stream.client.allowance.admit(beginning, length)
        stream.deadline += length / _LEAST_RATE
        return dropped

    def _admit_and_reply(self, stream: Stream, conversation: Conversation, request: bytes) -> bytes | None:
        self._admit(stream, memoryview(request), len(request))
        return _reply(conversation, request)

    async def _slow_down(self, stream: Stream, length: int) -> None:
        """Wait where the client is faster than it may be."""
        wait = max(stream.counts.take(1), stream.sizes.take(length))
        if wait:
            await asyncio.sleep(min(wait, self._limits.idle_seconds))

    async def _in_thread(self, stream: Stream, work: Callable[..., T], *arguments: object) -> T:
        """What a thread finds out; it goes on to the end, whatever becomes of the connection."""
        found: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments))
        stream.work = found
        return await asyncio.shield(found)

    def _over(self, stream: Stream) -> None:
        """Free what a connection held."""
        self._roster.leave(stream)
        if stream.work is not None and not stream.work.cancelled():
            stream.work.exception()  # which nobody waits for any more
            stream.work = None
        if stream.why:
            self._on_event(f"{stream.client.id}: disconnected ({stream.why})")
        elif not stream.over:
            self._on_event(f"{stream.client.id}: {_ENDED}")
        if stream.conversation is not None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                closing = asyncio.get_running_loop().run_in_executor(self._pool, stream.conversation.close)
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)


class _Gone(Exception):
    """The client has nothing more to say."""
