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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesplit_native import _core
from hesplit_native.errors import HESplitError, KeyMismatchError, ParameterError, ProtocolError
from hesplit_native.layer.linear import LinearClient, LinearServer
from hesplit_native.protocols import messages
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.plain import Answer, take_tensor
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms


class HoldsKey(Protocol):
    """A client of the core, whose key can be destroyed."""

    def destroy(self) -> None:
        """Zero the key."""
        ...


@contextmanager
def genuine_or_over(session: Session, client: HoldsKey) -> Iterator[None]:
    """What a client does with a reply that is not genuine: destroy the key and end the session like any other.

    Every visible reaction to a forged reply tells its forger about the key; so there is only one, and it is the last
    (docs/security.md).
    """
    try:
        yield
    except HESplitError as error:
        client.destroy()
        session.leave()
        raise ProtocolError(
            f"a reply was not genuine ({error}); the key was destroyed and the session ended. Start a new run"
        ) from error


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

        With `accumulate` dJ/dW is sent with every so many-th batch, as the sum over all since the last.
        """
        body = messages.matrix(gradient.numpy(), "gradient")
        self._sums.append((gradient.T @ x).numpy())  # by torch, whose number of threads is the one that is set
        weight_gradient = b""
        if len(self._sums) == self.accumulate:
            weight_gradient = messages.matrix(sum(self._sums[1:], self._sums[0]), "weight gradient")
            self._sums.clear()
        reply = self.session.exchange(MessageType.BACKWARD, MessageType.INPUT_GRADIENT, body, weight_gradient)
        return take_tensor(reply.body, "input gradient", len(x), self.session.terms.in_features)


def encrypted_logits(
    session: Session, linear: LinearClient, kind: MessageType, x: Tensor, *, weight_gradient_follows: bool = False
) -> Tensor:
    """Encrypt, exchange, decrypt. In training the logits are released with all that is computed from them: they are flooded."""
    phases = session.phases
    back = phases.enter("encrypt")
    request = linear.encrypt(x)
    phases.enter(back)
    reply = session.exchange(kind, MessageType.LOGITS, request)
    back = phases.enter("decrypt")
    flooded = kind is MessageType.FORWARD and linear.parameters.releases > 0
    decrypt = linear.decrypt_for_release if flooded else linear.decrypt
    with genuine_or_over(session, linear):
        y = decrypt(reply.body, weight_gradient_follows=weight_gradient_follows)
    phases.enter(back)
    return torch.from_numpy(y.astype(np.float32))


class EncryptedLayer:
    """A trained layer whose forward pass is on ciphertexts of one client."""

    def __init__(self, terms: Terms, layer: TrainedLayer, public_material: bytes) -> None:
        self.terms = terms
        self.layer = layer
        try:
            self.server = LinearServer(
                public_material, layer.linear.weight, layer.linear.bias, max_batch=terms.max_rows
            )
        except ParameterError as error:
            raise ProtocolError(f"handshake: the public material is for a layer of another shape: {error}") from error
        check_hash(terms, self.server.parameters.hash)
        self._encoded = layer.version

    def encode(self) -> None:
        """Take over the weights if they have changed: by this client's updates, or by another's."""
        if self._encoded != self.layer.version:
            self.server.set_weight(self.layer.linear.weight, self.layer.linear.bias)
            self._encoded = self.layer.version

    def forward(self, body: memoryview, *, keep: bool = False) -> tuple[bytes, int, _core.KeptRequest | None]:
        """Encrypted logits, the number of samples, and with `keep` the request for its weight gradient."""
        self.encode()
        return self.server.forward_training(body, keep=keep)


def check_hash(terms: Terms, actual: str) -> None:
    """The parameters that were agreed on are those of the public material."""
    if actual != terms.parameter_hash:
        raise KeyMismatchError(
            f"handshake: parameter_hash is {terms.parameter_hash!r}, that of the public material {actual!r}"
        )


class SplitWaysServer:
    """The server's half: the linear layer, applied to ciphertexts, and its optimiser."""

    def __init__(self, terms: Terms, layer: TrainedLayer, public_material: bytes) -> None:
        self.terms = terms
        self.layer = layer
        self.encrypted = EncryptedLayer(terms, layer, public_material)
        self._rows: int | None = None
        self._bias = torch.zeros(terms.out_features)  # its gradient since the last update

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
        self._bias += gradient.sum(0)
        if len(rest):  # the client may send dJ/dW for several batches together
            self.layer.step(self._bias, take_tensor(rest, "weight gradient", out, width))
            self._bias = torch.zeros(out)
            self.encrypted.encode()
        return messages.matrix(input_gradient.numpy(), "input gradient")


def check_rows(rows: int, terms: Terms) -> None:
    """A training request holds no more samples than the batch size that was agreed on."""
    if rows > terms.batch_size:
        raise ProtocolError(f"a training step of {rows} samples; the handshake agreed on {terms.batch_size}")
