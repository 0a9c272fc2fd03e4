"""Several servers, any of which can answer any request: channels to them, and requests that are sent until one is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakSet

from hesplit_native.errors import ConnectionLost, HESplitError, ProtocolError
from hesplit_native.protocols import messages
from hesplit_native.protocols.frozen_messages import take_refusal
from hesplit_native.protocols.messages import NO_SESSION, Message, MessageType
from hesplit_native.transport.channel import Channel

#: Requests that are under way at the same time; more wait.
_LINES = 8


@dataclass(eq=False)
class Introduction:
    """What a server must have been told over a channel, once, before it answers a request there."""

    kind: MessageType
    expected: MessageType
    parts: tuple[bytes, ...]


@dataclass(eq=False)
class _Line:
    """One channel, the number of its next request, and what was said there."""

    channel: Channel
    step: int = 0
    introduced: WeakSet[Introduction] = field(default_factory=WeakSet)


@dataclass(eq=False)
class _Replica:
    """One server: how it is reached, and channels to it that wait for something to do."""

    name: str
    open: Callable[[], Channel]
    idle: list[_Line] = field(default_factory=list)


class Replicas:
    """Sends requests that refer to nothing earlier, or to an `Introduction` of their channel, over as many channels as are needed.

    Safe to use from several threads.

    Parameters
    ----------
    replicas
        The servers: what each is called in errors, and what opens a channel to it.
    """

    def __init__(self, replicas: Sequence[tuple[str, Callable[[], Channel]]]) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self._replicas = [_Replica(name, open_one) for name, open_one in replicas]
        self._present = 0
        self._lock = threading.Lock()
        self._lines = threading.Semaphore(_LINES)
        self._closed = False

    @property
    def present(self) -> str:
        """Where requests go at present."""
        return self._replicas[self._present].name

    def close(self) -> None:
        """Leave the servers, for good."""
        with self._lock:
            self._closed = True
            idle = [line for replica in self._replicas for line in replica.idle]
            for replica in self._replicas:
                replica.idle = []
        for line in idle:
            self._leave(line)

    def exchange(
        self,
        kind: MessageType,
        expected: MessageType,
        *parts: bytes,
        patience: float,
        after: Introduction | None = None,
    ) -> memoryview:
        """Send a request, after what must come first, until somebody answers it, for so many seconds; the body of the reply."""
        deadline = time.monotonic() + patience
        failures, pause = 0, 0.05
        while True:
            present = self._present
            try:
                return self._ask(self._replicas[present], after, kind, expected, parts)
            except _Later as busy:
                reason: HESplitError = busy.reason
            except ConnectionLost as error:
                reason = error
            self._present = (present + 1) % len(self._replicas)
            failures += 1
            if failures < len(self._replicas):
                continue
            if time.monotonic() + pause > deadline:
                raise self._given_up(reason) from reason
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _given_up(self, reason: HESplitError) -> HESplitError:
        if not isinstance(reason, ConnectionLost):
            return reason
        names = ", ".join(replica.name for replica in self._replicas)
        return ConnectionLost(f"no answer from {names}: {reason}")

    def _ask(
        self,
        replica: _Replica,
        after: Introduction | None,
        kind: MessageType,
        expected: MessageType,
        parts: tuple[bytes, ...],
    ) -> memoryview:
        with self._line(replica) as line:
            reply: Message | None = None
            if after is not None and after not in line.introduced:
                reply = _say(replica, line, after.kind, after.expected, after.parts)
                if reply.type is not MessageType.REFUSED:
                    line.introduced.add(after)
                    reply = None
            reply = reply or _say(replica, line, kind, expected, parts)
        if reply.type is MessageType.REFUSED:
            error, later = take_refusal(reply.body)
            raise (_Later(error) if later else error)
        return reply.body

    @contextmanager
    def _line(self, replica: _Replica) -> Iterator[_Line]:
        """A channel for one request; it is closed where that fails."""
        if self._closed:
            raise ProtocolError("this connection was closed")
        with self._lines:
            with self._lock:
                line = replica.idle.pop() if replica.idle else None
            line = line or _Line(replica.open())
            up, down = line.channel.bytes_up, line.channel.bytes_down
            try:
                yield line
            except BaseException:
                line.channel.close()
                with self._lock:
                    broken, replica.idle = replica.idle, []  # opened before it, to a server that may be gone
                for other in broken:
                    other.channel.close()
                raise
            finally:
                with self._lock:
                    self.bytes_up += line.channel.bytes_up - up
                    self.bytes_down += line.channel.bytes_down - down
            self._give_back(replica, line)

    def _give_back(self, replica: _Replica, line: _Line) -> None:
        with self._lock:
            if not self._closed:
                replica.idle.append(line)
                return
        self._leave(line)

    def _leave(self, line: _Line) -> None:
        try:
            line.channel.send(messages.pack(MessageType.END, line.step, NO_SESSION))
            line.channel.receive()
        except HESplitError:
            pass  # it was the last message
        line.channel.close()


def _say(replica: _Replica, line: _Line, kind: MessageType, expected: MessageType, parts: tuple[bytes, ...]) -> Message:
    """The reply to one message; ProtocolError for one that is neither what is expected nor a REFUSED."""
    line.channel.send(messages.pack(kind, line.step, NO_SESSION, *parts))
    reply = messages.unpack(line.channel.receive())
    if reply.type is MessageType.ERROR:
        raise ProtocolError(f"{replica.name}: {messages.take_text(reply.body, 'error')[0]}")
    if reply.step != line.step or reply.type not in (expected, MessageType.REFUSED):
        raise ProtocolError(
            f"{replica.name}: expected {expected.name} for request {line.step}, got {reply.type.name} for {reply.step}"
        )
    line.step += 1
    return reply


class _Later(Exception):
    """A server that is busy at the moment."""

    def __init__(self, reason: HESplitError) -> None:
        super().__init__(str(reason))
        self.reason = reason
