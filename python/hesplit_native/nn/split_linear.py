"""A linear layer that a server computes and trains, under any protocol, for anybody's own loop."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hesplit_native.choices import Flooding, LayerOverflow, ProtocolName, ServerOptimizer
from hesplit_native.errors import DataError, ParameterError, ProtocolError, RangeError, WireError
from hesplit_native.layer.parameters import WEIGHT_NORM, Parameters
from hesplit_native.nn.encrypted_linear import autocast_result, check_input, refuse_export
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.protocols.guards import check_batch
from hesplit_native.protocols.halves import ClientSetup, Encryption
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.remote import Order, RemoteLayer, remote_linear
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import Reconnection, Session
from hesplit_native.protocols.terms import Terms, set_rate
from hesplit_native.training.client import HeldLayer, choose_parameters, evaluation_rows
from hesplit_native.training.config import RunConfig
from hesplit_native.transport.opening import Opener, ServerAddress, Tls, opener

_FORMAT = "hesplit_native-split-linear-1"
_IN_PROCESS = "in-process"


class _Frozen(torch.autograd.Function):
    """An evaluation. Only who holds the weights can go back through it without training them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: SplitLinear) -> Tensor:
        ctx.layer = layer
        return layer._evaluate(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        held = ctx.layer._setup.layer
        if held is None:
            raise ParameterError(
                "a backward pass through a server's layer trains it, and this layer is in eval() mode or does not require gradients: "
                "call train() first"
            )
        return held.input_gradient(gradients[0]), None


class SplitLinear(nn.Module):
    """``y = x W^T + b`` at a server, which trains it: the protocols of this package as a module for your own loop.

    In `train()` mode a forward pass and the backward pass through it are one training step of the layer, at the server's optimiser
    and learning rate; nothing is left for your optimiser to do. In `eval()` mode, under `torch.no_grad()` and after
    `requires_grad_(False)` nothing is trained. The server goes back through the newest forward pass, once. x may be float16,
    bfloat16, float32 or float64, on any device; it is sent as float32, from the CPU. Scaling a loss (`torch.amp.GradScaler`) scales
    the server's gradient with it.

    The connection is made when it is first needed. What is refused here costs that call and not the session.

    Parameters
    ----------
    in_features, out_features
        Shape of the layer; there always is a bias.
    protocol
        ``"plain"``, ``"splitways"``, ``"hesplit"``, ``"sealed"``, or ``"local"``, without a server (docs/protocols.md).
    server
        None: in this process. Otherwise ``"host:port"`` of a ``hesplit-native serve``; or a function that opens a
        `transport.Channel`; or an open one, which is not made again when it is lost.
    tls, client_id, insecure
        As in `hesplit_native.connect`.
    batch_size
        The most rows of a training step, all dimensions of x but the last multiplied; sealed weights are laid out for it.
    learning_rate, server_optimizer, weight_seed
        How the layer is trained, by its server or where its client holds it, and the seed of its first weights. `learning_rate` can
        be assigned to later.
    layer
        The layer of the server's model to start from, by its name (``serve --train``), instead of weights drawn under a seed.
    flooding
        As in `training.RunConfig`.
    parameters
        CKKS parameters of one's own; those with ``releases=0`` switch flooding off (docs/security.md). None: chosen for the shape.
    on_overflow
        What happens to rows beyond the ranges of the parameters: ``"warn"`` clips them and says so once, ``"clip"``, or ``"raise"``.
    accept_leak
        Allow training batches of fewer rows than outputs, from whose gradients the server of `splitways` or `hesplit` recovers x.
    checkpoints
        Where a server in this process stores its half; None: in memory.

    Notes
    -----
    `state_dict` has one entry that counts, uint8 ``_extra_state``: which run at the server this is, steps, clipped rows and releases
    so far; where the client holds the weights (`sealed`, `local`) also these and their optimiser's moments, in the clear; with a
    server in this process that one's weights and moments. It never holds keys: after `load_state_dict` the layer goes on under new
    ones, whose releases count from nothing. Reading the state lets the server store its half of that step; it keeps the last two of
    a run, so older states cannot be resumed. (The entry ``anchor`` is empty: what `requires_grad_` and optimisers see.)

    Raises
    ------
    ParameterError
        Shapes, protocols and parameters that cannot be; another shape or dtype of x; a training batch that is larger than
        `batch_size` or would leak; a backward pass that is not through the newest forward pass, or the second one.
    RangeError
        For NaN or infinity, in x or in the gradient; nothing is sent.
    ConnectionLost, ProtocolError
        The server went away, ended the session, or the session is over. A server that was restarted says which steps it has:
        `load_state_dict` of one of them goes on from there.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        protocol: ProtocolName = "splitways",
        server: ServerAddress | None = None,
        *,
        tls: Tls | None = None,
        client_id: str = "client",
        insecure: bool = False,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        server_optimizer: ServerOptimizer = "adam",
        weight_seed: int = 0,
        layer: str = "",
        flooding: Flooding = "step",
        parameters: Parameters | None = None,
        on_overflow: LayerOverflow = "warn",
        accept_leak: bool = False,
        checkpoints: Path | str | None = None,
    ) -> None:
        super().__init__()
        config = RunConfig(
            protocol=protocol, batch_size=batch_size, learning_rate=learning_rate, server_optimizer=server_optimizer,
            flooding=flooding, accept_leak=accept_leak, layer=layer,
        )  # fmt: skip
        if config.traits.labels_at_server:
            raise ParameterError(f"in {protocol} the server has the labels and the loss: there is no layer to call")
        if on_overflow not in ("warn", "clip", "raise"):
            raise ParameterError(f'on_overflow must be "warn", "clip" or "raise", got {on_overflow!r}')
        if server is not None and not config.traits.is_split:
            raise ParameterError(f"{protocol} has no server; leave it out")
        if server is not None and checkpoints is not None:
            raise ParameterError("checkpoints is for a server in this process; another one has its own")
        self.in_features, self.out_features, self.protocol = in_features, out_features, protocol
        self.batch_size, self.accept_leak, self.on_overflow = batch_size, accept_leak, on_overflow
        self.steps = 0
        """Training steps so far."""
        self.releases = 0
        """Values computed from decryptions that were sent so far: the gradient of every training pass, in `hesplit` two."""
        self.anchor = nn.Parameter(torch.empty(0))
        self._rate = learning_rate
        terms = Terms(
            protocol=protocol,
            in_features=in_features,
            out_features=out_features,
            batch_size=batch_size,
            batches=0,
            epochs=0,
            learning_rate=learning_rate,
            server_optimizer=server_optimizer,
            weight_seed=weight_seed,
            layer=layer,
        )
        _check_shape(terms)
        chosen = parameters if config.traits.encrypts else None
        self._ckks = chosen or choose_parameters(config, in_features, out_features)
        releases = self._ckks.releases if self._ckks is not None else 0
        if self._ckks is not None:
            terms = replace(terms, parameter_hash=self._ckks.hash)
        self._setup = ClientSetup.of(
            terms,
            Phases(),
            self._ckks,
            fresh_keys=0 < releases <= config.traits.releases,
            on_overflow="raise" if on_overflow == "raise" else "clip",
            weight_norm=config.ranges(in_features).get("weight_norm", WEIGHT_NORM),
        )
        self._in_process = config.traits.is_split and server is None
        self._checkpoints = Path(checkpoints) if checkpoints is not None else None
        self._server: Server | None = None
        self._opener: Opener | None = None
        if server is not None:
            self._opener = opener(server, tls=tls, client_id=client_id, insecure=insecure)
        self._order = Order()
        self._session: Session | None = None
        self._encryption: Encryption | None = None
        self._half: RemoteLayer | None = None
        self._closed = False
        self._clipped_before = 0  # in earlier sessions

    # The session

    def open(self) -> None:
        """Connect and shake hands, if that was not done yet; the first pass does it too."""
        if self._half is None:
            self._begin(None)

    def _make_server(self) -> None:
        if self._in_process and self._server is None:
            self._server = Server(checkpoints=self._checkpoints)
            self._opener = opener(self._server, client_id=_IN_PROCESS)

    @torch.inference_mode(False)  # a trainer's first pass may be a validation, and weights are made to be trained
    def _begin(self, resume: tuple[str, int] | None) -> None:
        if self._closed:
            raise ProtocolError("this layer's session was ended by close(); make another layer")
        self._make_server()
        halves = PROTOCOLS[self.protocol].halves
        self._encryption, material = halves.encryption(self._setup)
        if self._opener is not None:
            reconnection = Reconnection(self._opener.open) if self._opener.again else None
            self._session = Session(
                self._opener.open(), self._setup.terms, material, self._setup.phases, resume=resume,
                reconnection=reconnection,
            )  # fmt: skip
        self._half = cast(RemoteLayer, halves.client(self._setup, self._session, self._encryption))
        if self._rate != self._setup.terms.learning_rate:
            self.learning_rate = self._rate

    def close(self) -> None:
        """End the session with the server, which then keeps its weights. The layer cannot be used afterwards."""
        closed, self._closed = self._closed, True
        if self._session is not None and not closed:
            try:
                if self._setup.layer is not None:
                    cast(HeldLayer, self._half).settle()
            finally:
                self._session.end()
                self._session.channel.close()

    def _leave(self) -> None:
        """Go away from a session that another one takes the place of."""
        if self._session is None:
            self._half = self._encryption = None
            return
        if self._opener is None or not self._opener.again:
            raise ParameterError(
                "load_state_dict needs a new connection to the server, and this layer has one that cannot be made again: name the "
                "server by host:port, or give a function that opens a connection"
            )
        self._session.channel.close()
        self._session = self._half = self._encryption = None

    @property
    def session(self) -> Session | None:
        """The session with the server, from `open` on."""
        return self._session

    @property
    def parameters_ckks(self) -> Parameters | None:
        """The CKKS parameters; None without encryption."""
        return self._ckks

    @property
    def clipped(self) -> int:
        """Rows that were beyond the agreed ranges so far."""
        return self._clipped_before + (self._encryption.clipped if self._encryption is not None else 0)

    @property
    def learning_rate(self) -> float:
        """Of this layer; it holds from the next step on, at the server too."""
        return self._rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        if not 0 < rate <= 1e3:
            raise ParameterError(f"learning_rate must be above 0 and at most 1000, got {rate}")
        self._rate = rate
        if self._setup.layer is not None:
            set_rate(self._setup.layer.optimizer, rate)
        elif self._session is not None:
            self._session.set_rate(rate)

    def linear(self) -> nn.Linear:
        """A plain copy of the layer, where its weights are in this process; ParameterError where only the server has them."""
        held: nn.Linear | None = None
        if self._setup.layer is not None:
            held = self._setup.layer.linear
        elif self._in_process:
            self.open()
            assert self._server is not None
            held = self._server.last_linear()
        if held is None:
            raise ParameterError(f"under {self.protocol} this layer's weights are at its server")
        copy = nn.Linear(self.in_features, self.out_features)
        copy.load_state_dict(held.state_dict())
        return copy

    # Passes

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """Outputs [..., out_features] of input [..., in_features], in its dtype and on its device."""
        check_input(input, self.in_features)
        refuse_export("the network without this layer")
        rows = input.reshape(-1, self.in_features).to("cpu", torch.float32)
        if not bool(torch.isfinite(rows).all()):
            raise RangeError("the input of the server's layer is not finite; nothing was sent")
        learns = self.training and self.anchor.requires_grad and torch.is_grad_enabled()
        if not len(rows):
            y = rows.new_zeros(0, self.out_features)
        elif learns:
            y = self._learn(rows)
        else:
            y = cast(Tensor, _Frozen.apply(rows, self))  # type: ignore[no-untyped-call]
        y = y.to(input.device, input.dtype).reshape(*input.shape[:-1], self.out_features)
        return autocast_result(y, input)

    def _learn(self, rows: Tensor) -> Tensor:
        if len(rows) > self.batch_size:
            raise ParameterError(
                f"a training batch of {len(rows)} rows, and the layer was made for {self.batch_size}: "
                f"SplitLinear(..., batch_size={len(rows)})"
            )
        check_batch(self.protocol, len(rows), self.out_features, accept_leak=self.accept_leak)
        self.open()
        before = self.clipped
        y = remote_linear(rows, _Counted(self), order=self._order, anchor=self.anchor)
        self._warn(before, len(rows))
        return y

    def _evaluate(self, rows: Tensor) -> Tensor:
        self.open()
        assert self._half is not None
        before = self.clipped
        parts = torch.split(rows, evaluation_rows(self._setup.terms))
        y = torch.cat([self._half.evaluate(self._half.prepare(part)) for part in parts])
        self._warn(before, len(rows))
        return y

    def _warn(self, before: int, rows: int) -> None:
        if self.on_overflow == "warn" and not before and self.clipped and self._ckks is not None:
            p = self._ckks
            warnings.warn(
                f"{self.clipped} of {rows} rows are beyond the ranges that the parameters agreed on (|x| <= {p.activation_bound:g}, "
                f"l2 norm {p.activation_norm:g}) and were clipped; normalise what goes into this layer, or give parameters with "
                "other ranges",
                stacklevel=5,
            )

    def extra_repr(self) -> str:
        """Shape, protocol, and where the server is."""
        where = ", in process" if self._in_process else ", at a server" if self._opener is not None else ""
        return f"{self.in_features}, {self.out_features}, {self.protocol}{where}"

    # State

    def get_extra_state(self) -> Tensor:
        """What `state_dict` holds of this layer (see above), uint8 [n]."""
        values: dict[str, Any] = {
            "format": _FORMAT, "terms": json.loads(self._setup.terms.to_json()), "steps": self.steps, "clipped": self.clipped,
            "releases": self.releases, "rate": self._rate, "run": "",
        }  # fmt: skip
        tensors: dict[str, Tensor] = {}
        if self._setup.layer is not None:
            tensors = self._setup.layer.tensors()
        elif self._session is not None:
            values["run"] = self._session.run
            if not self._closed:
                self._session.checkpoint(self.steps)
                if self._server is not None:
                    tensors = self._server.stored(self._session.run, self.steps)
        return _packed(tensors, values)

    def set_extra_state(self, state: Any) -> None:
        """Go on from what `get_extra_state` gave, with the server from its checkpoint of that step.

        Raises
        ------
        DataError
            It is no such state, or one of a layer of another shape, protocol or with other settings.
        ProtocolError
            The server has no checkpoint of that step any more.
        """
        tensors, values = _unpacked(state)
        ours = json.loads(self._setup.terms.to_json())
        for name, value in values["terms"].items():
            if ours.get(name) != value:
                raise DataError(f"the state is of a layer with {name}={value!r}, this one has {ours.get(name)!r}")
        if self._setup.layer is not None:
            self._take_weights(tensors)
        elif values["run"] or self._session is not None:
            self._leave()
        self.steps, self._order = values["steps"], Order()
        self._clipped_before, self.releases = values["clipped"], values["releases"]
        if self._encryption is not None:
            self._encryption.clipped = 0
        self._rate = values["rate"]
        if self._setup.layer is not None:
            set_rate(self._setup.layer.optimizer, self._rate)
        elif values["run"]:
            self._make_server()
            if tensors and self._server is not None:
                self._server.adopt(values["run"], self.steps, _IN_PROCESS, self._setup.terms, tensors)
            self._begin((values["run"], self.steps))

    def _take_weights(self, tensors: dict[str, Tensor]) -> None:
        """Go on with these weights and moments, which this client holds, and let the server have them."""
        assert self._setup.layer is not None
        self._setup.layer.load(tensors)
        if self._session is not None and self._opener is not None and self._opener.again:
            self._leave()  # the server may not know the session any more; it gets these weights with the next one
        elif self._half is not None:
            cast(HeldLayer, self._half).refresh()

    def __getstate__(self) -> dict[str, Any]:
        """As long as there is no session it can be copied; a session is one."""
        if self.__dict__.get("_half") is not None:
            raise TypeError(
                "a layer with a session cannot be copied or pickled: its connection and key are one; use state_dict()"
            )
        return dict(self.__dict__)


class _Counted:
    """A layer's half in training, with its steps counted."""

    def __init__(self, layer: SplitLinear) -> None:
        assert layer._half is not None
        self._layer, self._half = layer, layer._half
        self.prepare, self.forward, self.evaluate = self._half.prepare, self._half.forward, self._half.evaluate

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        result = self._half.backward(x, gradient)
        self._layer.steps += 1
        self._layer.releases += PROTOCOLS[self._layer.protocol].releases
        return result


def _check_shape(terms: Terms) -> None:
    """ParameterError for a shape or batch size that no server takes."""
    try:
        replace(terms, protocol="plain").check()
    except WireError as error:
        raise ParameterError(str(error).removeprefix("handshake: ")) from None


def _packed(tensors: dict[str, Tensor], values: dict[str, Any]) -> Tensor:
    """Tensors and plain values as one tensor, which every tool that stores state dicts can store. No pickle."""
    from safetensors.torch import save

    text = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
    named = {name: value.detach().contiguous() for name, value in tensors.items()}
    return torch.frombuffer(bytearray(save(named | {"values": text})), dtype=torch.uint8)


def _unpacked(state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `_packed`; DataError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    def damaged(why: object) -> NoReturn:
        raise DataError(f"this is not the state of a SplitLinear, or is damaged: {why}")

    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
        damaged(f"expected uint8 [n], got {type(state).__name__}")
    try:
        tensors = load(state.cpu().numpy().tobytes())
        values = json.loads(tensors.pop("values").numpy().tobytes())
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        damaged(error)
    if not isinstance(values, dict) or values.get("format") != _FORMAT or not isinstance(values.get("terms"), dict):
        damaged("its values are not there")
    for name, kind in (("steps", int), ("clipped", int), ("releases", int), ("run", str), ("rate", float)):
        if type(values.get(name)) is not kind:
            damaged(f"expected {name} as {kind.__name__}")
    if not 0 < values["rate"] <= 1e3 or min(values["steps"], values["clipped"], values["releases"]) < 0:
        damaged("its values are out of range")
    return tensors, values
