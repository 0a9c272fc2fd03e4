"""What clients may take of a server's connections and of its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from hesplit_native.transport.channel import MAX_MESSAGE, TIMEOUT, ClientInfo
from hesplit_native.transport.in_process import Conversation

_HASTE_SECONDS = 2.0  # that every connection has for its handshake, however many others wait


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


class Bucket:
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
class Stream:
    """One connection."""

    client: ClientInfo
    cancel: Callable[[], object]
    takes_pieces: bool
    counts: Bucket
    sizes: Bucket
    deadline: float  # of the handshake
    began: float = field(default_factory=monotonic)
    seen: float = field(default_factory=monotonic)
    answered: bool = False
    work: asyncio.Future[Any] | None = None  # what a thread does for it
    why: str = ""  # the server ended it
    over: bool = False  # ended as it should, or said why not
    conversation: Conversation | None = None

    @property
    def mute(self) -> bool:
        """Not through its handshake yet."""
        settled = self.client.allowance.settled
        return not (self.answered if settled is None else settled)

    @property
    def working(self) -> bool:
        """Whether a thread is at work for it; that must come to its end before anything else can."""
        return self.work is not None and not self.work.done()

    @property
    def host(self) -> str:
        """The machine at the other end."""
        return self.client.peer.rpartition(":")[0]

    def end(self, why: str) -> None:
        """Break the connection off."""
        self.why = why
        self.cancel()


class Roster:
    """The connections that there are, as `limits` allow them.

    Parameters
    ----------
    by_host
        Connections of one machine together are limited, too: without TLS an id is what a client says it is; the machine that it comes
        from is harder to choose.
    """

    def __init__(self, limits: Limits, *, by_host: bool) -> None:
        self.streams: list[Stream] = []
        self._limits = limits
        self._by_host = by_host

    def enter(self, stream: Stream) -> bool:
        """Count a connection, and make room for it among those that have not said anything yet; whether there is any."""
        limits, everyone = self._limits, self.streams
        same = [other for other in everyone if other.client.id == stream.client.id]
        near = [other for other in everyone if other.host == stream.host] if self._by_host else []
        leaving: list[Stream] = []
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
            self.leave(other)
            other.end("others waited, and it had not said anything yet")
        self.streams.append(stream)
        return True

    def leave(self, stream: Stream) -> None:
        """Count it no longer."""
        if stream in self.streams:
            self.streams.remove(stream)

    def end_silent(self) -> None:
        """End the connections that are silent for too long, and those that do not get through their handshake."""
        limits, now = self._limits, monotonic()
        for stream in list(self.streams):
            if stream.working or stream.why:
                continue
            if now - stream.seen > limits.idle_seconds:
                stream.end(f"nothing for {limits.idle_seconds:g} seconds")
            elif stream.mute and now > stream.deadline:
                stream.end(f"no handshake within {limits.handshake_seconds:g} seconds")
