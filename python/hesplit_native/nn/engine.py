"""Client and server of encrypted layers in one process: rows scaled by their norms, requests in chunks, inputs that layers share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native.choices import Overflow
from hesplit_native.layer.keys import SecretKey
from hesplit_native.layer.linear import LinearClient, LinearServer
from hesplit_native.layer.normalised import MAX_ROWS, normalised_parameters, normalised_rows
from hesplit_native.layer.parameters import Parameters
from hesplit_native.nn.sharing import Sharing, equal

Float64 = npt.NDArray[np.float64]

# In one process bytes cost nothing: layouts are for the least work.
_LINK = 1e15


class Engine:
    """The encrypted product ``x W^T`` of one layer, or of several of the same input side by side.

    With ``parameters`` None every row of x is divided by its own l2 norm before it is encrypted, and W by that of its largest
    row: no row is too large, and the error is relative (`normalised_parameters`). Otherwise x is what those parameters say.
    """

    def __init__(
        self, in_features: int, out_features: int, parameters: Parameters | None = None, on_overflow: Overflow = "clip"
    ) -> None:
        self.normalises = parameters is None
        self.parameters = parameters or normalised_parameters(in_features, out_features)
        key = SecretKey.generate(self.parameters)
        self.client = LinearClient(key, in_features, out_features, on_overflow=on_overflow, link=_LINK)
        self._material = self.client.public_material()
        self._server: LinearServer | None = None
        self.weights: tuple[Tensor, ...] = ()
        """Copies of the weights [out_k, in] that the server has."""
        self._weight_norm = 1.0

    def multiply(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """``x W^T`` for x [n, in] and weights [out_k, in], which stand below one another: float64 [n, sum of out_k]."""
        server = self._server_of(weights)
        parts = [self._multiply_rows(server, rows.numpy()) for rows in torch.split(x, MAX_ROWS)]
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _multiply_rows(self, server: LinearServer, x: npt.NDArray[Any]) -> Float64:
        if not self.normalises:
            return self.client.decrypt(server.forward(self.client.encrypt(x)))
        inside, norms = normalised_rows(x, "x")
        y = self.client.decrypt(server.forward(self.client.encrypt(inside)))
        return y * (norms * self._weight_norm)[:, None]

    def _server_of(self, weights: tuple[Tensor, ...]) -> LinearServer:
        # Values are compared, not version counters: fused optimisers and writes through `.data` leave those as they were.
        if self._server is not None and len(weights) == len(self.weights) and all(map(equal, self.weights, weights)):
            return self._server
        stacked = np.concatenate([weight.double().numpy() for weight in weights])
        if self.normalises:
            largest = normalised_rows(stacked, "weight")[1].max(initial=0.0)
            self._weight_norm = float(largest) or 1.0
            stacked /= self._weight_norm
        if self._server is None:
            self._server = LinearServer(self._material, stacked)
        else:
            self._server.set_weight(stacked)
        self.weights = tuple(weight.clone() for weight in weights)
        return self._server


@dataclass
class _Member:
    """A layer that was called: its engine, and one for it and the layers that are computed with it."""

    engine: Engine
    together: tuple[list[int], Engine] | None = None


class Uploads:
    """Encrypted products of the layers of one model. Safe to use from several threads.

    Layers of the same input share one request and one reply (`Sharing`).
    """

    def __init__(self) -> None:
        self._members: dict[int, _Member] = {}
        self._sharing: Sharing[tuple[Tensor, Tensor]] = Sharing()
        self._lock = threading.RLock()
        #: Requests so far.
        self.requests = 0

    def __reduce__(self) -> tuple[type[Uploads], tuple[()]]:
        """A copy starts anew: with keys of its own."""
        return Uploads, ()

    def engine(self, layer: int) -> Engine | None:
        """The engine of one layer, once it was used."""
        member = self._members.get(layer)
        return member.engine if member is not None else None

    def begin(self, layer: int, make: Callable[[], Engine]) -> None:
        """Make the engine of one layer, when it is first needed."""
        with self._lock:
            if layer not in self._members:
                self._members[layer] = _Member(make())

    def forget(self, layer: int) -> None:
        """Drop the keys of one layer."""
        with self._lock:
            self._members.pop(layer, None)
            self._sharing.forget(layer)

    def multiply(self, layer: int, x: Tensor, weight: Tensor, others: Callable[[int], Tensor | None]) -> Tensor:
        """``x W^T`` for x [n, in] and weight [out, in]; `others` gives the present weight of another layer by its number, or None."""

        def compute(layers: Sequence[int]) -> list[tuple[Tensor, Tensor] | None]:
            found = [weight, *(others(follower) for follower in layers[1:])]
            weights = {n: w for n, w in zip(layers, found, strict=True) if w is not None and w.shape[1] == x.shape[1]}
            products = self._together(list(weights), x, tuple(weights.values()))
            return [products.get(n) for n in layers]

        with self._lock:
            # A layer's weight may be changed after it was computed along with another.
            y, _ = self._sharing.product(
                layer, x, compute, follows=self._can_follow, valid=lambda ready: equal(ready[1], weight)
            )
            return y

    def _can_follow(self, layer: int, leader: int) -> bool:
        engines = self.engine(layer), self.engine(leader)
        return all(engine is not None and engine.normalises for engine in engines)

    def _together(self, layers: list[int], x: Tensor, weights: tuple[Tensor, ...]) -> dict[int, tuple[Tensor, Tensor]]:
        """Product and weight of each of these layers, by one request."""
        self.requests += 1
        leader = self._members[layers[0]]
        engine = leader.engine
        if len(layers) == 1:
            leader.together = None
        else:
            if leader.together is None or leader.together[0] != layers:
                leader.together = layers, Engine(x.shape[1], sum(len(w) for w in weights))
            engine = leader.together[1]
        parts = torch.split(engine.multiply(x, weights), [len(w) for w in weights], dim=1)
        return dict(zip(layers, zip(parts, engine.weights, strict=True), strict=True))
