"""`splitways`: the U-shaped split on encrypted activations (Split Ways, algorithms 3 and 4).

    client                                      server
      a = convolutions(x)     -- Enc(a) -->       Enc(y) = Enc(a) W^T + b
      J = loss(Dec(y))        <-- Enc(y) --
                              -- dJ/dy, dJ/dW --> dJ/da = dJ/dy W;  W, b updated
      convolutions updated    <-- dJ/da --

The server learns labels from dJ/dy and, when the batch is smaller than the number of outputs, the activations exactly (from dJ/dW and
dJ/dy). The gradients are computed from decrypted logits and released without noise flooding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hesplit_native.errors import KeyMismatchError, ParameterError, ProtocolError
from hesplit_native.linear import LinearClient, LinearServer
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.plain import apply_gradients, take_gradient, take_tensor
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms, initial_linear, make_optimizer


class SplitWaysClient:
    """The client's half: what it sends for a forward and a backward pass."""

    def __init__(self, session: Session, linear: LinearClient) -> None:
        self.session = session
        self.linear = linear

    def prepare(self, x: Tensor) -> Tensor:
        """Activations within the agreed ranges."""
        return self.linear.clip_counted(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 [n, out] of activations [n, in]; a backward pass must follow."""
        return self._logits(MessageType.FORWARD, x)

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits without a backward pass."""
        return self._logits(MessageType.EVALUATE, x)

    def _logits(self, kind: MessageType, x: Tensor) -> Tensor:
        phases = self.session.phases
        back = phases.enter("encrypt")
        request = self.linear.encrypt(x)
        phases.enter(back)
        reply = self.session.exchange(kind, MessageType.LOGITS, request)
        back = phases.enter("decrypt")
        y = torch.from_numpy(self.linear.decrypt(bytes(reply.body)).astype(np.float32))
        phases.enter(back)
        return y

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """dJ/da float32 [n, in] for dJ/dy [n, out]; sends dJ/dW = dJ/dy^T a with it. x is what was encrypted, clipped."""
        body = messages.matrix(gradient.numpy(), "gradient")
        weight_gradient = messages.matrix((gradient.T @ x).numpy(), "weight gradient")
        reply = self.session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, body, weight_gradient)
        return take_tensor(reply.body, "input gradient", len(x), self.session.terms.in_features)


class SplitWaysServer:
    """The server's half: the linear layer, applied to ciphertexts, and its optimiser."""

    def __init__(self, terms: Terms, public_material: bytes) -> None:
        self.terms = terms
        self.linear = initial_linear(terms)
        self.optimizer = make_optimizer(terms.server_optimizer, self.linear.parameters(), terms.learning_rate)
        try:
            self.encrypted = LinearServer(
                public_material, self.linear.weight, self.linear.bias, max_batch=terms.max_rows
            )
        except ParameterError as error:
            raise ProtocolError(f"handshake: the public material is for a layer of another shape: {error}") from error
        if self.encrypted.parameters.hash != terms.parameter_hash:
            raise KeyMismatchError(
                f"handshake: parameter_hash is {terms.parameter_hash!r}, "
                f"that of the public material {self.encrypted.parameters.hash!r}"
            )
        self._awaiting_gradient = False

    def forward(self, body: memoryview, *, training: bool) -> bytes:
        """The body of the encrypted logits for the body of a request."""
        reply = self.encrypted.forward(bytes(body))
        self._awaiting_gradient = self._awaiting_gradient or training
        return reply

    def backward(self, body: memoryview) -> bytes:
        """The body of dJ/da for the body of dJ/dy and dJ/dW; updates the layer."""
        if not self._awaiting_gradient:
            raise ProtocolError("a gradient came without the activations it belongs to")
        self._awaiting_gradient = False
        out_features = self.terms.out_features
        gradient, rest = take_gradient(body, range(1, self.terms.batch_size + 1), out_features)
        weight_gradient, rest = messages.take_matrix(
            rest, "weight gradient", rows=range(out_features, out_features + 1), columns=self.terms.in_features
        )
        messages.take_nothing(rest, "weight gradient")
        input_gradient = apply_gradients(self, gradient, torch.from_numpy(weight_gradient.copy()))
        self.encrypted.set_weight(self.linear.weight, self.linear.bias)
        return messages.matrix(input_gradient.numpy(), "input gradient")
