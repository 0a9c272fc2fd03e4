"""The client of a model server: its layers, used on rows that stay encrypted.

Requests refer to nothing that a server remembers, but for a key, which goes before those for layers without hints on every channel. So
one that is lost with its connection is sent again, to the same server or to another that holds the same weights.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import Direction
from hesplit_native.errors import KeyMismatchError, ParameterError, RangeError, WireError, shortened
from hesplit_native.layer.frozen import MAX_ROWS, FrozenClient, FrozenSecret, checked_matrix
from hesplit_native.protocols import messages
from hesplit_native.protocols.budget import default_memory
from hesplit_native.protocols.frozen_messages import (
    HINT_PART,
    MAX_TOGETHER,
    MAX_VALUES,
    Description,
    address,
    take_offer,
    unknown_layer,
)
from hesplit_native.protocols.keyed_client import LayerKey, layer_key
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.replicas import Replicas
from hesplit_native.transport import ClientInfo, ClientTls, InProcessChannel
from hesplit_native.transport import connect as open_channel
from hesplit_native.transport.channel import Channel
from hesplit_native.transport.in_process import Conversation

#: Seconds for which a client tries to reach a server, or one of several, that went away.
PATIENCE = 30.0

Float64 = npt.NDArray[np.float64]


class Conversing(Protocol):
    """A model server in this process."""

    def converse(self, client: ClientInfo) -> Conversation:
        """Answer one connection."""
        ...


@dataclass(eq=False)
class _Matrix:
    """One direction of a layer: keys are made anew for every request, the hint is fetched once."""

    client: FrozenClient
    lock: threading.Lock = field(default_factory=threading.Lock)


class Connection:
    """The layers of a model server, or of several with the same weights. Made by `connect`; safe to use from several threads.

    A request whose connection is lost is sent again; with several servers the next one gets it. Layers without hints are asked under
    keys that live as long as the connection, and are zeroed when it is closed.
    """

    def __init__(
        self, replicas: Sequence[tuple[str, Callable[[], Channel]]], patience: float, hint_memory: int | None = None
    ) -> None:
        self.requests = 0
        """Products that were asked for so far."""
        self._replicas = Replicas(replicas)
        self._patience = patience
        self._hint_memory = default_memory() if hint_memory is None else hint_memory
        self._matrices: OrderedDict[tuple[str, Direction], _Matrix] = OrderedDict()  # used last, last
        self._keys: dict[str, LayerKey] = {}
        self._lock = threading.Lock()
        self._layers: dict[str, Description] = {}
        self._fetch_layers(patience=0.0)

    @property
    def layers(self) -> Mapping[str, Description]:
        """What the server has, by name."""
        return MappingProxyType(self._layers)

    @property
    def address(self) -> str:
        """Where requests go at present."""
        return self._replicas.present

    @property
    def bytes_up(self) -> int:
        """Bytes to servers so far."""
        return self._replicas.bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes from servers so far."""
        return self._replicas.bytes_down

    def multiply(self, layer: str, x: npt.NDArray[Any], direction: Direction = "forward") -> Float64:
        """Forward: ``x W^T + b``, backward: ``x W``, computed on ciphertexts.

        Parameters
        ----------
        x
            float32 or float64 [n, in_features] (backward: [n, out_features]), any n.

        Returns
        -------
        ndarray of float64
            [n, out_features] (backward: [n, in_features]).

        Raises
        ------
        ParameterError
            The server has no such layer, or not in this direction; another shape.
        RangeError
            For NaN or infinity.
        BudgetError
            The server has no memory for a request of that size.
        QueryBudgetExceeded
            It gives this client fewer answers. Of more than 2048 rows (without hints 128 or fewer), which are sent in several
            requests, those before were counted.
        ConnectionLost
            No server was there for as long as this connection is patient.
        """
        described = self.describe(layer)
        if direction == "backward" and not described.backward:
            why = ": its weights are private, and would follow from the answers" if described.private else ""
            raise ParameterError(f"the server answers no backward requests for {layer}{why}")
        return self._in_parts((layer,), direction, x)[0]

    def multiply_together(self, layers: Sequence[str], x: npt.NDArray[Any]) -> list[Float64]:
        """``x W^T + b`` for each of these layers, as `multiply`, but x is encrypted and sent once for all, or for every 8 of them.

        Layers with keys of their own are asked one by one.

        Raises
        ------
        ParameterError
            Layers of which one cannot be fed by the rows of another (`Description.takes_rows_of`).
        """
        names = list(dict.fromkeys(layers))
        if all(self.describe(name).keyed is not None for name in names):
            alone = {name: self.multiply(name, x) for name in names}
            return [alone[name] for name in layers]
        for name in names[1:]:
            one, other = self.describe(names[0]), self.describe(name)
            if not other.takes_rows_of(one):
                raise ParameterError(f"rows for {one.name} ({one.shape}) cannot serve {name} ({other.shape}), too")
        found: dict[str, Float64] = {}
        for start in range(0, len(names), MAX_TOGETHER):
            group = names[start : start + MAX_TOGETHER]
            found |= zip(group, self._in_parts(group, "forward", x), strict=True)
        return [found[layer] for layer in layers]

    def describe(self, layer: str) -> Description:
        """The layer of that name; ParameterError with what there is."""
        if layer not in self._layers:
            raise unknown_layer(layer, self._layers)
        return self._layers[layer]

    def close(self) -> None:
        """Leave the server, and zero the keys. The connection cannot be used afterwards."""
        self._replicas.close()
        with self._lock:
            keys, self._keys = self._keys, {}
        for key in keys.values():
            key.client.destroy()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Connection:
        """Copies of a model share its connection."""
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a connection cannot be pickled: the other process connects for itself")

    # Products

    def _in_parts(self, layers: Sequence[str], direction: Direction, x: npt.NDArray[Any]) -> list[Float64]:
        shapes = [(layer.in_features, layer.out_features) for layer in map(self.describe, layers)]
        if direction == "backward":
            shapes = [(inner, outer) for outer, inner in shapes]
        inner = shapes[0][0]
        if x.ndim != 2 or x.shape[1] != inner:
            raise ParameterError(f"{layers[0]}: expected [n, {inner}], got {list(x.shape)}")
        keyed = self.describe(layers[0]).keyed
        if keyed is not None:
            x = checked_matrix(x, "x")
            rows = keyed.rows_at_once
            parts = [[self._multiply_keyed(layers[0], x[start : start + rows])] for start in range(0, len(x), rows)]
        else:
            rows = max(1, min(MAX_ROWS, MAX_VALUES // max(inner, sum(outer for _, outer in shapes))))
            parts = [self._multiply(layers, direction, x[start : start + rows]) for start in range(0, len(x), rows)]
        if not parts:
            return [np.zeros((0, outer)) for _, outer in shapes]
        return [np.concatenate(products) for products in zip(*parts, strict=True)]

    def _multiply(self, layers: Sequence[str], direction: Direction, x: npt.NDArray[Any]) -> list[Float64]:
        renewed = False
        while True:
            matrices = [self._matrix(layer, direction) for layer in layers]
            request, secret = matrices[0].client.encrypt(x)
            try:
                body = self._replicas.exchange(
                    MessageType.PRODUCT,
                    MessageType.RESULT,
                    address(layers, direction),
                    request,
                    patience=self._patience,
                )
                with self._lock:
                    self.requests += 1
                return _decrypted([matrix.client for matrix in matrices], body, secret, len(x))
            except (KeyMismatchError, WireError, ParameterError) as error:
                # The server may have been started anew with another model.
                if not renewed:
                    renewed = True
                    for layer, matrix in zip(layers, matrices, strict=True):
                        self._renew(layer, direction, matrix)
                elif isinstance(error, KeyMismatchError):
                    raise KeyMismatchError(
                        f"{shortened(layers)}: the reply is of other weights again, just after the hint was fetched; all servers of a "
                        f"connection must hold the same weights ({error})"
                    ) from error
                else:
                    raise

    def _multiply_keyed(self, layer: str, x: npt.NDArray[Any]) -> Float64:
        renewed = False
        while True:
            mine = self._keyed(layer)
            try:
                request, norms = mine.client.encrypt(x)
                body = self._replicas.exchange(
                    MessageType.PRODUCT,
                    MessageType.RESULT,
                    address((layer,), "forward"),
                    request,
                    patience=self._patience,
                    after=mine.introduction,
                )
                with self._lock:
                    self.requests += 1
                try:
                    return mine.client.decrypt(body, norms)
                except RangeError:  # no genuine reply: what is done with it would tell of the key
                    self._forget_key(layer, mine)
                    raise
            except (KeyMismatchError, WireError, ParameterError):
                # The server may have been started anew with another model; or its reply is not genuine. This key is not used again.
                self._forget_key(layer, mine)
                if renewed:
                    raise
                renewed = True
                before = self.describe(layer)
                self._fetch_layers(patience=self._patience)
                self._require_like(before)

    def _keyed(self, layer: str) -> LayerKey:
        """A layer that is asked under a key, with its key, which is made for the layer as it is described now."""
        described = self.describe(layer)
        with self._lock:
            mine = self._keys.get(layer)
            if mine is None or mine.described != described:
                if mine is not None:
                    mine.client.destroy()
                mine = self._keys[layer] = layer_key(described)
        return mine

    def _forget_key(self, layer: str, old: LayerKey) -> None:
        old.client.destroy()
        with self._lock:
            if self._keys.get(layer) is old:
                del self._keys[layer]

    def _require_like(self, before: Description) -> None:
        now = self.describe(before.name)
        if now.kind != before.kind:
            raise ParameterError(f"{before.name} was {before.kind} at the server, and now is {now.kind}: connect again")

    def _matrix(self, layer: str, direction: Direction) -> _Matrix:
        """The client of one direction, with its hint."""
        with self._lock:
            matrix = self._matrices.get((layer, direction))
            if matrix is None:
                matrix = self._matrices[layer, direction] = _Matrix(_client(self.describe(layer), direction))
            self._matrices.move_to_end((layer, direction))
        if not matrix.client.has_hint:
            with matrix.lock:
                if not matrix.client.has_hint:  # or another thread has fetched it
                    matrix.client.load_hint(self._fetch_hint(matrix.client, layer, direction))
                    self._forget_hints()
        return matrix

    def _forget_hints(self) -> None:
        """Let go of hints that were not used for longest, as far as all of them take too much."""
        with self._lock:
            held = sum(matrix.client.resident_bytes for matrix in self._matrices.values())
            while held > self._hint_memory and len(self._matrices) > 1:
                _, oldest = self._matrices.popitem(last=False)
                held -= oldest.client.resident_bytes

    def _renew(self, layer: str, direction: Direction, old: _Matrix) -> None:
        """The server has other weights than those that the hint is of: ask for what it has now."""
        before = self.describe(layer)
        with old.lock:
            if self._matrices.get((layer, direction), old) is not old:
                return  # another thread has seen to it; one that only made room for its own hint has not
            self._fetch_layers(patience=self._patience)
            self._require_like(before)
            fresh = _Matrix(_client(self.describe(layer), direction))
            fresh.client.load_hint(self._fetch_hint(fresh.client, layer, direction))
            with self._lock:
                self._matrices[layer, direction] = fresh
            self._forget_hints()

    def _fetch_layers(self, patience: float) -> None:
        self._layers = take_offer(self._replicas.exchange(MessageType.LAYERS, MessageType.OFFER, patience=patience))

    def _fetch_hint(self, client: FrozenClient, layer: str, direction: Direction) -> bytes:
        parts: list[memoryview] = []
        have, total = 0, client.hint_bytes
        while have < total:
            body = self._replicas.exchange(
                MessageType.HINT,
                MessageType.HINT_PART,
                address((layer,), direction, have=have),
                patience=self._patience,
            )
            values, part = messages.take_json(body, "hint")
            if values.get("bytes") != total:
                raise WireError(f"hint: expected {total} bytes in all, as the layer's shape implies")
            if len(part) != min(HINT_PART, total - have):
                raise WireError(f"hint: a part of {len(part)} bytes at {have} of {total}")
            parts.append(part)
            have += len(part)
        return b"".join(parts)


def _decrypted(clients: Sequence[FrozenClient], body: memoryview, secret: FrozenSecret, rows: int) -> list[Float64]:
    """The products of one request, whose replies stand one after the other."""
    lengths = [client.reply_bytes(rows) for client in clients]
    if len(body) != sum(lengths):
        raise WireError(f"a reply of {len(body)} bytes; {rows} rows take {sum(lengths)}")
    ends = np.cumsum(lengths)
    return [
        client.decrypt(body[end - length : end], secret)
        for client, length, end in zip(clients, lengths, ends, strict=True)
    ]


def _client(layer: Description, direction: Direction) -> FrozenClient:
    if direction == "forward":
        return FrozenClient(
            layer.in_features, layer.out_features, bias=layer.bias, precision=layer.precision, epoch=layer.epoch
        )
    return FrozenClient(layer.out_features, layer.in_features, precision=layer.precision, epoch=layer.epoch)


def connect(
    server: str | Sequence[str] | Conversing,
    *,
    tls: ClientTls | str | os.PathLike[str] | None = None,
    client_id: str = "client",
    insecure: bool = False,
    patience: float = PATIENCE,
    hint_memory: int | None = None,
) -> Connection:
    """Connect to a server that holds a model (`hesplit_native.serve`, ``hesplit-native serve --model``).

    Parameters
    ----------
    server
        ``"host:port"``; several of these, which hold the same weights: where one fails the next is asked; or what
        `hesplit_native.serve` returned, without a network in between.
    tls
        Certificates for mutual TLS, or the folder of `hesplit-native certs` with them; None: no TLS, which takes addresses of this
        machine or ``insecure``.
    client_id
        Who this client says it is; under TLS the name in its certificate.
    patience
        Seconds for which a request is repeated while no server can be reached, or while they are busy.
    hint_memory
        Bytes for what was fetched about layers, which is fetched again where they do not suffice; None: half of this machine's.

    Raises
    ------
    ParameterError
        No address; one that is not of that form, or of another machine without TLS.
    DataError
        A certificate that is missing or not in order.
    ConnectionLost
        Nobody answers there.
    ProtocolError
        It holds no model.
    """
    if not isinstance(server, str) and not isinstance(server, Sequence):
        return Connection(
            [("this process", lambda: InProcessChannel(server.converse(ClientInfo(client_id))))],
            patience,
            hint_memory,
        )
    addresses = [server] if isinstance(server, str) else list(server)
    if not addresses:
        raise ParameterError("expected the address of a server, as host:port, or several")
    certificates = tls if tls is None or isinstance(tls, ClientTls) else ClientTls.load(tls, client_id)
    opener = partial(open_channel, tls=certificates, client_id=client_id, insecure=insecure)
    return Connection([(address, partial(opener, address)) for address in addresses], patience, hint_memory)
