"""What the server of a run received, sent and held, step by step: all that attacks may use; and the truth that they are scored by."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.data.dataset import Dataset
from hesplit_native.protocols import messages
from hesplit_native.protocols.messages import MessageType
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.storage import read_tensors, write_tensors
from hesplit_native.training.client import Client
from hesplit_native.training.config import RunConfig
from hesplit_native.training.recipes import dataset_architecture, paper_task
from hesplit_native.training.run import Run
from hesplit_native.transport.channel import ClientInfo
from hesplit_native.transport.in_process import InProcessChannel

Float32 = npt.NDArray[np.float32]
_FORMAT = "hesplit_native-recording-1"
_BODIES = ("forward", "backward", "masked", "opened")
_ARRAYS = ("weight", "bias", "weight_gradient")


@dataclass
class Step:
    """One training step. Bodies of messages; empty where the protocol has none. Arrays are what the server held, None if it cannot."""

    forward: bytes = b""  # activations, clear or encrypted; vanilla: activations and labels
    backward: bytes = b""  # gradients; sealed: ciphertexts
    masked: bytes = b""  # hesplit: what the server sent to be opened
    opened: bytes = b""  # hesplit: what came back
    reply_bytes: int = 0  # of everything that the server answered
    seconds: float = 0.0  # when the forward message came
    weight: Float32 | None = None  # before the step
    bias: Float32 | None = None
    weight_gradient: Float32 | None = None  # dJ/dW, from which the server updates


@dataclass
class Transcript:
    """What an honest-but-curious server has: the terms, the public material, and steps in order."""

    protocol: str
    features: int
    outputs: int
    classes: int
    batch_size: int
    material: bytes = b""
    steps: list[Step] = field(default_factory=list)

    def activations(self, step: Step) -> Float32 | None:
        """Activations [n, in] where they are sent in the clear."""
        if self.protocol not in ("vanilla", "plain"):
            return None
        return messages.take_matrix(memoryview(step.forward), "activations", rows=_ROWS, columns=self.features)[0]

    def labels(self, step: Step) -> npt.NDArray[np.int64] | None:
        """Labels [n] where they are sent in the clear."""
        if self.protocol != "vanilla":
            return None
        _, rest = messages.take_matrix(memoryview(step.forward), "activations", rows=_ROWS, columns=self.features)
        return messages.take_matrix(rest, "labels", rows=_ROWS, columns=1)[0][:, 0].astype(np.int64)

    def gradient(self, step: Step) -> Float32 | None:
        """dJ/dy [n, out] where it is sent in the clear."""
        if self.protocol not in ("plain", "splitways", "hesplit"):
            return None
        return messages.take_matrix(memoryview(step.backward), "gradient", rows=_ROWS, columns=self.outputs)[0]

    def opaque(self, step: Step, shape: tuple[int, ...]) -> Float32:
        """What there is to go by when all is encrypted: the bytes of the request, as numbers in [-1, 1]."""
        count = int(np.prod(shape))
        body = np.frombuffer(step.forward, np.uint8)[_BEFORE_CIPHERTEXTS:]
        return (np.resize(body, count).reshape(shape) / 127.5 - 1).astype(np.float32)


_ROWS = range(1, 65537)

# More bytes than a sealed request has before its ciphertexts: identifiers, layout and a seed say nothing of the data.
_BEFORE_CIPHERTEXTS = 128


@dataclass
class Truth:
    """What only the client knows, by step."""

    inputs: list[Float32] = field(default_factory=list)  # [n, channels, samples]
    labels: list[npt.NDArray[np.int64]] = field(default_factory=list)  # [n]
    activations: list[Float32] = field(default_factory=list)  # [n, in], before any defence


@dataclass
class Recording:
    """A transcript and its truth; `body` is the client's network at the end, for whoever colludes with the server."""

    transcript: Transcript
    truth: Truth
    body: nn.Module | None = None
    accuracy: float = 0.0
    client: Client | None = None
    epsilon: float | None = None

    def save(self, path: Path) -> None:
        """Write everything but the networks as safetensors."""
        tensors: dict[str, Tensor] = {"material": _bytes(self.transcript.material)}
        for index, step in enumerate(self.transcript.steps):
            tensors |= {f"{index}.{name}": _bytes(getattr(step, name)) for name in _BODIES if getattr(step, name)}
            tensors |= {
                f"{index}.{name}": torch.from_numpy(getattr(step, name).copy())
                for name in _ARRAYS
                if getattr(step, name) is not None
            }
            tensors |= {f"{index}.{name}": torch.from_numpy(values[index].copy()) for name, values in self._truth()}
        terms = {name: getattr(self.transcript, name) for name in _TERMS}
        steps = [[step.reply_bytes, step.seconds] for step in self.transcript.steps]
        write_tensors(path, tensors, _FORMAT, {"terms": terms, "steps": steps, "accuracy": self.accuracy})

    def _truth(self) -> list[tuple[str, list[Any]]]:
        truth = self.truth
        return [("inputs", truth.inputs), ("labels", truth.labels), ("activations", truth.activations)]

    @staticmethod
    def load(path: Path) -> Recording:
        """The inverse of `save`. DataError for anything else."""
        tensors, values = read_tensors(path, _FORMAT)
        transcript = Transcript(material=tensors["material"].numpy().tobytes(), **values["terms"])
        recording = Recording(transcript, Truth(), accuracy=values["accuracy"])
        for index, (reply_bytes, seconds) in enumerate(values["steps"]):
            step = Step(reply_bytes=reply_bytes, seconds=seconds)
            for name in _BODIES:
                if f"{index}.{name}" in tensors:
                    setattr(step, name, tensors[f"{index}.{name}"].numpy().tobytes())
            for name in _ARRAYS:
                if f"{index}.{name}" in tensors:
                    setattr(step, name, tensors[f"{index}.{name}"].numpy())
            transcript.steps.append(step)
            for name, known in recording._truth():
                known.append(tensors[f"{index}.{name}"].numpy())
        return recording


_TERMS = ("protocol", "features", "outputs", "classes", "batch_size")


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


class _Tap:
    """The client's channel to a server in this process, read along at the server's side."""

    def __init__(self, server: Server, transcript: Transcript, keep: int) -> None:
        self.server = server
        self.transcript = transcript
        self.steps: deque[Step] = deque(maxlen=keep)
        self.start = perf_counter()
        self._inner = InProcessChannel(server.converse(ClientInfo("audited")))
        self._type = MessageType.HELLO

    @property
    def bytes_up(self) -> int:
        return self._inner.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._inner.bytes_down

    def send(self, message: bytes) -> None:
        request = messages.unpack(message)
        self._type = request.type
        body = bytes(request.body)
        if request.type is MessageType.HELLO:
            self.transcript.material = bytes(messages.take_json(request.body, "handshake")[1])
        elif request.type in (MessageType.FORWARD, MessageType.LEARN):
            step = Step(forward=body, seconds=perf_counter() - self.start)
            linear = self.server.last_linear()
            if linear is not None:
                step.weight, step.bias = _copy(linear.weight), _copy(linear.bias)
            self.steps.append(step)
        elif request.type is MessageType.BACKWARD:
            self.steps[-1].backward = body
        elif request.type is MessageType.OPENED_GRADIENT:
            self.steps[-1].opened = body
        self._inner.send(message)

    def receive(self) -> bytes:
        reply = self._inner.receive()
        if self.steps and self._type is not MessageType.EVALUATE:
            message = messages.unpack(reply)
            step = self.steps[-1]
            step.reply_bytes += len(reply)
            if message.type is MessageType.MASKED_GRADIENT:
                step.masked = bytes(message.body)
            linear = self.server.last_linear()
            done = message.type in (MessageType.INPUT_GRADIENT, MessageType.LEARNT)
            if done and linear is not None and linear.weight.grad is not None:
                step.weight_gradient = _copy(linear.weight.grad)
        return reply

    def close(self) -> None:
        self._inner.close()


def _copy(values: Tensor) -> Float32:
    return values.detach().numpy().copy()


def record(
    config: RunConfig,
    dataset: Dataset,
    *,
    keep: int = 512,
    steps: int | None = None,
    observer: Callable[[int, int], None] | None = None,
) -> Recording:
    """Train in this process and record the last `keep` steps.

    Parameters
    ----------
    steps
        Training steps; None: `config.epochs` epochs.
    observer
        Called with steps done and steps in all.
    """
    whole = len(dataset.train_x) // config.batch_size
    per_epoch = min(whole, config.limit_batches or whole)
    total = steps if steps is not None else per_epoch * config.epochs
    config = replace(config, epochs=-(-total // per_epoch))
    rows = np.arange(whole * config.batch_size)  # whole batches, which attacks count on
    network = dataset_architecture(config, dataset)
    transcript = Transcript(
        config.protocol, network.activations, network.outputs, len(dataset.classes), config.batch_size
    )
    tap = _Tap(Server(), transcript, keep)
    run = Run(config, paper_task(config, dataset), [rows], connect=lambda index: tap)
    run.begin()
    client = run.participants[0].client
    truth: deque[tuple[Float32, npt.NDArray[np.int64], Float32]] = deque(maxlen=keep)
    seen: list[Tensor] = []
    hook = client.model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    done = 0
    while done < total:
        with closing(run.epoch()) as batches:
            for batch in itertools.islice(batches, total - done):
                truth.append((dataset.train_x[batch], dataset.train_y[batch], seen[-1].numpy()))
                seen.clear()
                done += 1
                if observer is not None:
                    observer(done, total)
        run.next_epoch()
    hook.remove()
    transcript.steps = list(tap.steps)
    accuracy = run.evaluate()
    inputs, labels, activations = (list(values) for values in zip(*truth, strict=True))
    return Recording(
        transcript, Truth(inputs, labels, activations), client.model, accuracy, client, run.account.epsilon()
    )
