"""The server's side of every protocol: sessions of several clients at once, their layers, and how they resume.

One `Server` lives as long as the process. `converse` is one connection: it is given requests and yields replies. A session outlives
its connection for a while, so that a client that reconnects goes on where it was; its checkpoints outlive the process.
"""

from __future__ import annotations

import importlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic, perf_counter
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from hesplit_native.choices import ServerOptimizer
from hesplit_native.errors import (
    HESplitError,
    KeyMismatchError,
    ParameterError,
    ProtocolError,
    QueryBudgetExceeded,
    RangeError,
    WireError,
)
from hesplit_native.files import make_folder, reserve, write_atomically
from hesplit_native.layer.weights import Weights
from hesplit_native.protocols import PROTOCOLS, averages, messages
from hesplit_native.protocols.answers import Answer, ServerLayer
from hesplit_native.protocols.budget import Budget, Hold, default_memory, give_back_memory
from hesplit_native.protocols.costs import SessionCosts, Work, session_costs, weight_count
from hesplit_native.protocols.frozen_messages import LOGGED_REFUSALS, refusal, unknown_layer
from hesplit_native.protocols.messages import Message, MessageType
from hesplit_native.protocols.queries import answered_rows, make_ledger
from hesplit_native.protocols.sessions import Group, Sessions, SessionState
from hesplit_native.protocols.storage import KEEP_DAYS, CheckpointStore
from hesplit_native.protocols.terms import Terms, make_optimizer, set_rate
from hesplit_native.transport.channel import SHORT_MESSAGE, Allowance, ClientInfo
from hesplit_native.transport.in_process import Conversation

_EXPIRY_SECONDS = 3600.0  # between two looks for checkpoints that are too old

#: What is worth no thread of its own: messages that are no longer, and lead to no more work, which takes 0.2 to 2 ms.
_QUICK_BYTES = 1 << 17
_QUICK_MULTIPLICATIONS = 1 << 22

_STEPS = frozenset(
    {
        MessageType.FORWARD,
        MessageType.BACKWARD,
        MessageType.EVALUATE,
        MessageType.LEARN,
        MessageType.OPENED_GRADIENT,
        MessageType.OPENED_SHARE,
    }
)
_PHASES = {
    MessageType.LOGITS: "forward",
    MessageType.SHARE: "forward",
    MessageType.MASKED_GRADIENT: "backward and update",
    MessageType.INPUT_GRADIENT: "backward and update",
    MessageType.LEARNT: "forward, backward and update",
    MessageType.DONE: "refresh",
}


@dataclass(eq=False)
class _Opening:
    """A message that asks for a session: what it says first, and the memory that its session will take."""

    kind: MessageType
    terms: Terms
    costs: SessionCosts
    run: str = ""
    checkpoint: int = 0
    seconds: dict[str, float] = field(
        default_factory=dict
    )  # of the session that it goes on from, where that is still here


class _Elsewhere(Exception):
    """Another process has the session: a client that is let go without an answer comes again, perhaps to that one."""


class _Quick(NamedTuple):
    """A message that was looked at before it was taken: what it takes is not found out twice."""

    message: bytes
    request: Message
    work: Work


@dataclass(eq=False)
class _Connection:
    """One connection: who it is, and what it holds until it has a session."""

    client: ClientInfo
    hold: Hold
    session: SessionState | None = None
    opening: _Opening | None = None
    admitted: bool = False  # the next message
    quick: _Quick | None = None


class Server:
    """Every session of one process. Safe to use from several threads.

    Parameters
    ----------
    checkpoints
        Directory for the state of sessions, from which they resume in another process; None: kept in memory.
    keep_days
        Checkpoints in that directory are removed when their run has stored none for so many days.
    output
        Directory for the trained layer of each session that ends; None: not kept. Sealed layers are kept as ciphertexts.
    memory
        Bytes that all clients together may take, messages on their way included; None: half of this machine's memory.
    memory_per_client
        Bytes that one client may take; None: as `memory`.
    memory_kept
        Bytes of `memory` that only clients get who take no more than a 32nd of it.
    queries
        Answers that one client gets about one of `layers`, in all sessions that start from it: a row of logits is one, a row of a
        training step two (docs/security.md). Sessions that start from none count together. What is beyond that raises
        `QueryBudgetExceeded` at the client, whose session goes on. None: any number.
    query_ledger
        Directory that counts them, also for several servers; goes with `queries`.
    layers
        Layers of a model that sessions may start from, each with a copy of its own, by naming one in the terms (`Terms.layer`).
        Where there are no biases they begin at zero.
    labels
        This server's own, for sessions of `vertical`: classes int64 [n], or independent labels 0 or 1 float32 [n, out].
    told_seeds
        Let sessions of `vertical` begin with weights that are drawn under the seed that their client names, who can then compute them
        and all that follows: for runs within one process, and tests. Otherwise the server draws them.
    place
        Which one of several processes behind one port this is, that keep the same checkpoints, below 256. A client whose session goes
        on in another one is let go, until it comes to that; groups whose members must meet in one process are refused. None: the
        only one.
    on_event
        Called with a line for the log.
    """

    def __init__(
        self,
        *,
        layers: Iterable[Weights] = (),
        labels: Tensor | None = None,
        told_seeds: bool = False,
        checkpoints: Path | None = None,
        keep_days: float = KEEP_DAYS,
        output: Path | None = None,
        memory: int | None = None,
        memory_per_client: int | None = None,
        memory_kept: int = 0,
        queries: int | None = None,
        query_ledger: Path | None = None,
        place: int | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.ended = 0
        self._place = place
        self._queries = make_ledger(queries, query_ledger, on_event)
        self.budget = Budget(default_memory() if memory is None else memory, memory_per_client, kept=memory_kept)
        self._store = CheckpointStore(checkpoints, keep_days=keep_days, on_event=on_event)
        self._sessions = Sessions(self.budget, self._store, on_event)
        self._last_layer: ServerLayer | None = None
        self._output = output
        self._labels, self._told_seeds = labels, told_seeds
        self._start = {layer.name: layer for layer in layers}
        self._on_event = on_event
        self._expired = -_EXPIRY_SECONDS

    @property
    def sessions(self) -> OrderedDict[bytes, SessionState]:
        """The sessions that go on, by nonce."""
        return self._sessions.by_nonce

    def last_linear(self) -> nn.Linear | None:
        """The layer of the session that began last in the server's own process; None if it is sealed."""
        return self._last_layer.linear if self._last_layer is not None else None

    def stored(self, run: str, step: int) -> dict[str, Tensor]:
        """Its half in the checkpoint of that step; ProtocolError when there is none."""
        return self._store.load(run, step)[2]

    def adopt(self, run: str, step: int, client: str, terms: Terms, tensors: dict[str, Tensor]) -> None:
        """Take a half that `stored` gave, perhaps in another process, as this server's checkpoint: its client can restore it."""
        self._store.reserve(run, self.budget.hold(client))
        self._store.save(run, step, client, terms, tensors)

    def tidy(self) -> None:
        """Let go of sessions that nobody has come back for, of old checkpoints and freed memory. For who keeps a server running."""
        self._sessions.forget_old()
        give_back_memory()
        if monotonic() - self._expired >= _EXPIRY_SECONDS:
            self._expired = monotonic()
            self._store.expire()

    def converse(self, client: ClientInfo) -> Conversation:
        """Answer one connection until it ends: yields replies, is sent requests.

        A request that breaks the protocol is answered with its reason, and the session is over. `client.allowance` lets a message in
        before it is there as a whole.
        """
        connection = _Connection(client, self.budget.hold(client.id))
        client.allowance.settled = False
        client.allowance.admit = lambda beginning, length: self._admit(connection, beginning, length)
        client.allowance.quick = lambda message: self._is_quick(connection, message)
        reply = b""
        try:
            while True:
                try:
                    message = yield reply
                    reply = self._reply(connection, message)
                except HESplitError as error:
                    yield self._refuse(connection, error)
                    return
                except _Elsewhere:
                    self._on_event(f"{client.id}: let go, its session is with another process")
                    return
                if messages.unpack(reply).type is MessageType.SUMMARY:
                    yield reply
                    return
        finally:
            connection.hold.release()
            if connection.session is not None:
                self._sessions.disconnect(connection.session, connection)
            # The connection and the client know each other: a session that is forgotten would wait for the garbage collector.
            connection.session = connection.opening = None
            client.allowance.admit, client.allowance.quick = Allowance().admit, Allowance().quick

    def _reply(self, connection: _Connection, message: bytes) -> bytes:
        session, quick, connection.quick = connection.session, connection.quick, None
        if session is not None and quick is not None and quick.message is message:
            self._admit_to_session(connection, session, len(message))
            return self._answer(session, quick.request, message, connection, quick.work)
        if not connection.admitted:
            self._admit(connection, memoryview(message), len(message))
        connection.admitted = False
        request = messages.unpack(message)
        if session is not None:
            return self._answer(session, request, message, connection)
        return self._open(connection, request)

    def _is_quick(self, connection: _Connection, message: bytes) -> bool:
        """Whether a message is a small step of its session, which shares nothing that others may be holding."""
        session = connection.session
        if session is None or session.group is not None or self._queries is not None or len(message) > _QUICK_BYTES:
            return False
        if weight_count(session.terms) > _QUICK_MULTIPLICATIONS:
            return False  # to look at all weights, as for the length of a reply, would be work already
        try:
            request = messages.unpack(message)
            if request.type not in _STEPS or not session.expects(request, connection):
                return False
            work = session.protocol.work(request.type, request.body)
        except HESplitError:  # as whoever answers it will say
            return False
        if work.multiplications > _QUICK_MULTIPLICATIONS:
            return False
        connection.quick = _Quick(message, request, work)
        return True

    def _refuse(self, connection: _Connection, error: HESplitError) -> bytes:
        session = connection.session
        unsaid = f" ({error.__cause__})" if isinstance(error.__cause__, RangeError) else ""
        self._on_event(f"{connection.client.id}: refused: {error}{unsaid}")
        if session is None:
            return messages.pack(MessageType.ERROR, 0, messages.NO_SESSION, messages.text(str(error)))
        if session.owner is connection:
            self._sessions.forget(session)
        return messages.pack(MessageType.ERROR, session.expected, session.nonce, messages.text(str(error)))

    # Letting messages in

    def _admit(self, connection: _Connection, beginning: memoryview, length: int) -> None:
        """Refuse a message that is too long for what was agreed, or for which there is no memory."""
        request = messages.unpack(beginning)
        if connection.session is not None:
            self._admit_to_session(connection, connection.session, length)
        elif request.type in (MessageType.HELLO, MessageType.RESTORE):
            opening = connection.opening = self._opening(request, length)
            costs = opening.costs
            if length > costs.opening:
                raise WireError(f"a handshake of {length} bytes; under these terms none is longer than {costs.opening}")
            if opening.run:
                opening.seconds = self._sessions.forget_run(opening.run, connection.client.id)
            self._sessions.resize(connection.hold, costs.held + costs.checkpoints + 2 * length)
        elif request.type in (MessageType.LAYERS, MessageType.HINT, MessageType.KEY, MessageType.PRODUCT):
            raise ProtocolError(
                "this server trains layers and holds no model to be used; one that does is started with --model"
            )
        else:
            if length > SHORT_MESSAGE:
                raise WireError(
                    f"a message of {length} bytes before the handshake; none is longer than {SHORT_MESSAGE}"
                )
            self._sessions.resize(connection.hold, length)
        connection.admitted = True

    def _opening(self, request: Message, length: int) -> _Opening:
        """What the first message of a session says before its public material."""
        values, material = messages.take_json(
            request.body, "handshake" if request.type is MessageType.HELLO else "restore"
        )
        run, step = "", 0
        if request.type is MessageType.RESTORE:
            named, checkpoint, text = values.get("run"), values.get("checkpoint"), values.get("terms")
            if not isinstance(named, str) or type(checkpoint) is not int or not isinstance(text, str):
                raise WireError("restore: expected a run, a checkpoint and terms")
            run, step, values = named, checkpoint, messages.json_object(text, "restore")
        terms = Terms.from_json(values)
        self._check_start(terms)
        if terms.group and terms.members != 1 and self._place is not None:
            raise ProtocolError(
                "this server is several processes (--workers), in which members of a group that takes turns or averages its layers as "
                "it goes would not meet: it must be one process for that"
            )
        material_bytes = length - messages.HEADER_BYTES - (len(request.body) - len(material))
        costs = session_costs(terms, material, material_bytes, checkpoints_in_memory=self._store.in_memory)
        return _Opening(request.type, terms, costs, run, step)

    def _admit_to_session(self, connection: _Connection, session: SessionState, length: int) -> None:
        if session.owner is not connection:
            raise ProtocolError("the session goes on over another connection")
        if length > session.costs.request:
            raise WireError(
                f"a message of {length} bytes; under the terms of this session none is longer than {session.costs.request}"
            )
        self._resize(session, 2 * length)

    def _resize(self, session: SessionState, more: int) -> None:
        """Reserve that many bytes for the present request."""
        self._sessions.resize(session.hold, session.taken(more))

    # Opening a session

    def _open(self, connection: _Connection, request: Message) -> bytes:
        if request.session != messages.NO_SESSION or request.step != 0:
            raise ProtocolError(f"{request.type.name} came before the handshake")
        client, opening = connection.client, connection.opening
        if request.type is MessageType.RESUME:
            return self._resume(connection, request.body)
        if opening is None:
            raise ProtocolError(f"{request.type.name} came before the handshake")
        _, material = messages.take_json(request.body, "handshake")
        connection.opening = None
        if opening.kind is MessageType.HELLO:
            session = self._begin(connection, opening, bytes(material), secrets.token_bytes(16).hex())
        else:
            session = self._restore(connection, opening, bytes(material))
        if not client.peer:
            self._last_layer = session.layer
        self._sessions.add(session)
        client.allowance.settled = True
        self._on_event(
            f"{client.id}: {session.terms.protocol}, run {session.run[:8]}, step {session.steps}; {self._sessions.usage()}"
        )
        agreed = json.loads(session.terms.to_json()) | {"run": session.run}
        body = messages.text(json.dumps(agreed))
        return messages.pack(MessageType.WELCOME, 0, session.nonce, body)

    def _begin(self, connection: _Connection, opening: _Opening, material: bytes, run: str) -> SessionState:
        client, terms, costs = connection.client, opening.terms, opening.costs
        halves = PROTOCOLS[terms.protocol].halves
        assert halves.server is not None  # Terms are of a protocol that is split
        connection.hold.resize(costs.held + 2 * len(material))
        room = self.budget.hold(client.id, costs.checkpoints)
        self._store.reserve(run, room)
        try:
            group, layer = self._layer(client, opening, run)
            protocol = halves.server(terms, layer, material, self._labels)
        except BaseException:
            self._store.forget_empty(run)
            raise
        hold, connection.hold = connection.hold, self.budget.hold(client.id)
        hold.resize(costs.held)
        connection.session = session = SessionState(
            client.id, run, self._new_nonce(), terms, protocol, layer, costs, hold, group, owner=connection
        )
        return session

    def _new_nonce(self) -> bytes:
        """Of a session; it begins with this process's place."""
        if self._place is None:
            return secrets.token_bytes(16)
        return bytes([self._place]) + secrets.token_bytes(15)

    def _layer(self, client: ClientInfo, opening: _Opening, run: str) -> tuple[Group | None, ServerLayer | None]:
        """A new layer, or the one that this session's group trains in turns; None where the server holds none in the clear."""
        terms, size = opening.terms, opening.costs.layer
        if PROTOCOLS[terms.protocol].seals_weights:
            return None, None
        if not terms.group:
            return None, self._new_layer(terms)
        if terms.members:
            own = self._new_layer(terms)
            return self._sessions.join(client.id, terms, lambda: own, 0), own
        fresh = partial(self._new_layer, terms)
        group = self._sessions.join(client.id, terms, fresh, size)
        if opening.kind is MessageType.RESTORE:
            group = self._sessions.rejoin(group, client.id, run, opening.checkpoint, fresh, size)
        return group, group.layer

    def _check_start(self, terms: Terms) -> None:
        """ParameterError where the layer to start from is not there, or has another shape; with both sides."""
        if not terms.layer:
            return
        if terms.layer not in self._start:
            raise unknown_layer(terms.layer, self._start)
        outputs, inputs = self._start[terms.layer].weight.shape
        if (inputs, outputs) != (terms.in_features, terms.out_features):
            raise ParameterError(
                f"{terms.layer} is {inputs} -> {outputs} at the server, and {terms.in_features} -> {terms.out_features} at the client"
            )

    def _new_layer(self, terms: Terms) -> ServerLayer:
        protocol = PROTOCOLS[terms.protocol]
        if protocol.private_weights and not self._told_seeds:
            terms = replace(terms, weight_seed=secrets.randbits(62))
        layer = protocol.halves.layer(terms)
        assert layer is not None
        if terms.layer:
            start = self._start[terms.layer]
            with torch.no_grad():
                layer.linear.weight.copy_(torch.from_numpy(start.weight))
                layer.linear.bias.copy_(torch.zeros(()) if start.bias is None else torch.from_numpy(start.bias))
        return layer

    def _restore(self, connection: _Connection, opening: _Opening, material: bytes) -> SessionState:
        run, step = opening.run, opening.checkpoint
        owner, saved_terms, tensors = self._store.load(run, step)
        if owner != connection.client.id:
            raise KeyMismatchError("restore: the run belongs to another client")
        opening.terms.check_agreement(saved_terms)
        session = self._begin(connection, opening, material, run)
        with session.turn():
            if session.group is not None:
                session.group.went_back(run, step)
            if session.layer is not None:
                session.layer.load(tensors)
                session.layer.version += 1
        session.steps, session.seconds = step, opening.seconds
        return session

    def _resume(self, connection: _Connection, body: memoryview) -> bytes:
        client = connection.client
        values, rest = messages.take_json(body, "resume")
        messages.take_nothing(rest, "resume")
        run, text = values.get("run"), values.get("session")
        if not isinstance(run, str) or not isinstance(text, str):
            raise WireError("resume: expected a run and a session")
        if self._place is not None and text and text[:2] != f"{self._place:02x}":
            raise _Elsewhere
        session = self._sessions.find(run, text, client.id)
        if session is not None:
            with session.lock:
                session.owner, session.may_repeat = connection, True
            connection.session = session
            client.allowance.settled = True
            self._on_event(f"{client.id}: reconnected, run {run[:8]}, step {session.steps}")
            answer = messages.text(json.dumps({"alive": True}))
            return messages.pack(MessageType.RESUMED, 0, messages.NO_SESSION, answer)
        steps = self._store.steps(run, client.id)
        if not steps:
            raise ProtocolError("there is no such run of this client here; start a new one")
        answer = messages.text(json.dumps({"checkpoints": steps}))
        return messages.pack(MessageType.RESUMED, 0, messages.NO_SESSION, answer)

    # Answering a session

    def _answer(
        self,
        session: SessionState,
        request: Message,
        message: bytes,
        connection: _Connection,
        known: Work | None = None,
    ) -> bytes:
        with session.lock:
            session.seen = monotonic()
            if session.owner is not connection:
                raise ProtocolError("the session goes on over another connection")
            if request.session != session.nonce:
                raise ProtocolError("a message of another session")
            if session.may_repeat and request.step == session.expected - 1 and message == session.last[0]:
                session.may_repeat = False
                return session.last[1]
            session.may_repeat = False
            if request.step != session.expected:
                raise ProtocolError(f"request {request.step} came where {session.expected} was due")
            with session.turn():
                work = known or session.protocol.work(request.type, request.body)
                self._resize(session, 2 * len(message) + work.working)
                try:
                    self._count(connection.client, session, request)
                except QueryBudgetExceeded as error:
                    kind, body = self._refuse_one(session, error)
                else:
                    kind, body = self._work(session, request)
                    session.kept = work.kept
            reply = messages.pack(kind, request.step, session.nonce, body)
            session.last = message, reply
            session.expected += 1
            session.hold.resize(session.taken(0))
            return reply

    def _count(self, client: ClientInfo, session: SessionState, request: Message) -> None:
        """Count the answers that a request asks for, before there are any; QueryBudgetExceeded where these are too many."""
        if self._queries is not None:
            rows, answers = answered_rows(session.terms, request.type, request.body)
            if rows:
                self._queries.take(client, (session.terms.layer,), rows, answers=answers)

    def _refuse_one(self, session: SessionState, error: HESplitError) -> Answer:
        """Refuse a request that has changed nothing: the session goes on."""
        session.refused += 1
        if session.refused <= LOGGED_REFUSALS:
            self._on_event(f"{session.client}: refused: {error}")
        return MessageType.REFUSED, refusal(error, later=False)

    def _work(self, session: SessionState, request: Message) -> Answer:
        """Algorithm 4 of Split Ways, a message at a time; and what runs need around it."""
        start = perf_counter()
        if request.type is MessageType.END:
            messages.take_nothing(request.body, "end")
            self._finish(session)
            return MessageType.SUMMARY, messages.text(json.dumps(session.seconds))
        if request.type is MessageType.CHECKPOINT:
            step, keep = _take_checkpoint(request.body)
            if step != session.steps:
                raise ProtocolError(f"a checkpoint of step {step}, but this session is at step {session.steps}")
            self._store.save(session.run, step, session.client, session.terms, session.tensors(), keep=keep)
            if session.group is not None:
                session.group.marks[session.run, step] = session.group.changes
            return MessageType.DONE, b""
        if request.type is MessageType.RATE:
            rate = messages.take_value(request.body, "rate", "learning_rate", float)
            if session.layer is None or not 0 < rate <= 1e3:
                raise ProtocolError("a learning rate is above 0, at most 1000, and for a layer that the server trains")
            set_rate(session.layer.optimizer, rate)
            return MessageType.DONE, b""
        if request.type is MessageType.MERGE:
            averages.merge(session, request.body)
            return MessageType.DONE, b""
        if request.type is MessageType.ADOPT:
            averages.adopt(session, request.body, self._store, self._resize)
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
            if session.group is not None:
                session.group.trained(session.run)
        phase = "evaluation" if request.type is MessageType.EVALUATE else _PHASES[answer[0]]
        session.seconds[phase] = session.seconds.get(phase, 0.0) + perf_counter() - start
        return answer

    def _finish(self, session: SessionState) -> None:
        ending = f"done, run {session.run[:8]}, {session.steps} steps"
        if self._output is not None and session.steps:
            try:
                _save(self._output, session)
            except OSError as error:
                ending += f"; its layer could NOT be written: {error}"
        self._sessions.end(session)
        self._on_event(f"{session.client}: {ending}; {self._sessions.usage()}")
        self.ended += 1


def prepare() -> None:
    """Load everything that a first session would, which takes seconds: before clients are let in."""
    import safetensors.torch  # noqa: F401

    for name in PROTOCOLS:
        importlib.import_module(f"hesplit_native.protocols.{name}")
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    for name in get_args(ServerOptimizer):
        make_optimizer(name, [weight], 0.1).step()


def _take_checkpoint(body: memoryview) -> tuple[int, bool]:
    """The step, and whether it is to be kept."""
    values, rest = messages.take_json(body, "checkpoint")
    messages.take_nothing(rest, "checkpoint")
    step, keep = values.get("step"), values.get("keep", False)
    if type(step) is not int or type(keep) is not bool:
        raise WireError("checkpoint: expected step as int, and keep as bool if at all")
    return step, keep


def _save(folder: Path, session: SessionState) -> None:
    """Write the layer as a file of that client and run, beside those of earlier sessions, also of earlier servers."""
    from safetensors.torch import save

    tensors = session.tensors() if session.layer is None else averages.weights_of(session.layer)
    content = save({name: value.contiguous() for name, value in tensors.items()})
    make_folder(folder)
    name = f"{session.client}-{session.run[:8]}"
    path = reserve(folder / f"{name}{'' if n == 1 else f'-{n}'}.safetensors" for n in count(1))
    try:
        write_atomically(path, content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
