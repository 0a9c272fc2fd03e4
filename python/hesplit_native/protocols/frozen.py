"""A server that holds a model: anybody's encrypted rows times its weights, which nothing ever changes.

The server keeps nothing of its clients, neither keys nor state: every request is answered on its own, by any server that holds the
same weights. Only of layers whose replies hide their weights it keeps a client's public key, for as long as the connection lasts. What
a request breaks costs that request; the conversation goes on.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter

from hesplit_native.choices import Direction
from hesplit_native.errors import BudgetError, HESplitError, KeyMismatchError, ParameterError, ProtocolError, WireError
from hesplit_native.layer.frozen import FrozenServer
from hesplit_native.layer.keyed import KeyedProducts
from hesplit_native.protocols import messages
from hesplit_native.protocols.budget import Budget, Hold
from hesplit_native.protocols.frozen_messages import (
    HINT_PART,
    LOGGED_REFUSALS,
    offer,
    refusal,
    take_address,
    take_key,
    unknown_layer,
)
from hesplit_native.protocols.messages import NO_SESSION, Message, MessageType
from hesplit_native.protocols.queries import QueryLedger
from hesplit_native.protocols.served_layers import FrozenLayer, KeyedLayer
from hesplit_native.transport.channel import SHORT_MESSAGE, ClientInfo
from hesplit_native.transport.in_process import Conversation

_TRAINING = (MessageType.HELLO, MessageType.RESUME, MessageType.RESTORE)


@dataclass(frozen=True)
class Answered:
    """One request that was answered or refused, for whoever counts: `outcome` is ``"ok"`` or the error's name."""

    request: str
    outcome: str
    rows: int
    received: int
    sent: int
    seconds: float


@dataclass(eq=False)
class _Admitted:
    """What is known of a message before it is there as a whole: why it is refused, or for which matrices and how many rows it is."""

    error: HESplitError | None = None
    later: bool = False
    direction: Direction = "forward"
    matrices: tuple[FrozenServer | KeyedProducts, ...] = ()
    rows: int = 0  # of all of them


@dataclass(eq=False)
class _Visit:
    """One connection."""

    client: ClientInfo
    hold: Hold  # of `key_bytes` and what the present message takes
    keys: dict[str, KeyedProducts] = field(default_factory=dict)  # by layer
    key_bytes: int = 0
    admitted: _Admitted | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    refused: int = 0


class FrozenService:
    """Answers for the layers of one model. Safe to use from several threads.

    Parameters
    ----------
    layers
        What is served.
    memory
        Bytes that all clients' requests and keys together may take, messages on their way and replies included.
    memory_per_client
        Bytes that one client's may take; None: as `memory`.
    memory_kept
        Bytes of `memory` that only clients get who take no more than a 32nd of it.
    hint_memory
        Bytes of hints that are kept once they were computed, at least the largest one. They are computed one at a time.
    queries
        Counts what is answered, forward and backward, by client and layer, and refuses what is too much. None: nothing is counted.
    on_event
        Called with a line for the log.
    on_request
        Called with every request that was answered or refused.
    """

    def __init__(
        self,
        layers: Iterable[FrozenLayer | KeyedLayer],
        *,
        memory: int,
        memory_per_client: int | None = None,
        memory_kept: int = 0,
        hint_memory: int = 0,
        queries: QueryLedger | None = None,
        on_event: Callable[[str], None] = lambda text: None,
        on_request: Callable[[Answered], None] = lambda answered: None,
    ) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.budget = Budget(memory, memory_per_client, kept=memory_kept)
        longest = max((matrix.hint_bytes for layer in self.layers.values() for matrix in layer.matrices), default=0)
        self.hints = HintCache(max(hint_memory, longest))
        self._queries = queries
        self._offer = offer(layer.description for layer in self.layers.values())
        self._on_event = on_event
        self._on_request = on_request

    @property
    def resident_bytes(self) -> int:
        """Memory of the matrices."""
        return sum(layer.resident_bytes for layer in self.layers.values())

    def query_limit(self, layer: str) -> int | None:
        """Answers about a layer for one client; None: any number."""
        return None if self._queries is None else self._queries.limit(layer)

    def converse(self, client: ClientInfo) -> Conversation:
        """Answer one connection until it ends: yields replies, is sent requests."""
        visit = _Visit(client, self.budget.hold(client.id))
        client.allowance.admit = lambda beginning, length: self._admit(visit, beginning, length)
        reply = b""
        try:
            while True:
                try:
                    message = yield reply
                except HESplitError as error:  # of the transport, which ends the connection
                    yield messages.pack(MessageType.REFUSED, 0, NO_SESSION, refusal(error, later=False))
                    return
                reply = self._reply(visit, message)
                del message
                if messages.unpack(reply).type is MessageType.SUMMARY:
                    yield reply
                    return
        finally:
            visit.hold.release()

    # Letting messages in

    def _admit(self, visit: _Visit, beginning: memoryview, length: int) -> bool:
        """Hold the memory that a message will take. True where it is refused: the rest of it is not wanted."""
        visit.hold.resize(visit.key_bytes)
        admitted = visit.admitted = _Admitted()
        needed = 0
        try:
            needed = self._needed(visit, admitted, messages.unpack(beginning), length)
            visit.hold.resize(visit.key_bytes + needed)
        except HESplitError as error:
            admitted.error = error
            admitted.later = isinstance(error, BudgetError) and self.budget.could_hold(visit.key_bytes + needed)
        return admitted.error is not None

    def _needed(self, visit: _Visit, admitted: _Admitted, request: Message, length: int) -> int:
        """The most bytes that a request takes: in pieces and joined, then while it is worked on, with its reply twice over."""
        if request.type is MessageType.PRODUCT:
            return self._needed_by_product(visit, admitted, request, length)
        if length > SHORT_MESSAGE:
            raise WireError(f"a message of {length} bytes; a {request.type.name} is no longer than {SHORT_MESSAGE}")
        if request.type is MessageType.HINT:
            (layer,), direction, _, _ = take_address(request.body, "hint", most=1)
            return length + min(HINT_PART, self._layer(layer).at(direction).hint_bytes)
        if request.type is MessageType.KEY:
            keyed, material = self._key(request.body)
            expected = keyed.server.agreement.material_bytes
            if len(material) != expected:
                raise WireError(
                    f"key: the public material for {keyed.name} takes {expected} bytes, not {len(material)}"
                )
            return length + keyed.server.agreement.client_bytes
        return length + len(self._offer)

    def _needed_by_product(self, visit: _Visit, admitted: _Admitted, request: Message, length: int) -> int:
        layers, admitted.direction, _, body = take_address(request.body, "product")
        found = [self._layer(layer) for layer in layers]
        matrices = admitted.matrices = tuple(_matrix_of(visit, layer, admitted.direction) for layer in found)
        for other in found[1:]:
            if admitted.direction == "backward" or not other.description.takes_rows_of(found[0].description):
                raise ParameterError(f"rows for {layers[0]} cannot serve {other.name} ({admitted.direction}), too")
        rows = matrices[0].rows_of(body)
        admitted.rows = rows * len(matrices)
        costs = [matrix.cost(rows) for matrix in matrices]
        request_bytes = length - messages.HEADER_BYTES - (len(request.body) - len(body))
        if request_bytes > costs[0].request_bytes:
            raise WireError(
                f"a request of {request_bytes} bytes; {rows} rows for {layers[0]} ({admitted.direction}) are no more than "
                f"{costs[0].request_bytes}"
            )
        # One after the other; their replies are there twice: alone, and joined.
        working = max(cost.working_bytes for cost in costs) + 2 * sum(cost.reply_bytes for cost in costs)
        return length + max(length, working)

    def _layer(self, name: str) -> FrozenLayer | KeyedLayer:
        if name not in self.layers:
            raise unknown_layer(name, self.layers)
        return self.layers[name]

    def _key(self, body: memoryview) -> tuple[KeyedLayer, memoryview]:
        """For which layer a client has sent a key, and its public material."""
        values, material = take_key(body)
        name = values.get("name")
        if not isinstance(name, str):
            raise WireError("key: expected the description of a layer")
        layer = self._layer(name)
        if not isinstance(layer, KeyedLayer):
            raise ParameterError(f"{name} has hints: its requests need no key")
        if values != layer.description.to_json():
            raise KeyMismatchError(
                f"{name} is another layer here than the one that this key was made for: ask for the layers again"
            )
        return layer, material

    # Answering

    def _reply(self, visit: _Visit, message: bytes) -> bytes:
        start = perf_counter()
        if visit.admitted is None:
            self._admit(visit, memoryview(message), len(message))
        admitted, visit.admitted = visit.admitted, None
        assert admitted is not None
        step, name, outcome = 0, "unknown", "ok"
        try:
            request = messages.unpack(message)
            step, name = request.step, request.type.name.lower()
            if admitted.error is not None:
                raise admitted.error
            kind, parts = self._answer(visit, admitted, request)
        except HESplitError as error:
            kind, parts = MessageType.REFUSED, (refusal(error, later=admitted.later),)
            outcome = type(error).__name__
            visit.refused += 1
            if visit.refused <= LOGGED_REFUSALS:
                self._on_event(f"{visit.client.id}: refused: {error}")
        if name == "product":
            name = admitted.direction
        reply = messages.pack(kind, step, NO_SESSION, *parts)
        visit.hold.resize(visit.key_bytes + len(reply))  # until the next message: the transport has it
        seconds = perf_counter() - start
        visit.seconds[name] = visit.seconds.get(name, 0.0) + seconds
        self._on_request(Answered(name, outcome, admitted.rows, len(message), len(reply), seconds))
        return reply

    def _answer(
        self, visit: _Visit, admitted: _Admitted, request: Message
    ) -> tuple[MessageType, tuple[bytes | memoryview, ...]]:
        if request.type is MessageType.PRODUCT:
            layers, _, _, body = take_address(request.body, "product")
            if self._queries is not None:
                self._queries.take(visit.client, tuple(layers), admitted.rows // len(layers))
            return MessageType.RESULT, tuple(matrix.multiply(body) for matrix in admitted.matrices)
        if request.type is MessageType.HINT:
            return MessageType.HINT_PART, self._hint(request.body)
        if request.type is MessageType.KEY:
            layer, material = self._key(request.body)
            products = layer.server.for_client(material)
            if layer.name not in visit.keys:
                visit.key_bytes += layer.server.agreement.client_bytes
            visit.keys[layer.name] = products
            return MessageType.DONE, ()
        if request.type is MessageType.LAYERS:
            messages.take_nothing(request.body, "layers")
            return MessageType.OFFER, (self._offer,)
        if request.type is MessageType.END:
            messages.take_nothing(request.body, "end")
            return MessageType.SUMMARY, (messages.text(json.dumps(visit.seconds)),)
        if request.type in _TRAINING:
            raise ProtocolError(
                "this server holds a model to be used (hesplit_native.connect); one that trains layers is started without --model"
            )
        raise ProtocolError(f"{request.type.name} is not a request of a model server")

    def _hint(self, body: memoryview) -> tuple[bytes, memoryview]:
        (layer,), direction, values, rest = take_address(body, "hint", most=1)
        messages.take_nothing(rest, "hint")
        matrix, have = self._layer(layer).at(direction), values.get("have")
        if type(have) is not int or not 0 <= have <= matrix.hint_bytes:
            raise WireError(f"hint: expected as `have` a number from 0 to {matrix.hint_bytes}")
        hint = self.hints.get((layer, direction), matrix.hint)
        return messages.text(json.dumps({"bytes": len(hint)})), memoryview(hint)[have : have + HINT_PART]


def _matrix_of(visit: _Visit, layer: FrozenLayer | KeyedLayer, direction: Direction) -> FrozenServer | KeyedProducts:
    """What answers a client about a layer."""
    if isinstance(layer, FrozenLayer) or direction == "backward":
        return layer.at(direction)
    if layer.name not in visit.keys:
        raise KeyMismatchError(
            f"{layer.name} is asked under a key, and no key for it came over this connection: send it first"
        )
    return visit.keys[layer.name]


class HintCache:
    """What was computed last, as far as `limit` bytes hold it. Safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._hints: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._computing = threading.Lock()  # one at a time: each takes seconds of every core

    def get(self, key: tuple[str, str], compute: Callable[[], bytes]) -> bytes:
        """What is kept under this key; it is computed where it is not."""
        found = self._find(key)
        if found is not None:
            return found
        with self._computing:
            found = self._find(key)  # others waited for the same
            if found is None:
                found = compute()
                self._keep(key, found)
            return found

    def _find(self, key: tuple[str, str]) -> bytes | None:
        with self._lock:
            if key in self._hints:
                self._hints.move_to_end(key)
            return self._hints.get(key)

    def _keep(self, key: tuple[str, str], hint: bytes) -> None:
        with self._lock:
            self._hints[key] = hint
            self.held += len(hint)
            while self.held > self.limit:
                _, oldest = self._hints.popitem(last=False)
                self.held -= len(oldest)
