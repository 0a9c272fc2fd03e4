"""`vertical`: features and a network at the client, labels and the layer at the server (bank and partner, hospital and registry).

    client                                      server
      a = network(x)          -- rows, Enc(a) ->  Enc(y + M1) = Enc(a) W^T + b + M1, re-randomised;  M1 uniform
      decrypts, floods        <-- Enc(y + M1) --
                              -- y + M1 -->       J = loss(y, labels of these rows)
      decrypts, floods        <-- Enc(dW + M2) -  from dJ/dy and the ciphertexts it has, re-randomised;  M2 uniform
                              -- dW + M2 -->      W, b updated;  dJ/da = dJ/dy W by the weights before that
      network updated         <-- J, dJ/da --

Both sides know which rows are meant, as after a private set intersection. The client learns the mean loss, how many of the rows were
predicted correctly and dJ/da, and what follows from these, which is much where there are few outputs (docs/security.md). Ciphertexts
say nothing more: each that it gets is re-randomised under its key, with a uniform mask on what it decrypts
(`hesplit_native.layer.linear.LinearServer.forward_share`). The server learns y and dJ/dW, and what
follows from these: activations where a batch is smaller than the number of outputs (docs/security.md). Predictions are private
replies: the client learns their logits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hesplit_native import _core
from hesplit_native.errors import ProtocolError, RangeError, WireError
from hesplit_native.layer.linear import LinearClient
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, ServerLayer, take_tensor
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.encrypted import EncryptedLayer, StepWork, encrypted_logits, genuine_or_over
from hesplit_native.protocols.halves import ClientSetup, Encryption, Halves
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms


class VerticalClient:
    """The client's half: what it sends for a step on rows of the server's labels."""

    def __init__(self, session: Session, linear: LinearClient) -> None:
        self.session = session
        self.linear = linear

    def learn(self, x: Tensor, labels: Tensor) -> tuple[float, float, Tensor]:
        """Mean loss, correct predictions and dJ/da [n, in] for activations [n, in]; `labels` [n] are rows of the server's labels."""
        session, phases = self.session, self.session.phases
        inside = self.linear.clip_counted(x.detach())
        back = phases.enter("encrypt")
        request = self.linear.encrypt(inside)
        phases.enter(back)
        named = messages.rows(labels.numpy())
        share = session.exchange(MessageType.LEARN, MessageType.SHARE, named, request)
        back = phases.enter("decrypt")
        with genuine_or_over(session, self.linear):
            opened = self.linear.open_share(share.body, weight_gradient_follows=True)
        phases.enter(back)
        masked = session.exchange(MessageType.OPENED_SHARE, MessageType.MASKED_GRADIENT, opened)
        back = phases.enter("decrypt")
        with genuine_or_over(session, self.linear):
            opened = self.linear.open_weight_gradient(bytes(masked.body))
        phases.enter(back)
        reply = session.exchange(MessageType.OPENED_GRADIENT, MessageType.INPUT_GRADIENT, opened)
        outcome, rest = messages.take_matrix(reply.body, "loss", rows=range(1, 2), columns=2)
        gradient = take_tensor(rest, "input gradient", len(x), session.terms.in_features)
        return float(outcome[0, 0]), float(outcome[0, 1]), gradient

    def evaluate(self, x: Tensor) -> Tensor:
        """Logits float32 [n, out] for local use."""
        return encrypted_logits(self.session, self.linear, MessageType.EVALUATE, self.linear.clip_counted(x))


class VerticalServer:
    """The server's half: the layer, its labels, loss and optimiser."""

    def __init__(self, terms: Terms, layer: TrainedLayer, public_material: bytes, labels: Tensor | None) -> None:
        if labels is None:
            raise ProtocolError(
                "handshake: this server has no labels of its own, which vertical needs (serve --labels)"
            )
        self.terms = terms
        self.layer = layer
        self.labels = check_labels(labels, terms.out_features)
        self.encrypted = EncryptedLayer(terms, layer, public_material, private=True)
        self._step = StepWork(self.encrypted)
        self._shared: tuple[_core.Share, _core.KeptRequest, Tensor] | None = None
        self._masked: tuple[_core.MaskedGradient, Tensor, bytes] | None = None

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """What `answer` would take."""
        if kind is MessageType.EVALUATE:
            return self._step.evaluation(body)
        if kind is MessageType.LEARN:
            return self._step.forward(self._take_rows(body)[1])
        if kind is MessageType.OPENED_SHARE and self._shared is not None:
            return self._step.gradient(self._shared[1])
        return self._step.opened(kind, body)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """The reply to a request; None if it is none of this protocol."""
        if kind is MessageType.EVALUATE:
            return MessageType.LOGITS, self.encrypted.forward(body)[0]
        if kind is MessageType.LEARN:
            return MessageType.SHARE, self._share(body)
        if kind is MessageType.OPENED_SHARE:
            return MessageType.MASKED_GRADIENT, self._mask(body)
        if kind is MessageType.OPENED_GRADIENT:
            return MessageType.INPUT_GRADIENT, self._update(body)
        return None

    def _take_rows(self, body: memoryview) -> tuple[Tensor, memoryview]:
        rows, rest = messages.take_rows(body, "rows", most=self.terms.batch_size, end=len(self.labels))
        return torch.from_numpy(rows), rest

    def _share(self, body: memoryview) -> bytes:
        self._shared = self._masked = None
        rows, request = self._take_rows(body)
        self.encrypted.encode()
        message, share, samples, kept = self.encrypted.server.forward_share(request, keep=True)
        if samples != len(rows):
            raise WireError(f"activations of {samples} samples for {len(rows)} rows")
        assert kept is not None
        self._shared = share, kept, self.labels[rows]
        return message

    def _mask(self, body: memoryview) -> bytes:
        if self._shared is None:
            raise ProtocolError("an opened share came without the activations it belongs to")
        (share, kept, labels), self._shared = self._shared, None
        logits = torch.from_numpy(self.encrypted.server.join(share, bytes(body))).float().requires_grad_()
        loss, right = objective(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        message, masked = self.encrypted.server.weight_gradient(kept, gradient)
        outcome = np.array([[loss.item(), right]], np.float32)
        self._masked = masked, gradient, messages.matrix(outcome, "loss")
        return message

    def _update(self, body: memoryview) -> bytes:
        if self._masked is None:
            raise ProtocolError("an opened weight gradient came without a masked one")
        (masked, gradient, outcome), self._masked = self._masked, None
        weight_gradient = torch.from_numpy(self.encrypted.server.unmask(masked, bytes(body))).float()
        # The bias needs no ciphertext: its gradient is the sum of dJ/dy.
        input_gradient = self.layer.update(gradient, weight_gradient)
        self.encrypted.encode()
        return outcome + messages.matrix(input_gradient.numpy(), "input gradient")


def check_labels(labels: Tensor, outputs: int) -> Tensor:
    """Classes int64 [n] below `outputs`, or independent labels 0 or 1 as float32 [n, outputs].

    Raises
    ------
    ProtocolError
        For others; what they are is in its cause, for the server's log alone.
    """
    classes = labels.ndim == 1 and not labels.is_floating_point() and len(labels) > 0
    if classes and int(labels.min()) >= 0 and int(labels.max()) < outputs:
        return labels.long()
    zeros_and_ones = bool(((labels == 0) | (labels == 1)).all())
    if labels.ndim == 2 and labels.shape[1] == outputs and len(labels) and zeros_and_ones:
        return labels.float()
    about = f"{list(labels.shape)} {str(labels.dtype).removeprefix('torch.')}" + (
        f", up to {labels.max()}" if labels.numel() else ""
    )
    raise ProtocolError(f"handshake: this server's labels do not fit a layer of {outputs} outputs") from RangeError(
        f"the labels are {about}; for {outputs} outputs they are classes [n] or zeros and ones [n, {outputs}]"
    )


def objective(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The mean loss of logits [n, out], and how many rows are predicted as they are labelled, whole or in part.

    Cross-entropy of classes [n], or of independent labels [n, out]; a mean of either has |dJ/dy| that sum to 1 at most.
    """
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels), float((logits.argmax(1) == labels).sum())
    loss = functional.binary_cross_entropy_with_logits(logits, labels)
    return loss, float(((logits > 0) == (labels > 0.5)).double().mean(1).sum())


def _client(setup: ClientSetup, session: Session | None, encryption: Encryption | None) -> VerticalClient:
    assert session is not None
    assert isinstance(encryption, LinearClient)
    return VerticalClient(session, encryption)


def _server(terms: Terms, layer: ServerLayer | None, public_material: bytes, labels: Tensor | None) -> VerticalServer:
    assert isinstance(layer, TrainedLayer)
    return VerticalServer(terms, layer, public_material, labels)


def _encryption(setup: ClientSetup) -> tuple[LinearClient, bytes]:
    linear = setup.encryption(weight_gradients=True)
    return linear, linear.public_material()


HALVES = Halves(_client, _server, TrainedLayer, _encryption)
