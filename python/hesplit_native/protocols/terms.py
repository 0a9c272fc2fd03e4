"""What client and server agree on before the first batch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import nn

from hesplit_native.choices import ServerOptimizer
from hesplit_native.errors import ProtocolError, WireError
from hesplit_native.protocols import PROTOCOLS
from hesplit_native.seeding import seeded

# Larger layers and batches are refused before any memory is taken for them.
MAX_FEATURES = 1 << 20
MAX_OUTPUTS = 65536
MAX_ROWS = 65536
MAX_WEIGHTS = 1 << 24
MAX_MEMBERS = 1024
MAX_NAME = 200  # characters of a layer's name
MAX_VALUES = 1 << 26  # in one matrix: 256 MiB of float32


@dataclass(frozen=True)
class Terms:
    """The hyperparameters of one session (Split Ways, algorithms 1 and 3: eta, n, N, E), the layer and the parameters.

    `batches` is the number of batches of an epoch; 0 in `batches` and `epochs` means open-ended. `parameter_hash` is empty
    without encryption. `weight_seed`, `learning_rate` and `server_optimizer` are 0 and ``"client"`` in `sealed`, whose server
    is told nothing about W. `classes` and `double_softmax` matter where the labels are at the server (`vanilla`), which then
    also holds the second layer of a model that has one (`hidden`). Sessions of the same `group` train one layer in turns;
    `members` is how many average theirs, 1 where every average names whose. `layer` names the layer of the server's model that
    training starts from; empty: one that is drawn under `weight_seed`.
    """

    protocol: str
    in_features: int
    out_features: int
    batch_size: int
    batches: int
    epochs: int
    learning_rate: float
    server_optimizer: str
    weight_seed: int
    parameter_hash: str = ""
    hidden: bool = False
    classes: int = 0
    double_softmax: bool = False
    group: str = ""
    members: int = 0
    layer: str = ""

    @property
    def max_rows(self) -> int:
        """The most rows of one message, so that no matrix exceeds MAX_VALUES."""
        return min(MAX_ROWS, MAX_VALUES // max(self.in_features, self.out_features, self.classes))

    def to_json(self) -> str:
        """The text that travels in the handshake."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Terms:
        """Validate what a peer sent; raises WireError for missing, unknown or absurd values."""
        expected = {f.name: f.type for f in fields(cls)}
        if set(values) != set(expected):
            raise WireError(f"handshake: expected the fields {sorted(expected)}, got {sorted(values)}")
        kinds: dict[Any, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
        for name, kind in expected.items():
            if not isinstance(values[name], kinds[kind]) or (isinstance(values[name], bool) and kind != "bool"):
                raise WireError(f"handshake: {name} has the wrong type")
        terms = cls(**values)
        terms.check()
        return terms

    def check(self) -> None:
        """Raise WireError for a layer, or a choice, that no server takes."""
        limits = {
            "in_features": (1, MAX_FEATURES),
            "out_features": (1, MAX_OUTPUTS),
            "batch_size": (1, MAX_ROWS),
            "batches": (0, 2**40),
            "epochs": (0, 2**20),
            "learning_rate": (0.0, 1e3),
            "weight_seed": (0, 2**62),
            "classes": (0, MAX_OUTPUTS),
            "members": (0, MAX_MEMBERS),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise WireError(f"handshake: {name} must be between {low} and {high}")
        if self.hidden and not self.classes:
            raise WireError("handshake: a second layer needs classes")
        layers = [(self.in_features, self.out_features), (self.out_features, self.classes)]
        for inputs, outputs in layers[: 1 + self.hidden]:
            if inputs * outputs > MAX_WEIGHTS:
                raise WireError(f"handshake: a layer {inputs} -> {outputs} has more than {MAX_WEIGHTS} weights")
        if self.batch_size > self.max_rows:
            raise WireError(f"handshake: batch_size {self.batch_size} is above {self.max_rows} for this layer")
        spoken = {name: protocol for name, protocol in PROTOCOLS.items() if protocol.is_split}
        if self.protocol not in spoken:
            raise WireError(f"handshake: this server speaks the protocols {', '.join(spoken)}")
        protocol = spoken[self.protocol]
        optimizers = ("client",) if protocol.client_holds_layer else get_args(ServerOptimizer)
        if self.server_optimizer not in optimizers:
            raise WireError(f"handshake: server_optimizer must be {' or '.join(optimizers)}")
        if bool(self.parameter_hash) != protocol.encrypts:
            encrypted = ", ".join(name for name, other in spoken.items() if other.encrypts)
            raise WireError(f"handshake: parameter_hash is for {encrypted}, and needed there")
        if len(self.layer) > MAX_NAME or (self.layer and (protocol.client_holds_layer or self.hidden)):
            raise WireError(
                f"handshake: a layer of the server's model is named by at most {MAX_NAME} characters, where the server holds one layer"
            )
        if len(self.group) > 64 or (self.group and len(self.group) < 16):
            raise WireError("handshake: a group is named by 16 to 64 characters that only its members know")
        if self.members and not self.group:
            raise WireError("handshake: members are of a group")

    def check_agreement(self, other: Terms) -> None:
        """Raise ProtocolError naming the first field on which both sides differ."""
        for f in fields(self):
            ours, theirs = getattr(self, f.name), getattr(other, f.name)
            if ours != theirs:
                raise ProtocolError(f"handshake: {f.name} is {ours!r} here and {theirs!r} at the peer")


def initial_linear(terms: Terms) -> nn.Linear:
    """The linear layer in the state that every protocol starts from under one seed; the global generator is left alone."""
    with seeded(terms.weight_seed):
        return nn.Linear(terms.in_features, terms.out_features)


def make_optimizer(name: str, parameters: Any, learning_rate: float) -> torch.optim.Optimizer:
    """Adam, or mini-batch gradient descent without or with momentum."""
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    if name == "momentum":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)
    return torch.optim.SGD(parameters, lr=learning_rate)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Go on with another learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
