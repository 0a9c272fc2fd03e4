"""`vanilla`: split learning with the labels at the server (Abuadbba et al., Split Ways' reference 1).

    client                                    server
      a = convolutions(x)     -- a, labels -->  y = layers(a);  J = loss(y, labels);  layers updated
      convolutions updated    <-- dJ/da --

The server learns the activations and the labels. It holds all fully connected layers: one, or the base paper's two.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from hesplit_native.errors import DataError, WireError
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, ServerLayer, take_activations, take_tensor, values_work
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.halves import ClientSetup, Encryption, Halves
from hesplit_native.protocols.layer import load_optimizer, optimizer_tensors
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms, initial_linear, make_optimizer
from hesplit_native.seeding import seeded


class VanillaClient:
    """The client's half: activations and labels go, the gradient comes back."""

    def __init__(self, session: Session, classes: int) -> None:
        self.session = session
        self.classes = classes

    def learn(self, x: Tensor, labels: Tensor) -> tuple[float, int, Tensor]:
        """Loss, correct predictions and dJ/da [n, in] for activations [n, in] and labels [n]."""
        body = messages.matrix(x.detach().numpy(), "activations")
        column = messages.matrix(labels.numpy().astype(np.float32)[:, None], "labels")
        reply = self.session.exchange(MessageType.LEARN, MessageType.LEARNT, body, column)
        outcome, rest = messages.take_matrix(reply.body, "loss", rows=range(1, 2), columns=2)
        gradient = take_tensor(rest, "input gradient", len(x), self.session.terms.in_features)
        return float(outcome[0, 0]), int(outcome[0, 1]), gradient

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits float32 [n, classes]."""
        body = messages.matrix(x.detach().numpy(), "activations")
        reply = self.session.exchange(MessageType.EVALUATE, MessageType.LOGITS, body)
        return take_tensor(reply.body, "logits", len(x), self.classes)


class VanillaLayers:
    """The server's fully connected layers with their optimiser."""

    def __init__(self, terms: Terms) -> None:
        first = initial_linear(terms)
        self.classes = terms.out_features
        self.network = nn.Sequential(first)
        if terms.hidden:
            self.classes = terms.classes
            self.network = nn.Sequential(first, nn.LeakyReLU(), initial_head(terms))
        self.optimizer = make_optimizer(terms.server_optimizer, self.network.parameters(), terms.learning_rate)
        self.version = 0

    @property
    def module(self) -> nn.Module:
        """All of them."""
        return self.network

    @property
    def linear(self) -> nn.Linear:
        """The one that takes the client's activations."""
        return cast(nn.Linear, self.network[0])

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs."""
        return {f"network.{k}": v for k, v in self.network.state_dict().items()} | optimizer_tensors(self.optimizer)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; DataError if they belong to other layers."""
        prefix = "network."
        try:
            self.network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
            load_optimizer(self.optimizer, tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError(f"the checkpoint belongs to other layers: {error}") from error


class VanillaServer:
    """The server's half: layers, labels and loss."""

    def __init__(self, terms: Terms, layer: VanillaLayers) -> None:
        self.terms = terms
        self.layer = layer
        self.criterion = nn.CrossEntropyLoss()

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """What `answer` would take."""
        return values_work(self.terms, kind, body)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """The reply to a request; None if it is none of this protocol."""
        if kind is MessageType.LEARN:
            return MessageType.LEARNT, self._learn(body)
        if kind is MessageType.EVALUATE:
            with torch.no_grad():
                logits = self.layer.network(take_activations(body, self.terms, training=False))
            return MessageType.LOGITS, messages.matrix(logits.numpy(), "logits")
        return None

    def _learn(self, body: memoryview) -> bytes:
        rows = range(1, self.terms.batch_size + 1)
        values, rest = messages.take_matrix(body, "activations", rows=rows, columns=self.terms.in_features)
        x = torch.from_numpy(values.copy()).requires_grad_()
        column = take_tensor(rest, "labels", len(x), 1)[:, 0]
        labels = column.long()
        if not torch.equal(labels.float(), column) or labels.min() < 0 or labels.max() >= self.layer.classes:
            raise WireError(f"labels: expected integers from 0 to {self.layer.classes - 1}")
        logits = self.layer.network(x)
        loss = self.criterion(logits.softmax(1) if self.terms.double_softmax else logits, labels)
        self.layer.optimizer.zero_grad()
        loss.backward()
        self.layer.optimizer.step()
        self.layer.version += 1
        correct = int((logits.detach().argmax(1) == labels).sum())
        assert x.grad is not None
        outcome = np.array([[loss.item(), correct]], np.float32)
        return messages.matrix(outcome, "loss") + messages.matrix(x.grad.numpy(), "input gradient")


def initial_head(terms: Terms) -> nn.Linear:
    """The base paper's second fully connected layer, in the state that every protocol starts from under one seed."""
    with seeded(terms.weight_seed + 1):
        return nn.Linear(terms.out_features, terms.classes)


def _client(setup: ClientSetup, session: Session | None, encryption: Encryption | None) -> VanillaClient:
    assert session is not None
    return VanillaClient(session, setup.terms.classes)


def _server(terms: Terms, layer: ServerLayer | None, public_material: bytes, labels: Tensor | None) -> VanillaServer:
    assert isinstance(layer, VanillaLayers)
    return VanillaServer(terms, layer)


HALVES = Halves(_client, _server, VanillaLayers)
