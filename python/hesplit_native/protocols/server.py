"""The server's side of every protocol: sessions of several clients at once, their layers, and how they resume.

One `Server` lives as long as the process. `converse` is one connection: it is given requests and yields replies. A session outlives
its connection for a while, so that a client that reconnects goes on where it was; its checkpoints outlive the process.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from hesplit_native.errors import HESplitError, KeyMismatchError, ProtocolError, WireError
from hesplit_native.files import make_folder, reserve, write_atomically
from hesplit_native.protocols import PROTOCOLS, messages
from hesplit_native.protocols.answers import Answer, Answers, ServerLayer, Stored
from hesplit_native.protocols.messages import Message, MessageType
from hesplit_native.protocols.storage import CheckpointStore
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import ClientInfo
from hesplit_native.transport.in_process import Conversation

#: Sessions without a message for that many seconds are forgotten, and a client's oldest beyond that many, so that it cannot crowd
#: out the others.
RESUME_SECONDS = 900.0
MAX_SESSIONS_PER_CLIENT = 16

_PHASES = {
    MessageType.LOGITS: "forward",
    MessageType.MASKED_GRADIENT: "backward and update",
    MessageType.INPUT_GRADIENT: "backward and update",
    MessageType.LEARNT: "forward, backward and update",
    MessageType.DONE: "refresh",
}


@dataclass(eq=False)
class SessionState:
    """One session: what was agreed on, the layer, and what the next message must be."""

    client: str
    run: str
    nonce: bytes
    terms: Terms
    protocol: Answers
    layer: ServerLayer | None  # None: nothing here is in the clear
    expected: int = 1
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    last: tuple[bytes, bytes] = (b"", b"")  # the last request and its reply
    may_repeat: bool = False
    owner: object = None
    seen: float = field(default_factory=monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return cast(Stored, self.layer or self.protocol).tensors()


@dataclass
class Group:
    """Participants that train one layer in turns, or average their layers."""

    terms: Terms
    layer: ServerLayer
    offers: dict[str, tuple[float, dict[str, Tensor]]] = field(default_factory=dict)  # by run
    average: dict[str, Tensor] | None = None
    seen: float = field(default_factory=monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Server:
    """Every session of one process. Safe to use from several threads.

    Parameters
    ----------
    checkpoints
        Directory for the state of sessions, from which they resume in another process; None: kept in memory.
    output
        Directory for the trained layer of each session that ends; None: not kept. Sealed layers are kept as ciphertexts.
    on_event
        Called with a line for the log.
    """

    def __init__(
        self,
        *,
        checkpoints: Path | None = None,
        output: Path | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.sessions: OrderedDict[bytes, SessionState] = OrderedDict()
        self.ended = 0
        self._last: SessionState | None = None
        self._groups: dict[str, Group] = {}
        self._store = CheckpointStore(checkpoints)
        self._output = output
        self._on_event = on_event
        self._lock = threading.Lock()

    def last_linear(self) -> nn.Linear | None:
        """The layer of the session that began last, for those who hold the server in their own process; None if it is sealed."""
        layer = self._last.layer if self._last is not None else None
        return layer.linear if layer is not None else None

    def converse(self, client: ClientInfo) -> Conversation:
        """Answer one connection until it ends: yields replies, is sent requests.

        A request that breaks the protocol is answered with its reason, and the session is over.
        """
        owner = object()
        session: SessionState | None = None
        message = yield b""
        while True:
            step, nonce = 0, messages.NO_SESSION
            try:
                request = messages.unpack(message)
                step = request.step
                if session is None:
                    session, reply = self._open(client, request, owner)
                else:
                    reply = self._answer(session, request, message, owner)
            except HESplitError as error:
                nonce = session.nonce if session is not None else messages.NO_SESSION
                self._on_event(f"{client.id}: refused: {error}")
                if session is not None and session.owner is owner:
                    self._forget(session)
                yield messages.pack(MessageType.ERROR, step, nonce, messages.text(str(error)))
                return
            message = yield reply
            if messages.unpack(reply).type is MessageType.SUMMARY:
                return

    # Opening a session

    def _open(self, client: ClientInfo, request: Message, owner: object) -> tuple[SessionState | None, bytes]:
        if request.session != messages.NO_SESSION or request.step != 0:
            raise ProtocolError(f"{request.type.name} came before the handshake")
        if request.type is MessageType.HELLO:
            values, material = messages.take_json(request.body, "handshake")
            session = self._begin(client, Terms.from_json(values), bytes(material), secrets.token_bytes(16).hex())
        elif request.type is MessageType.RESTORE:
            session = self._restore(client, request.body)
        elif request.type is MessageType.RESUME:
            return self._resume(client, request.body, owner)
        else:
            raise ProtocolError(f"{request.type.name} came before the handshake")
        session.owner = owner
        self._last = session
        with self._lock:
            self._drop_old(client)
            self.sessions[session.nonce] = session
        self._on_event(f"{client.id}: {session.terms.protocol}, run {session.run[:8]}, step {session.steps}")
        agreed = json.loads(session.terms.to_json()) | {"run": session.run}
        body = messages.text(json.dumps(agreed))
        return session, messages.pack(MessageType.WELCOME, 0, session.nonce, body)

    def _begin(self, client: ClientInfo, terms: Terms, material: bytes, run: str) -> SessionState:
        protocol = PROTOCOLS[terms.protocol]
        if material and not protocol.encrypts:
            raise WireError(f"handshake: {terms.protocol} has no public material")
        layer, make = self._layer(terms), protocol.halves.server
        assert make is not None  # Terms are of a protocol that is split
        return SessionState(client.id, run, secrets.token_bytes(16), terms, make(terms, layer, material), layer)

    def _layer(self, terms: Terms) -> ServerLayer | None:
        """A new layer, or the one that this session's group trains in turns; None where the server holds none in the clear."""
        fresh = PROTOCOLS[terms.protocol].halves.layer(terms)
        if not terms.group or fresh is None:
            return fresh
        with self._lock:
            group = self._groups.setdefault(terms.group, Group(terms, fresh))
            group.seen = monotonic()
        for name in ("protocol", "in_features", "out_features", "classes", "hidden", "weight_seed", "members"):
            if getattr(group.terms, name) != getattr(terms, name):
                raise ProtocolError(f"handshake: the group agreed on another {name}")
        return fresh if terms.members else group.layer

    def _restore(self, client: ClientInfo, body: memoryview) -> SessionState:
        values, material = messages.take_json(body, "restore")
        run, step, text = values.get("run"), values.get("checkpoint"), values.get("terms")
        if not isinstance(run, str) or type(step) is not int or not isinstance(text, str):
            raise WireError("restore: expected a run, a checkpoint and terms")
        terms = Terms.from_json(messages.json_object(text, "restore"))
        owner, saved_terms, tensors = self._store.load(run, step)
        if owner != client.id:
            raise KeyMismatchError("restore: the run belongs to another client")
        terms.check_agreement(saved_terms)
        session = self._begin(client, terms, bytes(material), run)
        if session.layer is not None:
            session.layer.load(tensors)
            session.layer.version += 1
        session.steps = step
        with self._lock:
            group = self._groups.get(terms.group)
            if group is not None:
                group.offers.pop(run, None)  # made from a state that is no longer
            for other in [s for s in self.sessions.values() if s.run == run]:
                del self.sessions[other.nonce]
        return session

    def _resume(self, client: ClientInfo, body: memoryview, owner: object) -> tuple[SessionState | None, bytes]:
        values, rest = messages.take_json(body, "resume")
        messages.take_nothing(rest, "resume")
        run, text = values.get("run"), values.get("session")
        if not isinstance(run, str) or not isinstance(text, str):
            raise WireError("resume: expected a run and a session")
        with self._lock:
            session = next((s for s in self.sessions.values() if s.nonce.hex() == text and s.run == run), None)
        if session is not None and session.client == client.id:
            with session.lock:
                session.owner, session.may_repeat = owner, True
            self._on_event(f"{client.id}: reconnected, run {run[:8]}, step {session.steps}")
            answer = messages.text(json.dumps({"alive": True}))
            return session, messages.pack(MessageType.RESUMED, 0, messages.NO_SESSION, answer)
        steps = self._store.steps(run, client.id)
        if not steps:
            raise ProtocolError("there is no such run of this client here; start a new one")
        answer = messages.text(json.dumps({"checkpoints": steps}))
        return None, messages.pack(MessageType.RESUMED, 0, messages.NO_SESSION, answer)

    def _drop_old(self, client: ClientInfo) -> None:
        now = monotonic()
        same = [session for session in self.sessions.values() if session.client == client.id]
        too_many = same[: max(0, len(same) + 1 - MAX_SESSIONS_PER_CLIENT)]
        for session in list(self.sessions.values()):
            if now - session.seen > RESUME_SECONDS or session in too_many:
                del self.sessions[session.nonce]
        # A group lasts as long as one of its members is there, and long enough for them to come.
        needed = {session.terms.group for session in self.sessions.values()}
        for name, group in list(self._groups.items()):
            if name not in needed and now - group.seen > RESUME_SECONDS:
                del self._groups[name]

    def _forget(self, session: SessionState) -> None:
        with self._lock:
            self.sessions.pop(session.nonce, None)

    # Answering a session

    def _answer(self, session: SessionState, request: Message, message: bytes, owner: object) -> bytes:
        with session.lock:
            session.seen = monotonic()
            if session.owner is not owner:
                raise ProtocolError("the session goes on over another connection")
            if request.session != session.nonce:
                raise ProtocolError("a message of another session")
            if session.may_repeat and request.step == session.expected - 1 and message == session.last[0]:
                session.may_repeat = False
                return session.last[1]
            session.may_repeat = False
            if request.step != session.expected:
                raise ProtocolError(f"request {request.step} came where {session.expected} was due")
            kind, body = self._work(session, request)
            reply = messages.pack(kind, request.step, session.nonce, body)
            session.last = message, reply
            session.expected += 1
            return reply

    def _work(self, session: SessionState, request: Message) -> Answer:
        """Algorithm 4 of Split Ways, a message at a time; and what runs need around it."""
        start = perf_counter()
        if request.type is MessageType.END:
            messages.take_nothing(request.body, "end")
            self._finish(session)
            return MessageType.SUMMARY, messages.text(json.dumps(session.seconds))
        if request.type is MessageType.CHECKPOINT:
            step = _take(request.body, "checkpoint", "step", int)
            if step != session.steps:
                raise ProtocolError(f"a checkpoint of step {step}, but this session is at step {session.steps}")
            self._store.save(session.run, step, session.client, session.terms, session.tensors())
            return MessageType.DONE, b""
        if request.type in (MessageType.MERGE, MessageType.ADOPT):
            self._average(session, request)
            return MessageType.DONE, b""
        if request.type in (MessageType.BACKWARD, MessageType.LEARN):
            # Averages count too: they make states of their own.
            agreed = (session.terms.batches + bool(session.terms.members)) * session.terms.epochs
            if agreed and session.steps >= agreed:
                raise ProtocolError(f"the handshake agreed on {agreed} training steps, this would be one more")
        answer = session.protocol.answer(request.type, request.body)
        if answer is None:
            raise ProtocolError(f"{request.type.name} is not a request of {session.terms.protocol}")
        if answer[0] in (MessageType.INPUT_GRADIENT, MessageType.LEARNT):
            session.steps += 1
        phase = "evaluation" if request.type is MessageType.EVALUATE else _PHASES[answer[0]]
        session.seconds[phase] = session.seconds.get(phase, 0.0) + perf_counter() - start
        return answer

    def _average(self, session: SessionState, request: Message) -> None:
        """Parallel participants: weighted average of their layers, an epoch at a time."""
        if session.layer is None or not session.terms.members:
            raise ProtocolError("only layers in the clear of a group with members can be averaged")
        group = self._groups[session.terms.group]
        with group.lock:
            if request.type is MessageType.MERGE:
                weight = _take(request.body, "merge", "weight", float)
                if not 0 < weight <= 1e9 or session.run in group.offers:
                    raise ProtocolError("an average takes one offer of every member, with a positive weight")
                group.offers[session.run] = weight, _weights(session.layer)
                if len(group.offers) == session.terms.members:
                    total = sum(weight for weight, _ in group.offers.values())
                    offers = list(group.offers.values())
                    group.average = {
                        name: sum((weight / total * state[name] for weight, state in offers), torch.zeros(()))
                        for name in offers[0][1]
                    }
                    group.offers.clear()
                return
            messages.take_nothing(request.body, "adopt")
            if group.average is None or session.run in group.offers:
                raise ProtocolError("the average is not there yet: every member merges first")
            session.layer.module.load_state_dict(group.average)
            session.steps += 1  # a state of its own, which a checkpoint can name
            session.layer.version += 1

    def _finish(self, session: SessionState) -> None:
        self._forget(session)
        self.ended += 1
        self._on_event(f"{session.client}: done, run {session.run[:8]}, {session.steps} steps")
        if self._output is not None and session.steps:
            _save(self._output, session)


def _weights(layer: ServerLayer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in layer.module.state_dict().items()}


def _take(body: memoryview, name: str, key: str, kind: type) -> Any:
    values, rest = messages.take_json(body, name)
    messages.take_nothing(rest, name)
    value = values.get(key)
    if type(value) is not kind:
        raise WireError(f"{name}: expected {key} as {kind.__name__}")
    return value


def _save(folder: Path, session: SessionState) -> None:
    """Write the layer beside those of earlier sessions, also of earlier servers."""
    from safetensors.torch import save

    tensors = session.tensors() if session.layer is None else _weights(session.layer)
    content = save({name: value.contiguous() for name, value in tensors.items()})
    make_folder(folder)
    path = reserve(folder / f"server-{number}.safetensors" for number in count(1))
    try:
        write_atomically(path, content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
