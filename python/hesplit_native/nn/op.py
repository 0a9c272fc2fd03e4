"""`hesplit_native::encrypted_linear`, an operator of torch: how compiler, autograd and vmap see encrypted products."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Protocol, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Multiplies(Protocol):
    """What an encrypted layer offers to the operator."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x W^T`` float64 [n, out], from x [n, in] and weight [out, in] on the CPU."""
        ...


# Operators take numbers, not objects.
_layers: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count(1)


def enter(layer: object) -> int:
    """The number by which operators find this layer, as long as it lives."""
    number = next(_numbers)
    _layers[number] = layer
    return number


def layer_of(number: int) -> Any:
    """The layer of that number; None where it is no more."""
    return _layers.get(number)


def on_rows(x: Tensor, width: int, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """[..., width] in the dtype and on the device of x [..., in], from what `multiply` makes of its rows [n, in] on the CPU.

    The rows are float32 or float64.
    """
    y = x.new_empty(*x.shape[:-1], width)
    if y.numel() == 0:
        return y
    rows = x.detach().reshape(-1, x.shape[-1]).cpu()
    rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return y.copy_(multiply(rows).reshape(y.shape))


@torch.library.custom_op(
    "hesplit_native::encrypted_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int layer) -> Tensor",
)
def encrypted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    """``x W^T + b`` for x [..., in] on ciphertexts, in the dtype and on the device of x."""

    def multiply(rows: Tensor) -> Tensor:
        product = cast(Multiplies, layer_of(layer)).multiply(rows, weight.detach().cpu())
        return product if bias is None else product + bias.detach().cpu()

    return on_rows(x, weight.shape[0], multiply)


@encrypted_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@encrypted_linear.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, layer: int
) -> tuple[Tensor, int]:
    x_dim, weight_dim, bias_dim, _ = in_dims
    if weight_dim is None and bias_dim is None and x_dim is not None:
        return encrypted_linear(x.movedim(x_dim, 0), weight, bias, layer), 0

    def part(value: Tensor | None, dim: int | None, index: int) -> Tensor | None:
        return value if value is None or dim is None else value.select(dim, index)

    # Weights of their own are layers of their own.
    parts = [
        encrypted_linear(part(x, x_dim, i), part(weight, weight_dim, i), part(bias, bias_dim, i), layer)
        for i in range(info.batch_size)
    ]
    return torch.stack(parts), 0


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """What the derivatives need."""
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = bias.dtype if bias is not None else None


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """dJ/dx, dJ/dW and dJ/db for dJ/dy [..., out], in the clear: the weights are here."""
    x, weight = ctx.saved_tensors
    gradient = gradient.to(weight.dtype)
    need_x, need_weight, need_bias, _ = ctx.needs_input_grad
    rows = gradient.reshape(-1, gradient.shape[-1])
    return (
        (gradient @ weight).to(x.dtype) if need_x else None,
        rows.T @ x.reshape(-1, x.shape[-1]).to(weight.dtype) if need_weight else None,
        rows.sum(0).to(ctx.bias_dtype) if need_bias else None,
        None,
    )


encrypted_linear.register_autograd(_gradients, setup_context=_keep)


class _Product(torch.autograd.Function):
    """The operator for `torch.func` and forward mode, which look for a function where the compiler looks for an operator."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
        """As `encrypted_linear`."""
        return cast(Tensor, encrypted_linear(x, weight, bias, layer))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep it for both modes."""
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    backward = staticmethod(_gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        """The directional derivative along tangents of x, W and b."""
        x, weight = ctx.saved_tensors
        along_x, along_weight, along_bias, _ = tangents
        dtype = weight.dtype
        found = x.new_zeros(*x.shape[:-1], weight.shape[0]) if along_x is None else along_x.to(dtype) @ weight.T
        if along_weight is not None:
            found = found + x.to(dtype) @ along_weight.T
        if along_bias is not None:
            found = found + along_bias
        return cast(Tensor, found.to(x.dtype))


def product(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    """``x W^T + b`` on ciphertexts, differentiable: x [..., in], weight [out, in], bias [out], and the layer's number."""
    if torch.compiler.is_compiling():
        return cast(Tensor, encrypted_linear(x, weight, bias, layer))
    return cast(Tensor, _Product.apply(x, weight, bias, layer))  # type: ignore[no-untyped-call]
