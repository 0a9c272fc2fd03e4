"""`local`: the whole network in one place (Split Ways, section 3.1). What the other protocols are compared with."""

from __future__ import annotations

from torch import Tensor

from hesplit_native.protocols.halves import ClientSetup, Encryption, Halves
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.session import Session


class LocalLayer:
    """The linear layer without a split."""

    def __init__(self, layer: TrainedLayer, phases: Phases) -> None:
        self.phases = phases
        self.layer = layer

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing has to change: nothing is sent."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, out] of activations [n, in]."""
        back = self.phases.enter("linear layer")
        y = self.layer.forward(x)
        self.phases.enter(back)
        return y

    evaluate = forward

    def refresh(self) -> None:
        """Nobody else holds these weights: there is nothing to send when they were replaced."""

    def settle(self) -> None:
        """No copy lacks anything."""

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da from W before the update; then the update."""
        back = self.phases.enter("linear layer")
        input_gradient = self.layer.update(gradient, gradient.T @ x)
        self.phases.enter(back)
        return input_gradient


def _client(setup: ClientSetup, session: Session | None, encryption: Encryption | None) -> LocalLayer:
    assert setup.layer is not None
    return LocalLayer(setup.layer, setup.phases)


HALVES = Halves(_client, server=None)
