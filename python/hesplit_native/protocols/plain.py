"""`plain`: the U-shaped split without encryption (Split Ways, algorithms 1 and 2).

    client                                  server
      a = convolutions(x)     -- a -->        y = a W^T + b
      J = loss(y, labels)     <-- y --
                              -- dJ/dy -->    dJ/da = dJ/dy W;  W, b updated from dJ/dy^T a
      convolutions updated    <-- dJ/da --

The server learns the activations, and labels from dJ/dy.
"""

from __future__ import annotations

from torch import Tensor

from hesplit_native.errors import ProtocolError
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, ServerLayer, take_activations, take_tensor, values_work
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.halves import ClientSetup, Encryption, Halves
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms


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

    def __init__(self, terms: Terms, layer: TrainedLayer) -> None:
        self.terms = terms
        self.layer = layer
        self._activations: Tensor | None = None

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """What `answer` would take."""
        return values_work(self.terms, kind, body)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """The reply to a request; None if it is none of this protocol."""
        if kind in (MessageType.FORWARD, MessageType.EVALUATE):
            return MessageType.LOGITS, self._forward(body, training=kind is MessageType.FORWARD)
        if kind is MessageType.BACKWARD:
            return MessageType.INPUT_GRADIENT, self._backward(body)
        return None

    def _forward(self, body: memoryview, *, training: bool) -> bytes:
        x = take_activations(body, self.terms, training=training)
        if training:
            self._activations = x
        return messages.matrix(self.layer.forward(x).numpy(), "logits")

    def _backward(self, body: memoryview) -> bytes:
        if self._activations is None:
            raise ProtocolError("a gradient came without the activations it belongs to")
        x, self._activations = self._activations, None
        gradient = take_tensor(body, "gradient", len(x), self.terms.out_features)
        return messages.matrix(self.layer.update(gradient, gradient.T @ x).numpy(), "input gradient")


def _client(setup: ClientSetup, session: Session | None, encryption: Encryption | None) -> PlainClient:
    assert session is not None
    return PlainClient(session)


def _server(terms: Terms, layer: ServerLayer | None, public_material: bytes, labels: Tensor | None) -> PlainServer:
    assert isinstance(layer, TrainedLayer)
    return PlainServer(terms, layer)


HALVES = Halves(_client, _server, TrainedLayer)
