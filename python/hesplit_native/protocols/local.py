"""`local`: the whole network in one place (Split Ways, section 3.1). What the other protocols are compared with."""

from __future__ import annotations

from torch import Tensor

from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.terms import Terms, initial_linear, make_optimizer


class LocalLayer:
    """The linear layer without a split."""

    def __init__(self, terms: Terms, phases: Phases) -> None:
        self.phases = phases
        self.linear = initial_linear(terms)
        self.optimizer = make_optimizer(terms.server_optimizer, self.linear.parameters(), terms.learning_rate)

    def prepare(self, x: Tensor) -> Tensor:
        """Nothing has to change: nothing is sent."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, out] of activations [n, in]."""
        back = self.phases.enter("linear layer")
        y = x @ self.linear.weight.detach().T + self.linear.bias.detach()
        self.phases.enter(back)
        return y

    evaluate = forward

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da from W before the update; then the update."""
        back = self.phases.enter("linear layer")
        input_gradient = gradient @ self.linear.weight.detach()
        self.linear.weight.grad = gradient.T @ x
        self.linear.bias.grad = gradient.sum(0)
        self.optimizer.step()
        self.phases.enter(back)
        return input_gradient
