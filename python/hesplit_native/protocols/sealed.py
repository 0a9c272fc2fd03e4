"""`sealed`: the server holds W and b only as ciphertexts, and learns nothing but sizes and timing.

    client                                          server
      draws W, b              -- Enc(W, b) -->        keeps them
      a = convolutions(x)     -- Enc(a) -->           Enc(y) = Enc(a) x Enc(W)^T
      J = loss(Dec(y))        <-- Enc(y) --
      dW = dJ/dy^T a; step    -- Enc(dJ/dy) -->       Enc(dJ/da) = Enc(dJ/dy) x Enc(W)
                               (every few steps with Enc(W, b), which take the others' place)
      convolutions updated    <-- Enc(dJ/da) --

Everything that the server receives is a ciphertext under fresh randomness. Nothing that the client decrypts is released, so nothing
is flooded. Any optimiser works, because the client runs it.

What it is not: the client computes every step, so it knows W, and the layer itself would be cheaper to run locally. It is encrypted
custody of shared parameters for a consortium with one key, and shows what a split that leaks nothing costs. One client that
colludes with the server opens the consortium's key. Between two times that the weights are sent (`Parameters.updates`) the client adds
what the server's copy lacks to logits and dJ/da, exactly: it knows what it sent. With ``updates=1`` the server is never behind.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hesplit_native.errors import ProtocolError
from hesplit_native.layer.keys import SecretKey
from hesplit_native.layer.linear import SealedClient, SealedServer
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, ServerLayer
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.encrypted import check_hash, genuine_or_over
from hesplit_native.protocols.halves import ClientSetup, Encryption, Halves
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import HEADER_BYTES, MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import MAX_MESSAGE


class SealedProtocolClient:
    """The client's half. `layer` holds the weights in the clear, and the optimiser that the client chose."""

    def __init__(self, session: Session, linear: SealedClient, layer: TrainedLayer) -> None:
        self.session = session
        self.linear = linear
        self.layer = layer

    def prepare(self, x: Tensor) -> Tensor:
        """Activations within the agreed ranges."""
        return self.linear.clip_counted(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [n, out] of activations [n, in]; a backward pass must follow."""
        return self._logits(MessageType.FORWARD, x)

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits without a backward pass."""
        return self._logits(MessageType.EVALUATE, x)

    def refresh(self) -> None:
        """Send all weights anew, where others than this client's steps have replaced them."""
        back = self.session.phases.enter("encrypt")
        sealed = self.linear.seal(self.layer.linear.weight, self.layer.linear.bias)
        self.session.phases.enter(back)
        reply = self.session.exchange(MessageType.REFRESH, MessageType.DONE, sealed)
        messages.take_nothing(reply.body, "done")

    def settle(self) -> None:
        """Send the weights if the server's copy lacks steps: where it is kept, at checkpoints and in the end."""
        if self.linear.behind:
            self.refresh()

    def _logits(self, kind: MessageType, x: Tensor) -> Tensor:
        phases = self.session.phases
        back = phases.enter("encrypt")
        request = self.linear.encrypt(x)
        phases.enter(back)
        reply = self.session.exchange(kind, MessageType.LOGITS, request)
        back = phases.enter("decrypt")
        with genuine_or_over(self.session, self.linear):
            y = self.linear.decrypt(reply.body)
        phases.enter(back)
        return torch.from_numpy(y.astype(np.float32))

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da float32 [n, in] for dJ/dy [n, out], by the weights before the step that this makes."""
        phases = self.session.phases
        back = phases.enter("optimizer")
        self.layer.step(gradient.sum(0), gradient.T @ x)
        phases.enter("encrypt")
        update = self.linear.update(gradient, self.layer.linear.weight, self.layer.linear.bias)
        phases.enter(back)
        reply = self.session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, update)
        back = phases.enter("decrypt")
        with genuine_or_over(self.session, self.linear):
            values = self.linear.decrypt_input_gradient(reply.body)
        phases.enter(back)
        return torch.from_numpy(values.astype(np.float32))


class SealedProtocolServer:
    """The server's half: ciphertexts, which it multiplies with ciphertexts."""

    def __init__(self, terms: Terms, sealed: bytes) -> None:
        self.linear = SealedServer(sealed, max_batch=terms.max_rows, max_reply_bytes=MAX_MESSAGE - HEADER_BYTES)
        check_hash(terms, self.linear.parameters.hash)
        if (self.linear.in_features, self.linear.out_features) != (terms.in_features, terms.out_features):
            raise ProtocolError("handshake: the sealed weights are of a layer of another shape")

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """What `answer` would take."""
        if kind in (MessageType.FORWARD, MessageType.EVALUATE, MessageType.BACKWARD):
            cost = self.linear.cost(body)
            working = cost.reply_bytes + cost.held_bytes + cost.layer_bytes + cost.working_bytes
            return Work(working, multiplications=cost.multiplications)
        return Work(0)  # the reserve has room for all weights anew

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """The reply to a request; None if it is none of this protocol."""
        if kind in (MessageType.FORWARD, MessageType.EVALUATE):
            return MessageType.LOGITS, self.linear.forward(body)
        if kind is MessageType.BACKWARD:
            return MessageType.INPUT_GRADIENT, self.linear.update(body)
        if kind is MessageType.REFRESH:
            self.linear.refresh(bytes(body))
            return MessageType.DONE, b""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs: ciphertexts."""
        return {"sealed": torch.frombuffer(bytearray(self.linear.saved()), dtype=torch.uint8)}


def _client(setup: ClientSetup, session: Session | None, encryption: Encryption | None) -> SealedProtocolClient:
    assert session is not None
    assert isinstance(encryption, SealedClient)
    assert setup.layer is not None
    return SealedProtocolClient(session, encryption, setup.layer)


def _server(
    terms: Terms, layer: ServerLayer | None, public_material: bytes, labels: Tensor | None
) -> SealedProtocolServer:
    return SealedProtocolServer(terms, public_material)


def _encryption(setup: ClientSetup) -> tuple[SealedClient, bytes]:
    assert setup.parameters is not None
    assert setup.layer is not None
    key = setup.key or SecretKey.generate(setup.parameters)
    linear = SealedClient(key, setup.terms.in_features, setup.terms.out_features, weight_norm=setup.weight_norm)
    return linear, linear.seal(setup.layer.linear.weight, setup.layer.linear.bias)


HALVES = Halves(_client, _server, encryption=_encryption)
