"""A linear layer with its optimiser: what a server that holds its weights in the clear trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hesplit_native.errors import DataError
from hesplit_native.protocols.optimizers import take_step
from hesplit_native.protocols.terms import Terms, initial_linear, make_optimizer


class TrainedLayer:
    """``y = x W^T + b``, updated in place. `version` counts the changes of the weights."""

    def __init__(self, terms: Terms) -> None:
        self.linear: nn.Linear = initial_linear(terms)
        self.optimizer = make_optimizer(terms.server_optimizer, self.linear.parameters(), terms.learning_rate)
        self.version = 0

    @property
    def module(self) -> nn.Module:
        """The linear layer."""
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, out] of activations [n, in]."""
        return x @ self.linear.weight.detach().T + self.linear.bias.detach()

    def update(self, gradient: Tensor, weight_gradient: Tensor) -> Tensor:
        """One optimiser step from dJ/dy [n, out] and dJ/dW [out, in]; returns dJ/da [n, in] by the weights before it."""
        input_gradient = self.input_gradient(gradient)
        self.step(gradient.sum(0), weight_gradient)
        return input_gradient

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """dJ/da [n, in] for dJ/dy [n, out]."""
        return gradient @ self.linear.weight.detach()

    def step(self, bias_gradient: Tensor, weight_gradient: Tensor) -> None:
        """One optimiser step from dJ/db [out] and dJ/dW [out, in]."""
        self.linear.weight.grad = weight_gradient
        self.linear.bias.grad = bias_gradient
        take_step(self.optimizer)
        self.version += 1

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Replace the weights; the optimiser keeps its moments."""
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)
        self.version += 1

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs."""
        named = {"weight": self.linear.weight.detach(), "bias": self.linear.bias.detach()}
        return named | optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; DataError if they belong to another layer."""
        try:
            self.assign(tensors["weight"], tensors["bias"])
            load_optimizer(self.optimizer, tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError(f"the checkpoint belongs to another layer: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimiser, by parameter and name."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value).detach()
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put moments saved by `optimizer_tensors` back."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
