"""Client and server of encrypted layers in one process: rows scaled by their norms, requests in chunks, inputs that layers share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native.choices import Overflow
from hesplit_native.errors import RangeError
from hesplit_native.layer.keys import SecretKey
from hesplit_native.layer.linear import LinearClient, LinearServer
from hesplit_native.layer.normalised import MAX_ROWS, normalised_parameters
from hesplit_native.layer.parameters import Parameters

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
        inside, norms = _normalised(x, "x")
        y = self.client.decrypt(server.forward(self.client.encrypt(inside)))
        return y * (norms * self._weight_norm)[:, None]

    def _server_of(self, weights: tuple[Tensor, ...]) -> LinearServer:
        # Values are compared, not version counters: fused optimisers and writes through `.data` leave those as they were.
        if self._server is not None and len(weights) == len(self.weights) and all(map(_equal, self.weights, weights)):
            return self._server
        stacked = np.concatenate([weight.double().numpy() for weight in weights])
        if self.normalises:
            largest = _normalised(stacked, "weight")[1].max(initial=0.0)
            self._weight_norm = float(largest) or 1.0
            stacked /= self._weight_norm
        if self._server is None:
            self._server = LinearServer(self._material, stacked)
        else:
            self._server.set_weight(stacked)
        self.weights = tuple(weight.clone() for weight in weights)
        return self._server


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _normalised(x: npt.NDArray[Any], name: str) -> tuple[Float64, Float64]:
    """Rows of l2 norm at most 1, and what they were divided by; by parts, so that no square overflows or vanishes."""
    largest = np.abs(x).max(axis=1, initial=0.0).astype(np.float64)
    if not np.isfinite(largest).all():
        raise RangeError(f"{name} contains NaN or Inf")
    inside = x / np.where(largest > 0, largest, 1.0)[:, None]
    # A little more, so that rounding leaves no row beyond 1.
    norms = np.maximum(np.sqrt(np.einsum("ij,ij->i", inside, inside)), 1.0) * (1 + 1e-9)
    inside /= norms[:, None]
    return inside, largest * norms


@dataclass
class _Member:
    """A layer that was called: its engine, which layers are computed with it, and the weight that it had."""

    engine: Engine
    followers: list[int] = field(default_factory=list)
    together: Engine | None = None


class Uploads:
    """Encrypted products of the layers of one model. Safe to use from several threads.

    A layer that is called with the same input as the layer before it, as queries, keys and values are, is from then on computed
    along with that one: one request and one reply serve both.
    """

    def __init__(self) -> None:
        self._members: dict[int, _Member] = {}
        self._input: Tensor | None = None
        self._leader = 0
        self._ready: dict[int, tuple[Tensor, Tensor]] = {}
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
            self._ready.pop(layer, None)

    def multiply(self, layer: int, x: Tensor, weight: Tensor, others: Callable[[int], Tensor | None]) -> Tensor:
        """``x W^T`` for x [n, in] and weight [out, in]; `others` gives the present weight of another layer by its number, or None."""
        with self._lock:
            same = self._input is not None and _equal(self._input, x)
            if same and layer in self._ready:
                y, used = self._ready.pop(layer)
                if _equal(used, weight):
                    return y
            if same and layer != self._leader:
                self._join(layer)
                return self._alone(layer, x, weight)
            self._drop_unused()
            self._input, self._leader = x.clone(), layer
            return self._with_followers(layer, x, weight, others)

    def _join(self, layer: int) -> None:
        leader, engine = self._members.get(self._leader), self._members[layer].engine
        if leader is None or layer in leader.followers or not (leader.engine.normalises and engine.normalises):
            return
        leader.followers.append(layer)
        leader.together = None

    def _drop_unused(self) -> None:
        """Who was computed along and did not come is no follower."""
        if self._ready:
            leader = self._members.get(self._leader)
            if leader is not None:
                leader.followers = [layer for layer in leader.followers if layer not in self._ready]
                leader.together = None
            self._ready.clear()

    def _alone(self, layer: int, x: Tensor, weight: Tensor) -> Tensor:
        self.requests += 1
        return self._members[layer].engine.multiply(x, (weight,))

    def _with_followers(self, layer: int, x: Tensor, weight: Tensor, others: Callable[[int], Tensor | None]) -> Tensor:
        leader = self._members[layer]
        weights = {follower: others(follower) for follower in leader.followers}
        followers = [f for f, w in weights.items() if w is not None and w.shape[1] == weight.shape[1]]
        if not followers:
            return self._alone(layer, x, weight)
        stack = (weight, *(cast(Tensor, weights[follower]) for follower in followers))
        if leader.together is None or len(followers) != len(leader.followers):
            leader.followers = followers
            leader.together = Engine(weight.shape[1], sum(len(w) for w in stack))
        self.requests += 1
        parts = torch.split(leader.together.multiply(x, stack), [len(w) for w in stack], dim=1)
        # With the weights as they were: each layer may be changed before it is called.
        self._ready = dict(zip(followers, zip(parts[1:], leader.together.weights[1:], strict=True), strict=True))
        return parts[0]
