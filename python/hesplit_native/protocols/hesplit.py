"""`hesplit`: as `splitways`, but the weight gradient stays encrypted on its way (Split Without a Leak).

    client                                      server
      a = convolutions(x)     -- Enc(a) -->       Enc(y) = Enc(a) W^T + b
      J = loss(Dec(y))        <-- Enc(y) --
                              -- dJ/dy -->        Enc(dW) = dJ/dy^T Enc(a), from the ciphertexts it has
      decrypts, floods        <-- Enc(dW + M) --  M uniform
                              -- dW + M -->       W, b updated;  dJ/da = dJ/dy W by the weights before that
      convolutions updated    <-- dJ/da --

The client does not see dW (it could compute it), the server does, through the change of its own weights. So the server learns what it
learns in `splitways`: labels, and activations when the batch is smaller than the number of outputs. Two decryptions are released in
every step: the gradient computed from the logits, and dW + M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesplit_native import _core
from hesplit_native.errors import ProtocolError
from hesplit_native.layer.linear import LinearClient
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, ServerLayer, check_rows, take_tensor
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.encrypted import EncryptedLayer, StepWork, encrypted_logits, genuine_or_over
from hesplit_native.protocols.halves import ClientSetup, Encryption, Halves
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms


class HESplitClient:
    """The client's half: what it sends for a forward and a backward pass."""

    def __init__(self, session: Session, linear: LinearClient) -> None:
        self.session = session
        self.linear = linear

    def prepare(self, x: Tensor) -> Tensor:
        """Activations within the agreed ranges."""
        return self.linear.clip_counted(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [n, out] of activations [n, in], fit to be released; a backward pass must follow."""
        return encrypted_logits(self.session, self.linear, MessageType.FORWARD, x, weight_gradient_follows=True)

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits for local use, without a backward pass."""
        return encrypted_logits(self.session, self.linear, MessageType.EVALUATE, x)

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da float32 [n, in] for dJ/dy [n, out]; on the way it opens the masked weight gradient."""
        body = messages.matrix(gradient.numpy(), "gradient")
        masked = self.session.exchange(MessageType.BACKWARD, MessageType.MASKED_GRADIENT, body)
        back = self.session.phases.enter("decrypt")
        with genuine_or_over(self.session, self.linear):
            opened = self.linear.open_weight_gradient(bytes(masked.body), gradient)
        self.session.phases.enter(back)
        reply = self.session.exchange(MessageType.OPENED_GRADIENT, MessageType.INPUT_GRADIENT, opened)
        return take_tensor(reply.body, "input gradient", len(x), self.session.terms.in_features)


class HESplitServer:
    """The server's half: the linear layer, both its passes on ciphertexts, and its optimiser."""

    def __init__(self, terms: Terms, layer: TrainedLayer, public_material: bytes) -> None:
        self.terms = terms
        self.layer = layer
        self.encrypted = EncryptedLayer(terms, layer, public_material)
        self._step = StepWork(self.encrypted)
        self._kept: tuple[_core.KeptRequest, int] | None = None
        self._masked: tuple[_core.MaskedGradient, Tensor] | None = None

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """What `answer` would take."""
        if kind is MessageType.EVALUATE:
            return self._step.evaluation(body)
        if kind is MessageType.FORWARD:
            return self._step.forward(body)
        if kind is MessageType.BACKWARD and self._kept is not None:
            return self._step.gradient(self._kept[0])
        return self._step.opened(kind, body)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """The reply to a request; None if it is none of this protocol."""
        if kind in (MessageType.FORWARD, MessageType.EVALUATE):
            logits, rows, kept = self.encrypted.forward(body, keep=kind is MessageType.FORWARD)
            if kept is not None:
                check_rows(rows, self.terms)
                self._kept, self._masked = (kept, rows), None
            return MessageType.LOGITS, logits
        if kind is MessageType.BACKWARD:
            return MessageType.MASKED_GRADIENT, self._mask(body)
        if kind is MessageType.OPENED_GRADIENT:
            return MessageType.INPUT_GRADIENT, self._update(body)
        return None

    def _mask(self, body: memoryview) -> bytes:
        if self._kept is None:
            raise ProtocolError("a gradient came without the activations it belongs to")
        (kept, rows), self._kept = self._kept, None
        gradient = take_tensor(body, "gradient", rows, self.terms.out_features)
        message, masked = self.encrypted.server.weight_gradient(kept, gradient)
        self._masked = masked, gradient
        return message

    def _update(self, body: memoryview) -> bytes:
        if self._masked is None:
            raise ProtocolError("an opened weight gradient came without a masked one")
        (masked, gradient), self._masked = self._masked, None
        weight_gradient = torch.from_numpy(self.encrypted.server.unmask(masked, bytes(body))).float()
        # The bias needs no ciphertext: its gradient is the sum of dJ/dy.
        input_gradient = self.layer.update(gradient, weight_gradient)
        self.encrypted.encode()
        return messages.matrix(input_gradient.numpy(), "input gradient")


def _client(setup: ClientSetup, session: Session | None, encryption: Encryption | None) -> HESplitClient:
    assert session is not None
    assert isinstance(encryption, LinearClient)
    return HESplitClient(session, encryption)


def _server(terms: Terms, layer: ServerLayer | None, public_material: bytes, labels: Tensor | None) -> HESplitServer:
    assert isinstance(layer, TrainedLayer)
    return HESplitServer(terms, layer, public_material)


def _encryption(setup: ClientSetup) -> tuple[LinearClient, bytes]:
    linear = setup.encryption(weight_gradients=True)
    return linear, linear.public_material()


HALVES = Halves(_client, _server, TrainedLayer, _encryption)
