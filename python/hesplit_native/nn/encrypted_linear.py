"""Linear layers computed on ciphertexts, used like those of torch and transformers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hesplit_native.choices import LayerOverflow, Overflow, ServerOptimizer
from hesplit_native.errors import ParameterError
from hesplit_native.layer.linear import clip
from hesplit_native.layer.normalised import normalised_parameters
from hesplit_native.layer.parameters import ACTIVATION_BOUND, Parameters
from hesplit_native.nn import op
from hesplit_native.nn.engine import Engine, Uploads
from hesplit_native.transport.channel import Channel

if TYPE_CHECKING:
    from hesplit_native.nn.split_linear import SplitLinear

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class EncryptedLayer(nn.Module):
    """What encrypted layers add to the class of torch or transformers that they are: keys, and a product on ciphertexts.

    `begin_encryption` makes a layer of that class an encrypted one. Keys are made when they are first needed.
    """

    weight: Any  # a Parameter, or what a parametrisation makes of one; None where a server holds it
    bias: Any

    def begin_encryption(
        self,
        *,
        parameters: Parameters | None = None,
        on_overflow: LayerOverflow = "warn",
        uploads: Uploads | None = None,
    ) -> None:
        """`uploads` is shared by the layers of one model; the rest as in `EncryptedLinear`."""
        if on_overflow not in ("warn", "clip", "raise"):
            raise ParameterError(f'on_overflow must be "warn", "clip" or "raise", got {on_overflow!r}')
        self.on_overflow: LayerOverflow = on_overflow
        self.clipped = 0
        """Rows that were beyond the agreed ranges so far; without `parameters` of one's own there are none."""
        self._fixed = parameters
        self._uploads = uploads or Uploads()
        self._number = op.enter(self)

    def end_encryption(self) -> None:
        """Become a layer of the plain class again, without keys."""
        self._uploads.forget(self._number)
        for name in ("on_overflow", "clipped", "_fixed", "_uploads", "_number", "_remote"):
            self.__dict__.pop(name, None)
        plain = next(base for base in type(self).__mro__ if not issubclass(base, EncryptedLayer))
        object.__setattr__(self, "__class__", plain)

    def matrix(self) -> Tensor:
        """The weight as [out_features, in_features]."""
        return cast(Tensor, self.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """``in_features`` and ``out_features``."""
        out_features, in_features = self.matrix().shape
        return in_features, out_features

    @property
    def parameters_ckks(self) -> Parameters:
        """The CKKS parameters of this layer."""
        return self._fixed or normalised_parameters(*self.shape)

    @property
    def _engine(self) -> Engine | None:
        return self._uploads.engine(self._number)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x W^T`` on ciphertexts, float64 [n, out], of x [n, in] and weight [out, in] on the CPU: what the operator calls."""
        out_features, in_features = weight.shape
        strict: Overflow = "raise" if self.on_overflow == "raise" else "clip"
        self._uploads.begin(self._number, lambda: Engine(in_features, out_features, self._fixed, strict))
        return self._uploads.multiply(self._number, x, weight, _present_weight)

    def encrypted(self, x: Tensor) -> Tensor:
        """The layer's output [..., out_features] of x [..., in_features], in the dtype of x."""
        in_features, _ = self.shape
        check_input(x, in_features)
        refuse_export("hesplit_native.nn.decrypt(model), and encrypt what was loaded")
        inside = x if self._fixed is None else self._clip(x, self._fixed)
        y = op.product(inside, self.matrix(), self.bias, self._number)
        return autocast_result(y, x)

    def _clip(self, x: Tensor, parameters: Parameters) -> Tensor:
        if self.on_overflow == "raise":
            return x  # the client refuses it
        inside, count = clip(x.reshape(-1, x.shape[-1]), parameters)
        if count and not self.clipped and self.on_overflow == "warn":
            warnings.warn(
                f"{count} of {x.numel() // x.shape[-1]} rows are beyond the ranges that the parameters agreed on (|x| <= "
                f"{parameters.activation_bound:g}, l2 norm {parameters.activation_norm:g}) and were clipped; leave `parameters` out, "
                "and every row is scaled by its own norm",
                stacklevel=4,
            )
        self.clipped += count
        return inside.reshape(x.shape)

    def __getstate__(self) -> dict[str, Any]:
        """A copy carries no keys and makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_number"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = op.enter(self)

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` asks for."""
        raise ParameterError(
            "an encrypted layer has keys and cannot be scripted: script hesplit_native.nn.decrypt(model), or use torch.compile"
        )


def _present_weight(number: int) -> Tensor | None:
    layer: EncryptedLayer | None = op.layer_of(number)
    return layer.matrix().detach().cpu() if layer is not None else None


def autocast_result(y: Tensor, x: Tensor) -> Tensor:
    """An output in the dtype that autocast gives to those of a linear layer for x."""
    kind = x.device.type
    if x.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        y = y.to(torch.get_autocast_dtype(kind))
    return y


def refuse_export(instead: str) -> None:
    """ParameterError where torch records operations without calling them."""
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise ParameterError(f"an encrypted layer has keys and cannot be exported or traced: export {instead}")


def check_input(x: Tensor, in_features: int) -> None:
    """ParameterError for what is no input of a linear layer."""
    if x.ndim < 1 or x.shape[-1] != in_features:
        raise ParameterError(f"expected input of shape [..., {in_features}], got {list(x.shape)}")
    if x.dtype not in _FLOATING:
        raise ParameterError(f"expected input of dtype float32, float64, float16 or bfloat16, got {x.dtype}")


class EncryptedLinear(EncryptedLayer, nn.Linear):
    """``y = x W^T + b`` computed on ciphertexts; a `torch.nn.Linear` in every other way.

    Client and server are in this process: the module makes a key, and holds `weight` and `bias`. Each row of x is scaled by its own
    l2 norm before it is encrypted, and back afterwards: none is too large, the error is relative,
    ``|error| <= 8e-6 |x_i| max_j |W_j|`` (mostly 3e-6; `parameters_ckks.error_bound`), and no length of a ciphertext depends on the
    data. x may be float16, bfloat16, float32 or float64, on any device; it is encrypted on the CPU.

    With a channel, a server holds the weights and updates them in every backward pass in `train()` mode (protocol `splitways`); in
    `eval()` mode there is none. The `state_dict` is empty.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As for `nn.Linear`; with a channel there always is a bias.
    channel
        A connection to ``hesplit-native serve``, e.g. ``hesplit_native.transport.connect("host:port")``.
    parameters
        CKKS parameters with ranges and an error bound of one's own; None: as above, with a channel `Parameters.recommend` for flooded
        releases. Those with ``releases=0`` switch flooding off (docs/security.md).
    batch_size
        With a channel, the most rows in a training step.
    on_overflow
        What happens to rows beyond the ranges of `parameters`: ``"warn"`` clips them and says so once, ``"clip"``, or ``"raise"``.
    learning_rate, server_optimizer, weight_seed
        With a channel: how the server trains its layer, and the seed it initialises it under.
    accept_leak
        With a channel: allow training batches of fewer rows than outputs, from whose gradients the server recovers x exactly.

    Raises
    ------
    ParameterError
        For another shape or dtype; with the expected and the given one. When traced, scripted or exported.
    RangeError
        For NaN or infinity, and for weights that `parameters` cannot hold.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        channel: Channel | None = None,
        parameters: Parameters | None = None,
        batch_size: int = 4,
        on_overflow: LayerOverflow = "warn",
        learning_rate: float = 1e-3,
        server_optimizer: ServerOptimizer = "adam",
        weight_seed: int = 0,
        accept_leak: bool = False,
    ) -> None:
        self._remote: SplitLinear | None = None
        if channel is None:
            nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
            self.begin_encryption(parameters=parameters, on_overflow=on_overflow)
            return
        if not bias:
            raise ParameterError("with a channel the server's layer has a bias; leave bias=True")
        from hesplit_native.nn.split_linear import SplitLinear

        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        # Gradients are released: flooded, under a fresh key in every step.
        chosen = parameters or Parameters.recommend(
            in_features=in_features,
            out_features=out_features,
            batch_size=batch_size,
            releases=1,
            activation_bound=ACTIVATION_BOUND / 2,
        )
        self.begin_encryption(parameters=chosen, on_overflow=on_overflow)
        remote = SplitLinear(
            in_features, out_features, "splitways", channel, batch_size=batch_size, learning_rate=learning_rate,
            server_optimizer=server_optimizer, weight_seed=weight_seed, parameters=chosen, on_overflow=on_overflow,
            accept_leak=accept_leak,
        )  # fmt: skip
        remote.open()
        self.__dict__["_remote"] = remote  # no submodule: the state dict is empty

    def close(self) -> None:
        """With a channel: end the session with the server, which then keeps its weights. The layer cannot be used afterwards."""
        if self._remote is not None:
            self._remote.close()

    @property
    def shape(self) -> tuple[int, int]:
        """``in_features`` and ``out_features``."""
        return self.in_features, self.out_features

    def forward(self, input: Tensor) -> Tensor:
        """Logits [..., out_features] of input [..., in_features], in its dtype."""
        remote = self.__dict__.get("_remote")
        return self.encrypted(input) if remote is None else self._at_server(input, remote)

    def _at_server(self, x: Tensor, remote: SplitLinear) -> Tensor:
        y = remote.train(self.training)(x)
        self.clipped = remote.clipped
        return cast(Tensor, y)

    def extra_repr(self) -> str:
        """As `nn.Linear`, and how it is encrypted."""
        p = self.parameters_ckks
        where = "remote" if self.__dict__.get("_remote") else "in process"
        return f"{self.in_features}, {self.out_features}, {p.packing}, N={p.ring_degree}, {where}"

    def __getstate__(self) -> dict[str, Any]:
        """As of every encrypted layer; one with a channel has no copies."""
        if self.__dict__.get("_remote") is not None:
            raise TypeError("a layer with a channel cannot be copied or pickled: its connection and key are one")
        return super().__getstate__()
