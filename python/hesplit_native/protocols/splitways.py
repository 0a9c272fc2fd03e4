"""`splitways`: the U-shaped split on encrypted activations (Split Ways, algorithms 3 and 4).

    client                                      server
      a = convolutions(x)     -- Enc(a) -->       Enc(y) = Enc(a) W^T + b
      J = loss(Dec(y))        <-- Enc(y) --
                              -- dJ/dy, dJ/dW --> dJ/da = dJ/dy W;  W, b updated
      convolutions updated    <-- dJ/da --

The server learns labels from dJ/dy and, when the batch is smaller than the number of outputs, the activations exactly (from dJ/dW and
dJ/dy). The gradients are computed from decrypted logits and released, so the logits are flooded with noise first, unless that is
switched off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native.errors import ProtocolError
from hesplit_native.layer.linear import LinearClient
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, ServerLayer, check_rows, take_tensor, values_work
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.encrypted import EncryptedLayer, encrypted_logits
from hesplit_native.protocols.halves import ClientSetup, Encryption, Halves
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms


class SplitWaysClient:
    """The client's half: what it sends for a forward and a backward pass."""

    def __init__(self, session: Session, linear: LinearClient, *, accumulate: int = 1) -> None:
        self.session = session
        self.linear = linear
        self.accumulate = accumulate
        self._sums: list[npt.NDArray[np.float32]] = []

    def prepare(self, x: Tensor) -> Tensor:
        """Activations within the agreed ranges."""
        return self.linear.clip_counted(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [n, out] of activations [n, in], fit to be released; a backward pass must follow."""
        return encrypted_logits(self.session, self.linear, MessageType.FORWARD, x)

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits for local use, without a backward pass."""
        return encrypted_logits(self.session, self.linear, MessageType.EVALUATE, x)

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da float32 [n, in] for dJ/dy [n, out]; sends dJ/dW = dJ/dy^T a with it. x is what was encrypted, clipped.

        With `accumulate` dJ/dW is kept for that many batches and sent once, with the last of them, as their sum.
        """
        body = messages.matrix(gradient.numpy(), "gradient")
        self._sums.append((gradient.T @ x).numpy())  # by torch, whose number of threads is the one that is set
        weight_gradient = b""
        if len(self._sums) == self.accumulate:
            weight_gradient = messages.matrix(sum(self._sums[1:], self._sums[0]), "weight gradient")
            self._sums.clear()
        reply = self.session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, body, weight_gradient)
        return take_tensor(reply.body, "input gradient", len(x), self.session.terms.in_features)


class SplitWaysServer:
    """The server's half: the linear layer, applied to ciphertexts, and its optimiser."""

    def __init__(self, terms: Terms, layer: TrainedLayer, public_material: bytes) -> None:
        self.terms = terms
        self.layer = layer
        self.encrypted = EncryptedLayer(terms, layer, public_material)
        self._rows: int | None = None
        self._bias: Tensor | None = None  # its gradient since the last update

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """What `answer` would take."""
        if kind in (MessageType.FORWARD, MessageType.EVALUATE):
            return self.encrypted.work(body)
        return values_work(self.terms, kind, body)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """The reply to a request; None if it is none of this protocol."""
        if kind in (MessageType.FORWARD, MessageType.EVALUATE):
            logits, rows, _ = self.encrypted.forward(body)
            if kind is MessageType.FORWARD:
                check_rows(rows, self.terms)
                self._rows = rows
            return MessageType.LOGITS, logits
        if kind is MessageType.BACKWARD:
            return MessageType.INPUT_GRADIENT, self._backward(body)
        return None

    def _backward(self, body: memoryview) -> bytes:
        if self._rows is None:
            raise ProtocolError("a gradient came without the activations it belongs to")
        rows, self._rows = self._rows, None
        out, width = self.terms.out_features, self.terms.in_features
        values, rest = messages.take_matrix(body, "gradient", rows=range(rows, rows + 1), columns=out)
        gradient = torch.from_numpy(values.copy())
        input_gradient = self.layer.input_gradient(gradient)
        bias_gradient = gradient.sum(0)
        self._bias = bias_gradient if self._bias is None else self._bias + bias_gradient
        if len(rest):  # the client may send dJ/dW for several batches together
            self.layer.step(self._bias, take_tensor(rest, "weight gradient", out, width))
            self._bias = None
            self.encrypted.encode()
        return messages.matrix(input_gradient.numpy(), "input gradient")


def _client(setup: ClientSetup, session: Session | None, encryption: Encryption | None) -> SplitWaysClient:
    assert session is not None
    assert isinstance(encryption, LinearClient)
    return SplitWaysClient(session, encryption, accumulate=setup.accumulate)


def _server(terms: Terms, layer: ServerLayer | None, public_material: bytes, labels: Tensor | None) -> SplitWaysServer:
    assert isinstance(layer, TrainedLayer)
    return SplitWaysServer(terms, layer, public_material)


def _encryption(setup: ClientSetup) -> tuple[LinearClient, bytes]:
    linear = setup.encryption()
    return linear, linear.public_material()


HALVES = Halves(_client, _server, TrainedLayer, _encryption)
