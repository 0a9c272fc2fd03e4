"""`plain`: the U-shaped split without encryption (Split Ways, algorithms 1 and 2).

    client                                  server
      a = convolutions(x)     -- a -->        y = a W^T + b
      J = loss(y, labels)     <-- y --
                              -- dJ/dy -->    dJ/da = dJ/dy W;  W, b updated from dJ/dy^T a
      convolutions updated    <-- dJ/da --

The server learns the activations, and labels from dJ/dy.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from hesplit_native.errors import ProtocolError
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms, initial_linear, make_optimizer


class HoldsLayer(Protocol):
    """A server's linear layer with its optimiser."""

    linear: nn.Linear
    optimizer: torch.optim.Optimizer


class PlainClient:
    """The client's half: what it sends for a forward and a backward pass."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def prepare(self, x: Tensor) -> Tensor:
        """Every activation can be sent."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [n, out] of activations [n, in]; a backward pass must follow."""
        return self._logits(MessageType.FORWARD, x)

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits without a backward pass."""
        return self._logits(MessageType.EVALUATE, x)

    def _logits(self, kind: MessageType, x: Tensor) -> Tensor:
        activations = messages.matrix(x.detach().numpy(), "activations")
        reply = self.session.exchange(kind, MessageType.LOGITS, activations)
        return take_tensor(reply.body, "logits", len(x), self.session.terms.out_features)

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da float32 [n, in] for dJ/dy [n, out]; the server updates its layer."""
        body = messages.matrix(gradient.numpy(), "gradient")
        reply = self.session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, body)
        return take_tensor(reply.body, "input gradient", len(x), self.session.terms.in_features)


class PlainServer:
    """The server's half: the linear layer and its optimiser."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.linear = initial_linear(terms)
        self.optimizer = make_optimizer(terms.server_optimizer, self.linear.parameters(), terms.learning_rate)
        self._activations: Tensor | None = None

    def forward(self, body: memoryview, *, training: bool) -> bytes:
        """The body of the logits for the body of a request."""
        rows = range(1, (self.terms.batch_size if training else self.terms.max_rows) + 1)
        values, rest = messages.take_matrix(body, "activations", rows=rows, columns=self.terms.in_features)
        messages.take_nothing(rest, "activations")
        x = torch.from_numpy(values.copy())
        if training:
            self._activations = x
        y = x @ self.linear.weight.detach().T + self.linear.bias.detach()
        return messages.matrix(y.numpy(), "logits")

    def backward(self, body: memoryview) -> bytes:
        """The body of dJ/da for the body of dJ/dy; updates the layer."""
        if self._activations is None:
            raise ProtocolError("a gradient came without the activations it belongs to")
        x, self._activations = self._activations, None
        gradient, rest = take_gradient(body, range(len(x), len(x) + 1), self.terms.out_features)
        messages.take_nothing(rest, "gradient")
        return messages.matrix(apply_gradients(self, gradient, gradient.T @ x).numpy(), "input gradient")


def apply_gradients(server: HoldsLayer, gradient: Tensor, weight_gradient: Tensor) -> Tensor:
    """Update a server's layer from dJ/dy and dJ/dW; returns dJ/da by the weights before the update."""
    input_gradient = gradient @ server.linear.weight.detach()
    server.linear.weight.grad = weight_gradient
    server.linear.bias.grad = gradient.sum(0)
    server.optimizer.step()
    return input_gradient


def take_gradient(body: memoryview, rows: range, columns: int) -> tuple[Tensor, memoryview]:
    """Read dJ/dy from the front of a body."""
    values, rest = messages.take_matrix(body, "gradient", rows=rows, columns=columns)
    return torch.from_numpy(values.copy()), rest


def take_tensor(body: memoryview, name: str, rows: int, columns: int) -> Tensor:
    """A body that is one float32 matrix of exactly this shape."""
    values, rest = messages.take_matrix(body, name, rows=range(rows, rows + 1), columns=columns)
    messages.take_nothing(rest, name)
    return torch.from_numpy(values.copy())
