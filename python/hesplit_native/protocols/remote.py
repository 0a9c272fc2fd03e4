"""How PyTorch reaches a linear layer that is elsewhere: one differentiable call."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hesplit_native.errors import ParameterError, RangeError


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

    def learn(self, x: Tensor, labels: Tensor) -> tuple[float, float, Tensor]:
        """Loss, correct predictions and dJ/da [n, in] for activations [n, in] and labels [n]; updates the layers.

        Where the labels are the server's own, `labels` are rows of them (`Protocol.own_labels`).
        """
        ...

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits without a backward pass."""
        ...


class Order:
    """The order of passes through one remote layer in a loop that is not ours: a server goes back only through the newest forward
    pass, and once. What breaks it is refused before anything is sent, so it costs that call and not the session.
    """  # noqa: D205

    def __init__(self) -> None:
        self._newest = 0
        self._answered = 0

    def forward(self) -> int:
        """The number of a forward pass that begins."""
        self._newest += 1
        return self._newest

    def backward(self, number: int, gradient: Tensor) -> None:
        """Check a backward pass through that forward pass.

        Raises
        ------
        ParameterError
            It was made already, or another forward pass came in between.
        RangeError
            The gradient is not finite.
        """
        if number == self._answered:
            raise ParameterError(
                "a second backward pass through the same forward pass would train the server's layer twice: call the layer again"
            )
        if number != self._newest:
            raise ParameterError(
                "the layer was called again (in train() mode, with gradients) before the backward pass through this call; the server "
                "goes back through the newest call only. Put what belongs together into one batch, and what shall not be learnt "
                "from under torch.no_grad()"
            )
        if not bool(torch.isfinite(gradient).all()):
            raise RangeError("the gradient at the server's layer is not finite; nothing was sent")
        self._answered = number


class _RemoteFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: RemoteLayer, order: Order | None, anchor: Tensor | None) -> Tensor:
        ctx.layer, ctx.order = layer, order
        ctx.number = order.forward() if order is not None else 0
        ctx.save_for_backward(x)
        return layer.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        if ctx.order is not None:
            ctx.order.backward(ctx.number, gradient)
        return ctx.layer.backward(x, gradient), None, None, None


def remote_linear(x: Tensor, layer: RemoteLayer, *, order: Order | None = None, anchor: Tensor | None = None) -> Tensor:
    """Logits of a remote layer; differentiable when x or `anchor` needs a gradient, an evaluation otherwise.

    `order` watches over loops that are not ours; an `anchor` that needs a gradient, which it never gets, lets the layer learn where
    nothing before it does.
    """
    learns = x.requires_grad or (anchor is not None and anchor.requires_grad)
    if not (torch.is_grad_enabled() and learns):
        return layer.evaluate(layer.prepare(x))
    return cast(Tensor, _RemoteFunction.apply(layer.prepare(x), layer, order, anchor))  # type: ignore[no-untyped-call]
