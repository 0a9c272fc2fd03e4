"""What distinguishes one training run from another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_args

from hesplit_native.choices import (
    Attacker,
    Flooding,
    Mechanism,
    Model,
    Overflow,
    Packing,
    ProtocolName,
    Recipe,
    ServerOptimizer,
)
from hesplit_native.errors import ParameterError
from hesplit_native.layer.parameters import STATISTICAL_BITS
from hesplit_native.layer.published import PARAMETER_SETS
from hesplit_native.protocols import PROTOCOLS, Protocol

# What activations and weights stay within on MIT-BIH (docs/precision.md): under plain gradient descent the server's weights hardly
# grow, and the client's activations make up for it. Where noise or bytes follow the ranges they are as tight as what was seen.
_WIDE = {"activation_bound": 64.0}
_TIGHT = {"activation_bound": 32.0}
_GRADIENT_DESCENT = {"activation_bound": 128.0, "weight_norm": 4.0}


@dataclass(frozen=True)
class Defences:
    """What a client does to leak less; the default is nothing.

    Every epsilon is that of one release of one sample, against replacing the sample by another; None: no noise.
    `mechanism` says how activations are noised: ``"gaussian"`` clips a row to the l2 norm `activation_clip` and is (epsilon, delta)
    private; ``"laplace"`` clips its l1 norm and is epsilon private; ``"values"`` is what Abuadbba et al. do: every value is clipped
    to +-`activation_clip` and noised on its own, epsilon private for one value, but only d * epsilon for a row of d.
    dJ/dy is clipped to rows of norm `gradient_clip` / batch size: l1 and Laplace noise under ``"laplace"``, else l2 and Gaussian
    noise.
    Labels are changed once, before training, to others with probability k / (e^label_epsilon + k), k being the number of others
    (randomised response). `decorrelation` is the weight in the loss of the batch's distance correlation between signals and
    activations (NoPeek, Vepakomma et al. 2020).
    """

    mechanism: Mechanism = "values"
    activation_epsilon: float | None = None
    activation_clip: float = 1.0
    gradient_epsilon: float | None = None
    gradient_clip: float = 1.0
    label_epsilon: float | None = None
    delta: float = 1e-5
    decorrelation: float = 0.0

    def __post_init__(self) -> None:
        if self.mechanism not in ("gaussian", "laplace", "values"):
            raise ParameterError(f"mechanism must be gaussian, laplace or values, got {self.mechanism!r}")
        for name in ("activation_epsilon", "gradient_epsilon", "label_epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ParameterError(f"{name} must be positive, got {value}")
        if not 0 < self.delta < 1 or not self.activation_clip > 0 or not self.gradient_clip > 0:
            raise ParameterError("delta must be between 0 and 1, and clips positive")
        if not 0 <= self.decorrelation < math.inf:
            raise ParameterError(f"decorrelation must not be negative, got {self.decorrelation}")

    @property
    def private(self) -> bool:
        """Whether anything is noised."""
        return (self.activation_epsilon, self.gradient_epsilon, self.label_epsilon) != (None, None, None)

    @property
    def any(self) -> bool:
        """Whether there is any defence."""
        return self.private or self.decorrelation > 0


@dataclass(frozen=True)
class RunConfig:
    """What distinguishes one run from another.

    `recipe` ``"default"`` is plain cross-entropy with Adam on both sides; ``"paper"`` is what the papers' code does: softmax before
    a cross-entropy that applies it again, and plain gradient descent at the server of the encrypted protocols.
    `server_optimizer` overrides the recipe's. `flooding` is how released decryptions are made safe to release: ``"step"``, a fresh
    key in every step (in `vertical`, which needs one key, the same as ``"run"``); ``"run"``, one key for the run; ``"off"``, not at
    all. `parameter_set` names a published set of CKKS
    parameters (`hesplit_native.layer.published`), which runs on slots with flooding off. `security` and `statistical_bits` are as in
    `Parameters.recommend`. `limit_batches` shortens every epoch.
    `accumulate` lets a `splitways` client send dJ/dW summed over so many batches, when they are over, instead of after each.
    `accept_leak` allows batches of `splitways` and `hesplit` from which the server recovers the activations; without it they are
    refused, and an epoch's last batch is left out when it is that small. `layer` names the layer of the server's model (``serve
    --train``) that training starts from; empty: one that is drawn under the seed.
    """

    protocol: ProtocolName = "splitways"
    packing: Packing = "blocks"
    model: Model = "m1"
    convolutions: int = 2
    batch_size: int = 8
    epochs: int = 10
    seed: int = 0
    recipe: Recipe = "default"
    server_optimizer: ServerOptimizer | None = None
    learning_rate: float = 1e-3
    flooding: Flooding = "step"
    parameter_set: str | None = None
    security: Attacker = "standard"
    statistical_bits: int = STATISTICAL_BITS
    limit_batches: int | None = None
    on_overflow: Overflow = "clip"
    checkpoint_every: int = 1000
    accumulate: int = 1
    accept_leak: bool = False
    layer: str = ""
    defences: Defences = field(default_factory=Defences)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ParameterError(f"unknown protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}")
        for name in ("batch_size", "epochs", "limit_batches", "checkpoint_every", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ParameterError(f"{name} must be at least 1, got {value}")
        if not 0 < self.learning_rate < math.inf:
            raise ParameterError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.seed < 0:
            raise ParameterError(f"seed must not be negative, got {self.seed}")
        if self.parameter_set is not None and self.parameter_set not in PARAMETER_SETS:
            raise ParameterError(f"unknown parameter set {self.parameter_set!r}; there are {', '.join(PARAMETER_SETS)}")
        if self.security not in get_args(Attacker):
            raise ParameterError(f"security must be {' or '.join(get_args(Attacker))}, got {self.security!r}")
        if self.parameter_set is not None and self.security != "standard":
            raise ParameterError(
                f"the set {self.parameter_set} has the security it was published with; leave security out"
            )
        packing = "slots" if self.parameter_set is not None else self.packing
        if self.releases and packing == "slots" and self.flooding != "off":
            raise ParameterError(
                f"{self.protocol} on SIMD slots releases decryptions that are not flooded (the papers' parameter sets have no room "
                'for it): use packing="blocks", or accept the risk with flooding="off" (docs/security.md)'
            )
        if self.accumulate > 1 and not self.traits.accumulates:
            senders = " and ".join(name for name, protocol in PROTOCOLS.items() if protocol.accumulates)
            raise ParameterError(
                f"only the client of {senders} sends dJ/dW: with {self.protocol} take larger batches instead of accumulate"
            )
        if self.checkpoint_every % self.accumulate:
            raise ParameterError("checkpoint_every must be a multiple of accumulate: no checkpoint holds half a sum")
        if self.traits.labels_at_server and self.defences.gradient_epsilon is not None:
            raise ParameterError(f"in {self.protocol} the server computes dJ/dy: the client has no gradient to noise")
        if self.traits.own_labels and self.defences.label_epsilon is not None:
            raise ParameterError(f"in {self.protocol} the labels are the server's: the client has none to noise")
        if self.traits.private_weights and self.flooding == "step":
            # Its server re-randomises replies under the client's public key, which it is told once.
            object.__setattr__(self, "flooding", "run")
        if self.layer and (self.traits.client_holds_layer or self.model == "base"):
            holder = (
                "the client holds the layer"
                if self.traits.client_holds_layer
                else 'a network of model="base" has two layers'
            )
            raise ParameterError(
                f"training starts from one layer that a server holds, and in {self.protocol} {holder}: leave `layer` out"
            )
        if packing not in self.traits.packings:
            raise ParameterError(f'{self.protocol} weights need packing="{self.traits.packings[0]}"')

    @property
    def traits(self) -> Protocol:
        """What its protocol encrypts, releases and leaks."""
        return PROTOCOLS[self.protocol]

    @property
    def releases(self) -> bool:
        """Whether values computed from decryptions are sent to the server."""
        return self.traits.releases > 0

    @property
    def optimizer(self) -> ServerOptimizer:
        """The optimiser of the server's layer."""
        if self.server_optimizer is not None:
            return self.server_optimizer
        return "sgd" if self.recipe == "paper" and self.releases else "adam"

    def ranges(self, activations: int) -> dict[str, float]:
        """The agreed ranges for a layer of so many activations, as keywords of `Parameters.recommend`."""
        if self.optimizer != "adam":
            return _GRADIENT_DESCENT | {"activation_norm": 32.0 * activations**0.5}
        flooded = self.releases and self.flooding != "off"
        short = self.parameter_set is not None and sum(PARAMETER_SETS[self.parameter_set].modulus_bits) < 60
        return dict(_TIGHT if flooded or short or self.traits.seals_weights else _WIDE)
