"""What the protocols share that send activations encrypted to a server that holds the weights in the clear."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from hesplit_native import _core
from hesplit_native.errors import HESplitError, KeyMismatchError, ParameterError, ProtocolError, RangeError
from hesplit_native.layer.arrays import numpy_of
from hesplit_native.layer.costs import ServingCost
from hesplit_native.layer.linear import LinearClient, LinearServer, check_private
from hesplit_native.protocols.answers import values_work
from hesplit_native.protocols.costs import Work, weight_count
from hesplit_native.protocols.layer import TrainedLayer
from hesplit_native.protocols.messages import HEADER_BYTES, MessageType
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.terms import Terms
from hesplit_native.transport.channel import MAX_MESSAGE

_OPENED_COPIES = 4 * 8  # bytes for every weight of dJ/dW, opened and unmasked
_KEPT_LAYOUTS = 1 << 28  # bytes of encoded weights that the core keeps, or those of one layout if that is more


class HoldsKey(Protocol):
    """A client of the core, whose key can be destroyed."""

    def destroy(self) -> None:
        """Zero the key."""
        ...


class genuine_or_over:
    """Destroy the key and end the session like any other when a reply is not genuine.

    Every visible reaction to a forged reply tells its forger about the key; so there is only one, and it is the last
    (docs/security.md).
    """

    __slots__ = ("_client", "_session")

    def __init__(self, session: Session, client: HoldsKey) -> None:
        self._session, self._client = session, client

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, HESplitError):
            self._client.destroy()
            self._session.leave()
            raise ProtocolError(
                f"a reply was not genuine ({error}); the key was destroyed and the session ended. Start a new run"
            ) from error


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
    """A trained layer whose forward pass is on ciphertexts of one client; with `private` replies must hide its weights."""

    def __init__(self, terms: Terms, layer: TrainedLayer, public_material: bytes, *, private: bool = False) -> None:
        self.terms = terms
        self.layer = layer
        self._private = private
        # Views: the layer's parameters are changed in place, and torch takes longer to hand them out than the core to take them.
        self._weights = numpy_of(layer.linear.weight), numpy_of(layer.linear.bias)
        try:
            self.server = LinearServer(
                public_material,
                *self._weights,
                max_batch=terms.max_rows,
                max_reply_bytes=MAX_MESSAGE - HEADER_BYTES,
            )
        except RangeError as error:
            self._refuse_weights(error)
        except ParameterError as error:
            raise ProtocolError(f"handshake: the public material is for a layer of another shape: {error}") from error
        check_hash(terms, self.server.parameters.hash)
        if private:
            check_private(self.server.parameters)
        self._encoded = layer.version
        self._layouts: set[int] = set()  # bytes of the encoded weights of each

    def encode(self) -> None:
        """Take over the weights if they have changed: by this client's updates, or by another's."""
        if self._encoded != self.layer.version:
            try:
                self.server.set_weight(*self._weights)
            except RangeError as error:
                self._refuse_weights(error)
            self._encoded = self.layer.version
            self._layouts.clear()

    def _refuse_weights(self, error: RangeError) -> NoReturn:
        """Private weights beyond the agreed norm are refused without their own, which the cause says to the server's log alone."""
        if not self._private:
            raise error
        raise ProtocolError(
            "the server's weights outgrew the weight_norm that was agreed on: agree on a larger one, or train with a smaller "
            "learning rate"
        ) from error

    def work(self, body: memoryview, *, keep: bool = False) -> Work:
        """What `forward` would take."""
        return self.work_of(self.server.cost(body, keep=keep))

    def work_of(self, cost: ServingCost) -> Work:
        """What a message of this cost takes, together with the weights that are kept as they were encoded."""
        self._layouts.add(cost.layer_bytes)
        encoded = min(sum(self._layouts), max(*self._layouts, _KEPT_LAYOUTS))
        kept = cost.held_bytes + encoded
        return Work(cost.reply_bytes + kept + cost.working_bytes, kept, cost.multiplications)

    def forward(self, body: memoryview, *, keep: bool = False) -> tuple[bytes, int, _core.KeptRequest | None]:
        """Encrypted logits, the number of samples, and with `keep` the request for its weight gradient."""
        self.encode()
        return self.server.forward_training(body, keep=keep)


class StepWork:
    """What a training step takes that keeps a request for its weight gradient, message by message."""

    def __init__(self, encrypted: EncryptedLayer) -> None:
        self._encrypted = encrypted
        self._step = Work(0)  # so far

    def evaluation(self, body: memoryview) -> Work:
        """Of rows that come between: the step goes on afterwards."""
        work = self._encrypted.work(body)
        return Work(work.working + self._step.kept, work.kept + self._step.kept, work.multiplications)

    def forward(self, body: memoryview) -> Work:
        """Of the activations that a step begins with."""
        self._step = self._encrypted.work(body, keep=True)
        return self._step

    def gradient(self, kept: _core.KeptRequest) -> Work:
        """Of the masked weight gradient."""
        gradient = self._encrypted.work_of(self._encrypted.server.gradient_cost(kept))
        self._step = Work(self._step.kept + gradient.working, gradient.kept, gradient.multiplications)
        return self._step

    def opened(self, kind: MessageType, body: memoryview) -> Work:
        """Of what came back of it."""
        terms = self._encrypted.terms
        values = values_work(terms, kind, body)
        return Work(values.working + self._step.kept + _OPENED_COPIES * weight_count(terms))


def check_hash(terms: Terms, actual: str) -> None:
    """The parameters that were agreed on are those of the public material."""
    if actual != terms.parameter_hash:
        raise KeyMismatchError(
            f"handshake: parameter_hash is {terms.parameter_hash!r}, that of the public material {actual!r}"
        )
