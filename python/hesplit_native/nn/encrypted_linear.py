"""PyTorch modules: an encrypted linear layer that is used like `torch.nn.Linear`."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from hesplit_native.choices import Overflow, ServerOptimizer
from hesplit_native.errors import ParameterError
from hesplit_native.layer.keys import SecretKey
from hesplit_native.layer.linear import LinearClient, LinearServer
from hesplit_native.layer.parameters import ACTIVATION_BOUND, Parameters
from hesplit_native.protocols.guards import check_batch
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.remote import remote_linear
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.splitways import SplitWaysClient
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import Channel


class _EncryptedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: EncryptedLinear) -> Tensor:
        ctx.save_for_backward(x, weight)
        return layer._compute(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        return (
            gradient @ weight.to(gradient.dtype) if need_x else None,
            (gradient.T @ x).to(weight.dtype) if need_weight else None,
            gradient.sum(0).to(weight.dtype) if need_bias else None,
            None,
        )


class EncryptedLinear(nn.Module):
    """``y = x W^T + b`` computed on ciphertexts; used like `torch.nn.Linear`.

    Without a channel, client and server are in this process: the module makes a key, holds `weight` and `bias`, and its
    `state_dict` is that of `nn.Linear`. With a channel, a server holds the weights and updates them in every backward
    pass (protocol `splitways`), and the `state_dict` is empty.

    Parameters
    ----------
    in_features, out_features, bias
        As for `nn.Linear`; with a channel there always is a bias.
    channel
        A connection to ``hesplit-native serve``, e.g. ``hesplit_native.transport.connect("host:port")``.
    parameters
        CKKS parameters; None: `Parameters.recommend` for ``batch_size``, with a channel for flooded releases. Those with
        ``releases=0`` switch flooding off (docs/security.md).
    batch_size
        The usual number of rows; with a channel, the most in a training step.
    on_overflow
        ``"clip"`` or ``"raise"``, as for `LinearClient`.
    learning_rate, server_optimizer, weight_seed
        With a channel: how the server trains its layer, and the seed it initialises it under.
    accept_leak
        With a channel: allow training batches of fewer rows than outputs, from whose gradients the server recovers x exactly.

    Raises
    ------
    ParameterError
        For another shape or dtype; with the expected and the given one.
    RangeError
        For NaN or infinity, and for weights that the parameters cannot hold.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        channel: Channel | None = None,
        parameters: Parameters | None = None,
        batch_size: int = 4,
        on_overflow: Overflow = "clip",
        learning_rate: float = 1e-3,
        server_optimizer: ServerOptimizer = "adam",
        weight_seed: int = 0,
        accept_leak: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.accept_leak = accept_leak
        self.on_overflow: Overflow = on_overflow
        # With a channel gradients are released: flooded, under a fresh key in every step.
        self.parameters_ckks = parameters or Parameters.recommend(
            in_features=in_features,
            out_features=out_features,
            batch_size=batch_size,
            releases=0 if channel is None else 1,
            activation_bound=ACTIVATION_BOUND if channel is None else ACTIVATION_BOUND / 2,
        )
        self._engine: _Engine | None = None
        self._remote: SplitWaysClient | None = None
        if channel is None:
            self.weight = nn.Parameter(torch.empty(out_features, in_features))
            self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
            self.reset_parameters()
            return
        if not bias:
            raise ParameterError("with a channel the server's layer has a bias; leave bias=True")
        terms = Terms(
            protocol="splitways",
            in_features=in_features,
            out_features=out_features,
            batch_size=batch_size,
            batches=0,
            epochs=0,
            learning_rate=learning_rate,
            server_optimizer=server_optimizer,
            weight_seed=weight_seed,
            parameter_hash=self.parameters_ckks.hash,
        )
        client = self._new_client()
        session = Session(channel, terms, client.public_material(), Phases())
        self._remote = SplitWaysClient(session, client)

    def close(self) -> None:
        """With a channel: end the session with the server, which then keeps its weights. The layer cannot be used afterwards."""
        if self._remote is not None:
            self._remote.session.end()
            self._remote.session.channel.close()

    def reset_parameters(self) -> None:
        """Initialise as `nn.Linear` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def clipped(self) -> int:
        """Rows that were beyond the agreed ranges so far."""
        client = self._remote.linear if self._remote else self._engine.client if self._engine else None
        return client.clipped if client else 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., out_features] of x [..., in_features], float32 or float64, in the dtype of x."""
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ParameterError(f"expected input of shape [..., {self.in_features}], got {list(x.shape)}")
        if x.dtype not in (torch.float32, torch.float64):
            raise ParameterError(f"expected input of dtype float32 or float64, got {x.dtype}")
        rows = x.reshape(-1, self.in_features)
        if self._remote is not None:
            if self.training and not rows.requires_grad:
                # The server learns from the backward pass, also where nothing before this layer does.
                rows = rows.detach().requires_grad_()
            if rows.requires_grad and torch.is_grad_enabled():
                check_batch("splitways", len(rows), self.out_features, accept_leak=self.accept_leak)
            y = remote_linear(rows.float(), self._remote).to(x.dtype)
        else:
            inside = self._local_engine().prepare(rows)
            y = cast(Tensor, _EncryptedFunction.apply(inside, self.weight, self.bias, self))  # type: ignore[no-untyped-call]
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As `nn.Linear`, and how it is encrypted."""
        p = self.parameters_ckks
        where = "remote" if self._remote else "in process"
        return f"{self.in_features}, {self.out_features}, {p.packing}, N={p.ring_degree}, {where}"

    def __getstate__(self) -> dict[str, Any]:
        """A copy carries no key and makes its own; the CKKS parameters travel as their bytes."""
        if self._remote is not None:
            raise TypeError("a layer with a channel cannot be copied or pickled: its connection and key are one")
        return self.__dict__ | {"_engine": None, "parameters_ckks": self.parameters_ckks.to_bytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restored = state | {"parameters_ckks": Parameters.from_bytes(state["parameters_ckks"])}
        super().__setstate__(restored)  # type: ignore[no-untyped-call]

    def _new_client(self) -> LinearClient:
        key = SecretKey.generate(self.parameters_ckks)
        fresh = self.parameters_ckks.releases == 1
        return LinearClient(key, self.in_features, self.out_features, on_overflow=self.on_overflow, fresh_keys=fresh)

    def _local_engine(self) -> _Engine:
        if self._engine is None:
            self._engine = _Engine(self._new_client(), self.weight, self.bias)
        return self._engine

    def _compute(self, x: Tensor) -> Tensor:
        return self._local_engine().compute(x, self.weight, self.bias)


class _Engine:
    """Client and server of one layer in one process."""

    def __init__(self, client: LinearClient, weight: Tensor, bias: Tensor | None) -> None:
        self.client = client
        self.server = LinearServer(client.public_material(), weight, bias)
        self._held = _copies(weight, bias)

    def prepare(self, x: Tensor) -> Tensor:
        return self.client.clip_counted(x)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _same(self._held, (weight, bias)):
            self.server.set_weight(weight, bias)
            self._held = _copies(weight, bias)
        reply = self.server.forward(self.client.encrypt(x))
        return torch.from_numpy(self.client.decrypt(reply)).to(x.dtype)


# Values are compared, not version counters: fused optimisers and writes through `.data` leave those as they were.
def _copies(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.detach().clone() for t in tensors)


def _same(held: tuple[Tensor | None, ...], tensors: tuple[Tensor | None, ...]) -> bool:
    return all(
        h is t if h is None or t is None else h.dtype == t.dtype and torch.equal(h, t)
        for h, t in zip(held, tensors, strict=True)
    )
