"""What distinguishes one training run from another."""

from __future__ import annotations

from dataclasses import dataclass, field

from hesplit_native.choices import Flooding as Flooding
from hesplit_native.choices import Recipe as Recipe
from hesplit_native.errors import ParameterError
from hesplit_native.layer.linear import Overflow
from hesplit_native.layer.parameters import Packing
from hesplit_native.layer.published import PARAMETER_SETS
from hesplit_native.protocols.terms import Protocol, ServerOptimizer
from hesplit_native.training.defences import Defences
from hesplit_native.training.models import Model

# What activations and weights stay within on MIT-BIH (docs/precision.md): under plain gradient descent the server's weights hardly
# grow, and the client's activations make up for it. Where noise or bytes follow the ranges they are as tight as what was seen.
_WIDE = {"activation_bound": 64.0}
_TIGHT = {"activation_bound": 32.0}
_GRADIENT_DESCENT = {"activation_bound": 128.0, "weight_norm": 4.0}


@dataclass(frozen=True)
class RunConfig:
    """What distinguishes one run from another.

    `recipe` ``"default"`` is plain cross-entropy with Adam on both sides; ``"paper"`` is what the papers' code does: softmax before
    a cross-entropy that applies it again, and plain gradient descent at the server of the encrypted protocols.
    `server_optimizer` overrides the recipe's. `flooding` is how released decryptions are made safe to release: ``"step"``, a fresh
    key in every step; ``"run"``, one key for the run; ``"off"``, not at all. `parameter_set` names a published set of CKKS
    parameters (`hesplit_native.layer.published`), which runs on slots with flooding off. `limit_batches` shortens every epoch.
    `accumulate` lets a `splitways` client send dJ/dW summed over so many batches, when they are over, instead of after each.
    `accept_leak` allows batches of `splitways` and `hesplit` from which the server recovers the activations; without it they are
    refused, and an epoch's last batch is left out when it is that small.
    """

    protocol: Protocol = "splitways"
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
    limit_batches: int | None = None
    on_overflow: Overflow = "clip"
    checkpoint_every: int = 1000
    accumulate: int = 1
    accept_leak: bool = False
    defences: Defences = field(default_factory=Defences)

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "limit_batches", "checkpoint_every", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ParameterError(f"{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise ParameterError(f"seed must not be negative, got {self.seed}")
        if self.parameter_set is not None and self.parameter_set not in PARAMETER_SETS:
            raise ParameterError(f"unknown parameter set {self.parameter_set!r}; there are {', '.join(PARAMETER_SETS)}")
        slots = self.packing == "slots" or self.parameter_set is not None
        if self.releases and slots and self.flooding != "off":
            raise ParameterError(
                f"{self.protocol} on SIMD slots releases decryptions that are not flooded (the papers' parameter sets have no room "
                'for it): use packing="blocks", or accept the risk with flooding="off" (docs/security.md)'
            )
        if self.accumulate > 1 and self.protocol != "splitways":
            raise ParameterError(
                f"only the client of splitways sends dJ/dW: with {self.protocol} take larger batches instead of accumulate"
            )
        if self.checkpoint_every % self.accumulate:
            raise ParameterError("checkpoint_every must be a multiple of accumulate: no checkpoint holds half a sum")
        if self.protocol == "vanilla" and self.defences.gradient_epsilon is not None:
            raise ParameterError("in vanilla the server computes dJ/dy: the client has no gradient to noise")
        if self.protocol == "sealed" and slots:
            raise ParameterError('sealed weights need packing="blocks"')

    @property
    def releases(self) -> bool:
        """Whether values computed from decryptions are sent to the server."""
        return self.protocol in ("splitways", "hesplit")

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
        return dict(_TIGHT if flooded or short or self.protocol == "sealed" else _WIDE)
