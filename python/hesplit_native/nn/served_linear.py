"""Linear layers whose weights a server holds, which computes on ciphertexts: forward and for gradients."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hesplit_native.choices import Direction
from hesplit_native.errors import ParameterError, shortened
from hesplit_native.layer.weights import is_conv1d
from hesplit_native.nn import op
from hesplit_native.nn.encrypted_linear import autocast_result, check_input, refuse_export
from hesplit_native.nn.sharing import Sharing
from hesplit_native.protocols.frozen_client import Connection
from hesplit_native.protocols.frozen_messages import Description


class Inputs(threading.local):
    """Which layers of one model share requests, for each thread that calls it."""

    def __init__(self) -> None:
        self.sharing: Sharing[Tensor] = Sharing()

    def __reduce__(self) -> tuple[type[Inputs], tuple[()]]:
        """A copy of the model has layers of its own."""
        return Inputs, ()


class ServedLinear(nn.Linear):
    """``y = x W^T + b`` with W and b at a server, computed on ciphertexts; a `torch.nn.Linear` in every other way.

    There are no parameters, nothing of it is in a state dict, and nothing ever trains. `bias` is None; `weight` has the right shape,
    and the dtype and device that adapters of peft follow, but all of it is NaN: what reads it instead of calling the layer shall not
    go unnoticed. In the backward pass the server multiplies the
    gradient by W, on ciphertexts too, where x needs a gradient; it keeps nothing between the two, so that graphs may be kept, and any
    number of forward passes may come before any backward pass. x may be float16, bfloat16, float32 or float64, on any device.

    Made by `hesplit_native.nn.encrypt` with ``server=``, of `nn.Linear` and of transformers' `Conv1D`. Copies share the connection; it
    cannot be pickled.

    Raises
    ------
    ParameterError
        For another shape or dtype; for a backward pass where the server answers none. When traced, scripted or exported.
    RangeError
        For NaN or infinity.
    ProtocolError
        When the server refuses, or is gone for longer than the connection is patient.
    """

    def begin_serving(self, connection: Connection, layer: Description, inputs: Inputs) -> None:
        """Drop the weights, and ask that server from now on; together with other layers of the same `inputs` where that can be."""
        self._served = layer.name
        self._inputs = inputs
        self._connection = connection
        self.in_features, self.out_features = layer.in_features, layer.out_features
        before = self._parameters.get("weight")
        like = torch.empty(()) if before is None or before.is_meta else before.detach()
        self._parameters.update(weight=None, bias=None)
        self.register_buffer("_absent", like.new_full((), float("nan")), persistent=False)
        self._number = op.enter(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """NaN [out_features, in_features], which take no memory."""
        return cast(Tensor, self._absent).expand(self.out_features, self.in_features)

    def multiply(self, x: Tensor, direction: Direction) -> Tensor:
        """``x W^T + b`` for x [n, in_features], or backward ``x W`` for x [n, out_features]: what the operators call."""
        if direction == "backward":
            return torch.from_numpy(self._connection.multiply(self._served, x.numpy(), direction))
        return self._inputs.sharing.product(self._number, x, partial(_products, x), follows=_takes_rows_of)

    @property
    def _described(self) -> Description:
        return self._connection.describe(self._served)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs [..., out_features] of input [..., in_features], in its dtype."""
        refuse_export("a model that has its weights")
        check_input(input, self.in_features)
        return autocast_result(_linear(input, self._number, self.out_features), input)

    def extra_repr(self) -> str:
        """As `nn.Linear`, and where it is."""
        return f"in_features={self.in_features}, out_features={self.out_features}, served as {self._served!r}"

    def __getstate__(self) -> dict[str, Any]:
        """A copy is known to the operators by a number of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_number"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = op.enter(self)

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` asks for."""
        raise ParameterError("the weights of this layer are at a server: it cannot be scripted; use torch.compile")


def _products(x: Tensor, layers: Sequence[int]) -> list[Tensor | None]:
    found: dict[int, ServedLinear | None] = {layer: op.layer_of(layer) for layer in layers}
    there = {layer: served for layer, served in found.items() if served is not None}
    products = there[layers[0]]._connection.multiply_together([one._served for one in there.values()], x.numpy())
    by_layer = dict(zip(there, map(torch.from_numpy, products), strict=True))
    return [by_layer.get(layer) for layer in layers]


def _takes_rows_of(layer: int, leader: int) -> bool:
    one, other = op.layer_of(layer), op.layer_of(leader)
    return other is not None and one._described.takes_rows_of(other._described)


def _product(rows: Tensor, layer: int, direction: Direction, width: int) -> Tensor:
    """[..., width] of rows [..., n], in their dtype and on their device."""
    served = cast(ServedLinear, op.layer_of(layer))
    return op.on_rows(rows, width, lambda flat: served.multiply(flat, direction))


@torch.library.custom_op(
    "hesplit_native::served_linear", mutates_args=(), schema="(Tensor x, int layer, int out_features) -> Tensor"
)
def served_linear(x: Tensor, layer: int, out_features: int) -> Tensor:
    """``x W^T + b`` for x [..., in] by the server of that layer."""
    return _product(x, layer, "forward", out_features)


@torch.library.custom_op(
    "hesplit_native::served_gradient", mutates_args=(), schema="(Tensor gradient, int layer, int in_features) -> Tensor"
)
def served_gradient(gradient: Tensor, layer: int, in_features: int) -> Tensor:
    """dJ/dx = dJ/dy W for dJ/dy [..., out] by the server of that layer."""
    return _product(gradient, layer, "backward", in_features)


def _shape(x: Tensor, layer: int, width: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], width)


def _batched(op: Any) -> Any:
    """Under `torch.vmap`: more rows."""

    def of_batch(info: Any, in_dims: tuple[int | None, ...], x: Tensor, layer: int, width: int) -> tuple[Tensor, int]:
        return op(x.movedim(cast(int, in_dims[0]), 0), layer, width), 0

    return of_batch


for _op in (served_linear, served_gradient):
    _op.register_fake(_shape)
    _op.register_vmap(_batched(_op))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.layer, ctx.width = inputs
    ctx.inner, ctx.dtype = x.shape[-1], x.dtype


def _backward_of_linear(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    # Only called where x needs it: nothing else here could.
    return _gradient(gradient.to(ctx.dtype), ctx.layer, ctx.inner), None, None


served_linear.register_autograd(_backward_of_linear, setup_context=_keep)


class _Linear(torch.autograd.Function):
    """The operator for `torch.func` and forward mode, which look for a function where the compiler looks for an operator."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: int, out_features: int) -> Tensor:
        """As `served_linear`."""
        return cast(Tensor, served_linear(x, layer, out_features))

    setup_context = staticmethod(_keep)
    backward = staticmethod(_backward_of_linear)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        """The directional derivative."""
        return _without_bias(tangent, ctx.layer, ctx.width)


class _Gradient(torch.autograd.Function):
    """`served_gradient`, which is linear in the gradient: for derivatives of derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, layer: int, in_features: int) -> Tensor:
        """As `served_gradient`."""
        return cast(Tensor, served_gradient(gradient, layer, in_features))

    setup_context = staticmethod(_keep)

    @staticmethod
    def backward(ctx: Any, second: Tensor) -> tuple[Tensor, None, None]:
        """``second W^T``."""
        return _without_bias(second.to(ctx.dtype), ctx.layer, ctx.inner), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        """The directional derivative."""
        return _gradient(tangent, ctx.layer, ctx.width)


def _linear(x: Tensor, layer: int, out_features: int) -> Tensor:
    apply: Any = served_linear if torch.compiler.is_compiling() else _Linear.apply
    return cast(Tensor, apply(x, layer, out_features))


def _gradient(gradient: Tensor, layer: int, in_features: int) -> Tensor:
    apply: Any = served_gradient if torch.compiler.is_compiling() else _Gradient.apply
    return cast(Tensor, apply(gradient, layer, in_features))


def _without_bias(x: Tensor, layer: int, out_features: int) -> Tensor:
    """``x W^T``: the bias is what the server makes of zeros."""
    rows = x.reshape(-1, x.shape[-1])
    y = _linear(torch.cat([rows, torch.zeros_like(rows[:1])]), layer, out_features)
    return (y[:-1] - y[-1:]).reshape(*x.shape[:-1], out_features)


def differences(name: str, module: nn.Module, layer: Description) -> str:
    """In which ways a layer of a model is another than the server's; empty where it is none."""
    shape = shape_of(module)
    if shape is None:
        return ""
    here = Description(name, *shape, getattr(module, "bias", None) is not None, layer.precision, layer.epoch, True)
    return "" if here.shape == layer.shape else f"{name} is {here.shape} here and {layer.shape} at the server"


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """in_features and out_features of `nn.Linear` and of transformers' `Conv1D`."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_conv1d(type(module)):
        return cast(int, module.nx), cast(int, module.nf)
    return None


# What wrappers put before and behind the names of a model's layers: peft, torch.compile, DistributedDataParallel.
_BEFORE = ("base_model.model.", "_orig_mod.", "module.")
_BEHIND = ".base_layer"


def served_name(name: str, connection: Connection) -> str | None:
    """What the server calls the layer of that name, which may be inside wrappers; None where it has no such layer."""
    inside = name
    while (before := next((prefix for prefix in _BEFORE if inside.startswith(prefix)), None)) is not None:
        inside = inside.removeprefix(before)
    return next((one for one in (name or "linear", inside.removesuffix(_BEHIND)) if one in connection.layers), None)


def chosen_layers(modules: Mapping[str, nn.Module], connection: Connection) -> dict[str, Description]:
    """Which of these layers the server has; ParameterError, with both sides, where it has them in another shape."""
    found = {
        name: connection.layers[served] for name in modules if (served := served_name(name, connection)) is not None
    }
    wrong = [text for name, layer in found.items() if (text := differences(name, modules[name], layer))]
    if wrong:
        raise ParameterError(shortened(wrong, "; "))
    return found
