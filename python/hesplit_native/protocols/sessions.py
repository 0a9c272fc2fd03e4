"""The sessions that a server keeps, the layers that groups share, and the memory that both take."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import cast

from torch import Tensor

from hesplit_native.errors import BudgetError, ProtocolError
from hesplit_native.protocols.answers import Answer, Answers, ServerLayer, Stored
from hesplit_native.protocols.budget import Budget, Hold, mebibytes
from hesplit_native.protocols.costs import SessionCosts, Work
from hesplit_native.protocols.messages import Message, MessageType
from hesplit_native.protocols.storage import CheckpointStore
from hesplit_native.protocols.terms import Terms

#: Sessions without a message for that many seconds are forgotten, and a client's oldest beyond that many, so that it cannot crowd
#: out the others.
RESUME_SECONDS = 900.0
MAX_SESSIONS_PER_CLIENT = 16
#: Another client's session is given up for want of memory only when its connection has been gone for that many seconds.
GRACE_SECONDS = 60.0


@dataclass(eq=False)
class Group:
    """Participants that train one layer in turns, or average their layers.

    In turns the changes of the layer are counted: `updates` says which was a run's last one, `marks` at which its checkpoints were.
    """

    terms: Terms
    layer: ServerLayer
    hold: Hold
    offers: dict[str, tuple[float, dict[str, Tensor]]] = field(default_factory=dict)  # by run
    average: dict[str, Tensor] | None = None
    changes: int = 0
    updates: dict[str, int] = field(default_factory=dict)  # by run
    marks: dict[tuple[str, int], int] = field(default_factory=dict)  # by run and step
    seen: float = field(default_factory=monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def trained(self, run: str) -> None:
        """A member has changed the layer."""
        self.changes += 1
        self.updates[run] = self.changes

    def went_back(self, run: str, step: int) -> None:
        """A member goes on from its checkpoint of that step."""
        self.offers.pop(run, None)  # made from a state that is no longer
        self.updates.pop(run, None)
        self.changes += 1
        self.marks = {key: mark for key, mark in self.marks.items() if key[0] != run} | {(run, step): self.changes}

    def changed_by_others(self, run: str, step: int) -> bool:
        """Whether other members have trained since this run's checkpoint of that step."""
        mark = self.marks.get((run, step), 0)
        return any(change > mark for other, change in self.updates.items() if other != run)


def check_same_group(ours: Terms, theirs: Terms) -> None:
    """ProtocolError naming the first of the terms that all members share on which two differ."""
    for name in ("protocol", "in_features", "out_features", "classes", "hidden", "weight_seed", "layer", "members"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ProtocolError(f"handshake: the group agreed on another {name}")


@dataclass(eq=False)
class SessionState:
    """One session: what was agreed on, the layer, what the next message must be, and what it takes."""

    client: str
    run: str
    nonce: bytes
    terms: Terms
    protocol: Answers
    layer: ServerLayer | None  # None: nothing here is in the clear
    costs: SessionCosts
    hold: Hold
    group: Group | None = None
    expected: int = 1
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    last: tuple[bytes, bytes] = (b"", b"")  # the last request and its reply
    may_repeat: bool = False
    owner: object = None  # the connection that it goes on over
    kept: int = 0  # bytes that stay of the last request's work
    refused: int = 0  # requests, while the session went on
    seen: float = field(default_factory=monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def expects(self, request: Message, owner: object) -> bool:
        """Whether this is the request that comes next, over the connection that the session goes on over."""
        return self.owner is owner and (request.session, request.step) == (self.nonce, self.expected)

    def turn(self) -> AbstractContextManager[object]:
        """To be entered for work on the layer: members that share one must not meet on it."""
        shared = self.group is not None and not self.terms.members
        return self.group.lock if self.group is not None and shared else nullcontext()

    def taken(self, more: int) -> int:
        """What this session takes in all with `more` bytes for the present request, beside the last one and what stays of it."""
        last = len(self.last[0]) + len(self.last[1])
        return self.costs.layer + max(self.costs.reserve, last + self.kept + more)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return cast(Stored, self.layer or self.protocol).tensors()


class _Over:
    """What is left of a session that has come to its end."""

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """None."""
        return Work(0)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """Nothing is answered any more."""
        raise ProtocolError(f"{kind.name} came after the session's end")


class Sessions:
    """Every session of a server, within its budget. Safe to use from several threads.

    Parameters
    ----------
    budget
        What all sessions and connections may take.
    store
        Where checkpoints are; those in memory last as long as their session can be resumed.
    on_event
        Called with a line for the log.
    """

    def __init__(self, budget: Budget, store: CheckpointStore, on_event: Callable[[str], None]) -> None:
        self.budget = budget
        self.by_nonce: OrderedDict[bytes, SessionState] = OrderedDict()
        self.ended: OrderedDict[bytes, SessionState] = OrderedDict()
        self._store = store
        self._on_event = on_event
        self._groups: dict[str, Group] = {}
        self._lock = threading.RLock()

    # Memory

    def resize(self, hold: Hold, amount: int) -> None:
        """Hold so many bytes, for which sessions that nobody is connected to are given up; BudgetError if that is not enough."""
        while True:
            try:
                hold.resize(amount)
            except BudgetError:
                if not self._give_up_one(hold.client, amount - hold.amount):
                    raise
            else:
                return

    def _give_up_one(self, client: str, more: int) -> bool:
        """Forget the oldest thing that nobody is connected to: of this client, then, where all memory is taken, of others."""
        with self._lock:
            if self._give_up_one_of(lambda other, seen: other == client):
                return True
            if self.budget.held_by(client) + more > self.budget.per_client:
                return False  # the others could not help
            before = monotonic() - GRACE_SECONDS
            return self._give_up_one_of(lambda other, seen: seen < before)

    def _give_up_one_of(self, willing: Callable[[str, float], bool]) -> bool:
        waiting = [session for session in self.by_nonce.values() if session.owner is None]
        found = [session for session in waiting if willing(session.client, session.seen)]
        if found:
            oldest = min(found, key=lambda session: session.seen)
            self._on_event(f"{oldest.client}: run {oldest.run[:8]} was given up for memory")
            self._forget(oldest)
            self._store.drop(oldest.run)
            return True
        if self._store.drop_oldest(willing, {session.run for session in self.by_nonce.values()}):
            return True
        for name, group in self._groups.items():
            if not self._has_members(group) and willing(group.hold.client, group.seen):
                self._drop_group(name)
                return True
        return False

    # Sessions

    def add(self, session: SessionState) -> None:
        """Keep a session; the client's oldest ones beyond MAX_SESSIONS_PER_CLIENT go, those without a connection first."""
        with self._lock:
            same = [other for other in self.by_nonce.values() if other.client == session.client]
            same.sort(key=lambda other: (other.owner is not None, other.seen))
            for other in same[: max(0, len(same) + 1 - MAX_SESSIONS_PER_CLIENT)]:
                self._forget(other)
                self._store.drop(other.run)
            self.by_nonce[session.nonce] = session
        self.forget_old()

    def find(self, run: str, nonce: str, client: str) -> SessionState | None:
        """A client's session, also one that has ended and may be asked for its last reply once more."""
        with self._lock:
            for session in (*self.by_nonce.values(), *self.ended.values()):
                if session.nonce.hex() == nonce and session.run == run and session.client == client:
                    return session
        return None

    def forget(self, session: SessionState) -> None:
        """Let go of a session, of all but its checkpoints."""
        with self._lock:
            self._forget(session)

    def forget_run(self, run: str, client: str) -> dict[str, float]:
        """Let go of a client's sessions of a run, because it goes on from a checkpoint; the seconds that they took, by phase."""
        seconds: dict[str, float] = {}
        with self._lock:
            for session in [s for s in self.by_nonce.values() if s.run == run and s.client == client]:
                self._forget(session)
                for phase, spent in session.seconds.items():
                    seconds[phase] = seconds.get(phase, 0.0) + spent
        return seconds

    def end(self, session: SessionState) -> None:
        """Let go of a session that has come to its end, and of its checkpoints in memory; its last reply can be repeated.

        Those that other members of its group may go on from stay for as long as the session could have been resumed.
        """
        with self._lock:
            self._forget(session)
            self._store.finish(session.run, shared=bool(session.terms.members))
            session.protocol, session.layer, session.group = _Over(), None, None
            self.ended[session.nonce] = session
            same = [other for other in self.ended.values() if other.client == session.client]
            for other in same[:-MAX_SESSIONS_PER_CLIENT]:
                del self.ended[other.nonce]

    def disconnect(self, session: SessionState, owner: object) -> None:
        """A connection is over; the session stays for a while, unless it goes on over another one already."""
        with self._lock:
            if session.owner is owner:
                session.owner = None
                session.hold.resize(session.taken(0))  # a message that did not come to its end is no more
                session.seen = monotonic()

    def forget_old(self) -> None:
        """Let go of what nobody has come back for."""
        now = monotonic()
        with self._lock:
            for session in list(self.by_nonce.values()):
                if now - session.seen > RESUME_SECONDS:
                    self._on_event(f"{session.client}: run {session.run[:8]} was forgotten: nobody came back for it")
                    self._forget(session)
            for nonce, session in list(self.ended.items()):
                if now - session.seen > RESUME_SECONDS:
                    del self.ended[nonce]
            self._store.forget_old(RESUME_SECONDS, {session.run for session in self.by_nonce.values()})
            # A group lasts as long as one of its members is there, and long enough for them to come.
            for name, group in list(self._groups.items()):
                if not self._has_members(group) and now - group.seen > RESUME_SECONDS:
                    self._drop_group(name)

    def usage(self) -> str:
        """Memory that is taken, for the log."""
        return f"{mebibytes(self.budget.held)} of {mebibytes(self.budget.total)} taken"

    def _forget(self, session: SessionState) -> None:
        self.by_nonce.pop(session.nonce, None)
        session.hold.release()
        group = session.group
        if group is not None:
            group.offers.pop(session.run, None)
            group.seen = monotonic()
            if not self._has_members(group) and self._groups.get(session.terms.group) is not group:
                group.hold.release()
        self._store.forget_empty(session.run)

    # Groups

    def join(self, client: str, terms: Terms, make: Callable[[], ServerLayer], size: int) -> Group:
        """The group that these terms name, with a layer of `size` bytes if it is new; ProtocolError if it agreed on others."""
        with self._lock:
            group = self._groups.get(terms.group)
            if group is None:
                group = self._groups[terms.group] = self._new_group(client, terms, make, size)
            group.seen = monotonic()
        check_same_group(group.terms, terms)
        return group

    def rejoin(
        self, group: Group, client: str, run: str, step: int, make: Callable[[], ServerLayer], size: int
    ) -> Group:
        """The group for a member that goes on from its checkpoint of that step.

        Where others have trained the layer since, the member begins another one, for all who go on from checkpoints too; those who
        do not keep theirs, which one member's checkpoint must not take back.
        """
        with self._lock:
            if not group.changed_by_others(run, step):
                return group
            self._on_event(
                f"{client}: run {run[:8]} goes on from step {step}; others of its group, ahead of that, keep their layer"
            )
            name = group.terms.group
            fresh = self._new_group(client, group.terms, make, size)
            self._groups[name] = fresh
            if not self._has_members(group):
                group.hold.release()
            return fresh

    def _has_members(self, group: Group) -> bool:
        return any(session.group is group for session in self.by_nonce.values())

    def _new_group(self, client: str, terms: Terms, make: Callable[[], ServerLayer], size: int) -> Group:
        hold = self.budget.hold(client)
        self.resize(hold, size)
        try:
            return Group(terms, make(), hold)
        except BaseException:
            hold.release()
            raise

    def _drop_group(self, name: str) -> None:
        self._groups.pop(name).hold.release()
