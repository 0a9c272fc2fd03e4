"""A malicious server that answers (0, K x^j) instead of an encrypted product.

What the client decrypts is then K times coefficients of its key, in range like any logit, and what it releases tells them: flooding
does not help, because the values are as large as the server likes. Nothing here claims to stop that (docs/security.md); what limits
it is that a key ends: with a fresh key per step a server learns a few coefficients of each, and of a key that was destroyed nothing
more at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from hesplit_native import _core
from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ParameterError, ProtocolError
from hesplit_native.privacy.attacks.keys import Ternary, honest_server, open_request, ring_degree
from hesplit_native.privacy.attacks.labels import probabilities
from hesplit_native.privacy.attacks.malicious import victim
from hesplit_native.privacy.transcript import Step, Transcript
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, Answers
from hesplit_native.protocols.costs import Work
from hesplit_native.protocols.messages import MessageType
from hesplit_native.training.config import RunConfig


@dataclass
class Forger:
    """Stands before an honest `splitways` server, forges its replies and reads the client's gradients.

    Outputs of the last product stay 0, so that the others of a row follow from their differences to them. Each of the other products
    asks for the coefficients j, j + width, j + 2 width, ... of the key, for a j of its own.
    """

    honest: Answers
    server: _core.LinearServer
    logit: float
    key: npt.NDArray[np.float64] = field(init=False)  # NaN where unknown
    replies: int = 0
    request: bytes = b""
    # By product: the places in the key [outputs, samples] that the present logits tell; negative ones with the opposite sign.
    _wanted: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = np.full(ring_degree(self.server), np.nan)

    @property
    def known(self) -> float:
        """The share of the key that has been read."""
        return float((~np.isnan(self.key)).mean())

    def work(self, kind: MessageType, body: memoryview) -> Work:
        """As the honest server."""
        return self.honest.work(kind, body)

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """As the honest server, but for what it is made to say."""
        if kind is MessageType.BACKWARD:
            self._read(body)
        answer = self.honest.answer(kind, body)
        if kind is not MessageType.FORWARD or answer is None:
            return answer
        self.request = bytes(body)
        return answer[0], self._forge(self.request, answer[1])

    def _forge(self, request: bytes, genuine: bytes) -> bytes:
        reply = _core.inspect_reply(self.server, genuine)
        bits, products = reply["bits"], len(reply["ciphertexts"])
        if products < 2:
            raise ParameterError("the forger needs a layer with at least two products")
        size = round(min(self.logit * reply["scale"], 2.0 ** (bits - 1)))
        forged, self._wanted = [], []
        for p, ciphertext in enumerate(reply["ciphertexts"]):
            shift = self._shift(reply["width"], products, p)
            c1 = np.zeros_like(ciphertext["c1"])
            if p < products - 1:
                c1[shift] = size
            forged.append((np.zeros_like(ciphertext["c0"]), c1))
            self._wanted.append((ciphertext["positions"] - shift).reshape(-1, reply["samples"]))
        self.replies += 1
        return _core.forge_reply(self.server, request, bits, reply["scale"], forged)

    def _shift(self, width: int, products: int, p: int) -> int:
        return (self.replies * (products - 1) + p) % width

    def _read(self, body: memoryview) -> None:
        gradient, _ = messages.take_matrix(body, "gradient", rows=range(1, 65537), columns=self.server.outputs)
        logits = np.log(np.clip(probabilities(gradient), 1e-30, None))
        values = np.rint((logits - logits[:, -1:]) / self.logit)
        column = 0
        for positions in self._wanted[:-1]:
            for at in positions:
                sign = np.where(at < 0, -1, 1)  # x^-i is -x^(N - i)
                self.key[at % len(self.key)] = np.clip(sign * values[:, column], -1, 1)
                column += 1


@dataclass(frozen=True)
class Extraction:
    """What the malicious server got by `steps` replies: the `known` share of a key, and whether that `opens` the last request.

    `ended` is why the client ended the session, if it did.
    """

    steps: int
    known: float
    opens: bool
    key: Ternary
    ended: str = ""


def extract_key(config: RunConfig, dataset: Dataset, *, logit: float = 5.0, steps: int = 600) -> Extraction:
    """Let a client train against the forger until it has a key, gives up, or the client does.

    `logit` is what a coefficient of 1 decrypts to. At the edge of the range, where no genuine logit comes, the client destroys its key
    and ends the session; anything below looks genuine to it.
    """
    if config.protocol != "splitways":
        raise ParameterError("the forger speaks splitways")
    client, session = victim(config, dataset)
    network = client.task.network
    assert client.parameters is not None
    transcript = Transcript("splitways", network.activations, network.outputs, len(dataset.classes), config.batch_size)
    assert client.linear is not None
    transcript.material = client.linear.public_material()  # type: ignore[union-attr]
    server = honest_server(transcript)
    forger = Forger(session.protocol, server, logit)
    session.protocol = forger
    x, y = torch.from_numpy(dataset.train_x), torch.from_numpy(dataset.train_y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(config.seed))
    ended, done = "", 0
    try:
        for done in range(1, steps + 1):
            at = (done - 1) * config.batch_size % (len(x) - config.batch_size)
            client.learn(x[order[at : at + config.batch_size]], y[order[at : at + config.batch_size]])
            if forger.known == 1.0:
                break
    except ProtocolError as error:
        ended = str(error)
    key = np.nan_to_num(forger.key).astype(np.int8)
    opens = False
    if forger.request:
        opens = open_request(server, transcript, Step(forward=forger.request), key) is not None
    return Extraction(done, forger.known, opens, key, ended)
