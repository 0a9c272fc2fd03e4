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

from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ParameterError, ProtocolError
from hesplit_native.privacy.attacks.keys import HEADER, SHAPE, Ternary, byte_tools, honest_server, open_request
from hesplit_native.privacy.attacks.labels import probabilities
from hesplit_native.privacy.attacks.malicious import victim
from hesplit_native.privacy.transcript import Step, Transcript
from hesplit_native.protocols import messages
from hesplit_native.protocols.answers import Answer, Answers
from hesplit_native.protocols.messages import MessageType
from hesplit_native.training.config import RunConfig


@dataclass
class Forger:
    """Stands before an honest `splitways` server: replies are forged, gradients read.

    The outputs of the last product are left at 0, so that the others of a row are known beside them; the first products ask for
    coefficients j, j + width, j + 2 width, ... of the key, for one j each.
    """

    honest: Answers
    transcript: Transcript
    degree: int
    logit: float
    key: npt.NDArray[np.float64] = field(init=False)  # NaN where unknown
    asked: int = 0
    request: bytes = b""
    _asking: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = np.full(self.degree, np.nan)

    @property
    def known(self) -> float:
        """The share of the key that has been read."""
        return float((~np.isnan(self.key)).mean())

    def answer(self, kind: MessageType, body: memoryview) -> Answer | None:
        """As the honest server, but for what it is made to say."""
        if kind is MessageType.BACKWARD:
            self._read(body)
        answer = self.honest.answer(kind, body)
        if kind is not MessageType.FORWARD or answer is None:
            return answer
        self.request = bytes(body)
        return answer[0], self._forge(answer[1])

    def _forge(self, genuine: bytes) -> bytes:
        samples, rows, width, bits, scale = SHAPE.unpack_from(genuine, HEADER)
        per_product = max(1, min(self.transcript.outputs, self.degree // (rows * width)))
        products = -(-self.transcript.outputs // per_product)
        if products < 2:
            raise ParameterError("the forger needs a layer with at least two products")
        size = round(min(self.logit * scale, 2.0 ** (bits - 1)))
        payload, self._asking = b"", []
        for p in range(products):
            outputs = min(per_product, self.transcript.outputs - p * per_product)
            c1 = np.zeros(self.degree, np.uint64)
            if p < products - 1:
                c1[self._shift(width, products, p)] = size
            payload += byte_tools.pack_bits(np.zeros(outputs * samples, np.uint64), bits)
            payload += byte_tools.pack_bits(c1, bits)
            positions = (np.arange(outputs)[None] * rows + np.arange(samples)[:, None]) * width
            self._asking.append(positions - self._shift(width, products, p))
        self.asked += 1
        start = HEADER + SHAPE.size
        message = bytearray(genuine)
        message[start : start + len(payload)] = payload
        return bytes(byte_tools.reseal(bytes(message)))

    def _shift(self, width: int, products: int, p: int) -> int:
        return (self.asked * (products - 1) + p) % width

    def _read(self, body: memoryview) -> None:
        gradient, _ = messages.take_matrix(body, "gradient", rows=range(1, 65537), columns=self.transcript.outputs)
        logits = np.log(np.clip(probabilities(gradient), 1e-30, None))
        values = np.rint((logits - logits[:, -1:]) / self.logit)
        column = 0
        for wanted in self._asking[:-1]:
            for u in range(wanted.shape[1]):
                at = wanted[:, u]
                sign = np.where(at < 0, -1, 1)  # x^-i is -x^(N - i)
                self.key[at % self.degree] = np.clip(sign * values[:, column], -1, 1)
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
    network = client.architecture
    assert client.parameters is not None
    transcript = Transcript("splitways", network.activations, network.outputs, len(dataset.classes), config.batch_size)
    assert client.linear is not None
    transcript.material = client.linear.public_material()  # type: ignore[union-attr]
    forger = Forger(session.protocol, transcript, client.parameters.ring_degree, logit)
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
        opens = open_request(honest_server(transcript), transcript, Step(forward=forger.request), key) is not None
    return Extraction(done, forger.known, opens, key, ended)
