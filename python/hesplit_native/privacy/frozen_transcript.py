"""What the server of a frozen layer received while a client trained through it: forward and backward, all of it ciphertexts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from torch import nn

from hesplit_native.data.dataset import Dataset
from hesplit_native.nn import encrypt
from hesplit_native.privacy.transcript import Recording, Step, Transcript, Truth
from hesplit_native.protocols import messages
from hesplit_native.protocols.frozen_client import Connection
from hesplit_native.protocols.frozen_messages import take_address
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.serving import serve
from hesplit_native.seeding import seeded
from hesplit_native.training.config import RunConfig
from hesplit_native.training.recipes import dataset_architecture
from hesplit_native.transport.channel import ClientInfo
from hesplit_native.transport.in_process import Conversation, InProcessChannel


class _Tap(InProcessChannel):
    """The client's channel, read along at the server's side."""

    def __init__(self, conversation: Conversation, steps: deque[Step]) -> None:
        super().__init__(conversation)
        self._steps = steps
        self._start = perf_counter()
        self._product = False

    def send(self, message: bytes) -> None:
        request = messages.unpack(message)
        self._product = request.type is MessageType.PRODUCT
        if self._product:
            _, direction, _, body = take_address(request.body, "product")
            if direction == "forward":
                self._steps.append(Step(forward=bytes(body), seconds=perf_counter() - self._start))
            else:
                self._steps[-1].backward = bytes(body)
        super().send(message)

    def receive(self) -> bytes:
        reply = super().receive()
        if self._product:
            self._steps[-1].reply_bytes += len(reply)
        return reply


def record_frozen(
    config: RunConfig,
    dataset: Dataset,
    *,
    keep: int = 512,
    steps: int,
    observer: Callable[[int, int], None] | None = None,
) -> Recording:
    """Train a client's convolutions before a linear layer that a server holds frozen; record the last `keep` steps.

    The network and its seed are the configuration's; the optimiser is Adam. Nothing else of it is used.
    """
    network = dataset_architecture(config, dataset)
    size = config.batch_size
    transcript = Transcript("frozen", network.activations, network.outputs, len(dataset.classes), size)
    seen: deque[Step] = deque(maxlen=keep)
    truth: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = deque(maxlen=keep)
    with seeded(config.seed + 1):
        layer = nn.Sequential(nn.Linear(network.activations, network.outputs))
    body, head = network.body(config.seed), network.head(config.seed)
    order = np.random.default_rng(config.seed)
    with serve(layer, port=0) as server:
        connection = Connection([("audited", lambda: _Tap(server.converse(ClientInfo("audited")), seen))], 1.0)
        served = encrypt(layer, server=connection)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=config.learning_rate)
        for step in range(steps):
            rows = order.choice(len(dataset.train_x), size, replace=False)
            activations = body(torch.from_numpy(dataset.train_x[rows]))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(served(activations)), torch.from_numpy(dataset.train_y[rows]))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            truth.append((dataset.train_x[rows], dataset.train_y[rows], activations.detach().numpy()))
            if observer is not None:
                observer(step + 1, steps)
        transcript.steps = list(seen)
        with torch.no_grad():
            guesses = head(served(body(torch.from_numpy(dataset.test_x)))).argmax(1).numpy()
        connection.close()
    inputs, labels, values = (list(part) for part in zip(*truth, strict=True))
    accuracy = float((guesses == dataset.test_y).mean())
    return Recording(transcript, Truth(inputs, labels, values), body, accuracy)
