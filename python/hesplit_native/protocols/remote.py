"""How PyTorch reaches a linear layer that is elsewhere: one differentiable call."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor


class RemoteLayer(Protocol):
    """A linear layer whose weights live elsewhere and are updated there by every backward pass."""

    def prepare(self, x: Tensor) -> Tensor:
        """What of x can be sent, by differentiable operations."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, out] of activations [n, in]; a backward pass must follow."""
        ...

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits without a backward pass."""
        ...

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da [n, in] for dJ/dy [n, out]; updates the weights."""
        ...


class RemoteLearner(Protocol):
    """Everything after the client's layers, labels and loss included, at the server."""

    def learn(self, x: Tensor, labels: Tensor) -> tuple[float, int, Tensor]:
        """Loss, correct predictions and dJ/da [n, in] for activations [n, in] and labels [n]; updates the layers."""
        ...

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits without a backward pass."""
        ...


class _RemoteFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: RemoteLayer) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.layer.backward(x, gradients[0].contiguous()), None


def remote_linear(x: Tensor, layer: RemoteLayer) -> Tensor:
    """Logits of a remote layer; differentiable when x needs a gradient, an evaluation otherwise."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return layer.evaluate(layer.prepare(x))
    return cast(Tensor, _RemoteFunction.apply(layer.prepare(x), layer))  # type: ignore[no-untyped-call]
