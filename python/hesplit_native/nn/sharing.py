"""Layers of a model that are fed by the same tensor, as queries, keys and values are: computed together, from one upload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of the same dtype, shape and values."""
    return one.dtype == other.dtype and torch.equal(one, other)


class Sharing(Generic[T]):
    """Who is computed together. Layers are numbers; T is what is known of a product. Not safe to use from several threads.

    A layer that is called with the same input as the layer before it follows that one: it is computed along with it from then on, and
    its product kept until it is called. One that was computed along and is not called follows no longer.
    """

    def __init__(self) -> None:
        self._followers: dict[int, list[int]] = {}
        self._input: Tensor | None = None
        self._leader = 0
        self._ready: dict[int, T] = {}

    def product(
        self,
        layer: int,
        x: Tensor,
        compute: Callable[[Sequence[int]], Sequence[T | None]],
        *,
        follows: Callable[[int, int], bool],
        valid: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """The product of one layer for x [n, in].

        Parameters
        ----------
        compute
            The products of these layers for x, the first of which is `layer`; None for others that are no more.
        follows
            Whether the first can be computed along with the second.
        valid
            Whether a product that was computed along still holds.
        """
        same = self._input is not None and equal(self._input, x)
        if same and layer in self._ready:
            ready = self._ready.pop(layer)
            if valid(ready):
                return ready
        followers: list[int] = []
        if same and layer != self._leader:
            of_leader = self._followers.setdefault(self._leader, [])
            if layer not in of_leader and follows(layer, self._leader):
                of_leader.append(layer)
        else:
            self._drop_uncalled()
            self._input, self._leader = x.clone(), layer
            followers = self._followers.setdefault(layer, [])
        mine, *others = compute([layer, *followers])
        assert mine is not None
        for follower, other in list(zip(followers, others, strict=True)):
            if other is None:
                followers.remove(follower)
            else:
                self._ready[follower] = other
        return mine

    def forget(self, layer: int) -> None:
        """A layer that is no more."""
        self._followers.pop(layer, None)
        self._ready.pop(layer, None)

    def _drop_uncalled(self) -> None:
        followers = self._followers.get(self._leader, [])
        followers[:] = [layer for layer in followers if layer not in self._ready]
        self._ready.clear()
