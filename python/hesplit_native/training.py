"""One training run of the client: the same loop for every protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ParameterError, ProtocolError
from hesplit_native.keys import SecretKey
from hesplit_native.linear import LinearClient, Overflow
from hesplit_native.models import ACTIVATIONS, m1_client
from hesplit_native.nn import RemoteLayer, remote_linear
from hesplit_native.parameters import Packing, Parameters
from hesplit_native.protocols import terms as protocol_terms
from hesplit_native.protocols.local import LocalLayer
from hesplit_native.protocols.phases import Phases
from hesplit_native.protocols.plain import PlainClient
from hesplit_native.protocols.server import ServerState, converse
from hesplit_native.protocols.session import Session
from hesplit_native.protocols.splitways import SplitWaysClient
from hesplit_native.protocols.terms import ServerOptimizer, Terms
from hesplit_native.transport.channel import Channel
from hesplit_native.transport.in_process import InProcessChannel

Recipe = Literal["default", "paper"]

EVALUATION_ROWS = 1024
_REPORT_SECONDS = 0.1  # between two calls of Observer.on_batch: reading the loss costs a few microseconds


@dataclass(frozen=True)
class RunConfig:
    """What distinguishes one run from another.

    `recipe` ``"default"`` is plain cross-entropy with Adam on both sides; ``"paper"`` is what the papers' code does: softmax before
    a cross-entropy that applies it again, and plain gradient descent at the server of the encrypted protocol.
    `server_optimizer` overrides the recipe's. `limit_batches` shortens every epoch.
    """

    protocol: protocol_terms.Protocol = "splitways"
    packing: Packing = "blocks"
    batch_size: int = 4
    epochs: int = 10
    seed: int = 0
    recipe: Recipe = "default"
    server_optimizer: ServerOptimizer | None = None
    learning_rate: float = 1e-3
    limit_batches: int | None = None
    on_overflow: Overflow = "clip"

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "limit_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ParameterError(f"{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise ParameterError(f"seed must not be negative, got {self.seed}")

    @property
    def optimizer(self) -> ServerOptimizer:
        """The optimiser of the server's layer."""
        if self.server_optimizer is not None:
            return self.server_optimizer
        return "sgd" if self.recipe == "paper" and self.protocol == "splitways" else "adam"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss and accuracy (0..1) while training, accuracy on the test set after it, seconds of training."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """Everything that a report needs. Bytes are counted at the channel; `bytes_up` and `bytes_down` are those of training steps."""

    config: RunConfig
    history: tuple[EpochRecord, ...] = ()
    train_seconds: float = 0.0
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    server_seconds_by_phase: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    setup_bytes_up: int = 0
    setup_bytes_down: int = 0
    evaluation_bytes_up: int = 0
    evaluation_bytes_down: int = 0
    batches: int = 0
    parameters: dict[str, Any] | None = None
    clipped: int = 0
    notes: tuple[str, ...] = ()
    interrupted: str | None = None
    client_state: dict[str, Tensor] = field(default_factory=dict)
    server_weight: Tensor | None = None
    server_bias: Tensor | None = None

    @property
    def protocol(self) -> str:
        """The protocol that was run."""
        return self.config.protocol

    @property
    def epochs(self) -> int:
        """Epochs that were completed."""
        return len(self.history)

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy on the test set after the last completed epoch, 0..1; None when there was none."""
        return self.history[-1].test_accuracy if self.history else None

    @property
    def flooding(self) -> str:
        """Whether released decryptions were flooded with noise: not yet ("off")."""
        return "off" if self.config.protocol == "splitways" else "not needed"


class Observer(Protocol):
    """What a progress display implements."""

    def on_start(self, batches_per_epoch: int, epochs: int) -> None:
        """Before the first batch."""

    def on_batch(self, epoch: int, batch: int, loss: float, accuracy: float) -> None:
        """From time to time: the number of batches done in this epoch, running mean loss and accuracy."""

    def on_evaluate(self, epoch: int) -> None:
        """Before the test set is evaluated."""

    def on_epoch(self, record: EpochRecord) -> None:
        """After an epoch."""


# What activations and weights stay within on MIT-BIH (docs/precision.md): under plain gradient descent the server's weights hardly
# grow, and the client's activations make up for it.
_RANGES: dict[ServerOptimizer, dict[str, float]] = {
    "adam": {},
    "sgd": {"activation_bound": 128.0, "activation_norm": 512.0, "weight_norm": 4.0},
}


def _weight_seed(seed: int) -> int:
    """The seed that the server is told: unrelated to the streams of the client's convolutions and of the order of the data."""
    return int.from_bytes(hashlib.sha256(f"server's layer {seed}".encode()).digest()[:4], "little")


def train(
    config: RunConfig, dataset: Dataset, *, channel: Channel | None = None, observer: Observer | None = None
) -> RunResult:
    """Train the client's convolutions and the server's layer.

    Parameters
    ----------
    channel
        A connection to a server; None: a server in this process.

    Returns
    -------
    RunResult
        Also when the peer goes away or the user interrupts: then `interrupted` says so, with the metrics so far.

    Raises
    ------
    ProtocolError
        When the handshake fails.
    """
    run = _Run(config, dataset, channel)
    interrupted = None
    try:
        for epoch in range(1, config.epochs + 1):
            run.epoch(epoch, observer)
        run.finish()
    except ProtocolError as error:
        interrupted = str(error)
    except KeyboardInterrupt:
        interrupted = "interrupted by the user"
    run.phases.enter(None)
    return run.result(interrupted)


class _Run:
    """The state of a run: model, optimiser, remote layer, order of the data, and what has been counted."""

    def __init__(self, config: RunConfig, dataset: Dataset, channel: Channel | None) -> None:
        self.config = config
        self.phases = Phases()
        self.train_x, self.train_y = torch.from_numpy(dataset.train_x), torch.from_numpy(dataset.train_y)
        self.test_x, self.test_y = torch.from_numpy(dataset.test_x), torch.from_numpy(dataset.test_y)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = m1_client()
        # Independent of the protocol: the same data in the same order for one seed.
        self.order = torch.Generator().manual_seed(config.seed)
        self.optimizer = protocol_terms.make_optimizer("adam", self.model.parameters(), config.learning_rate)
        self.criterion = nn.CrossEntropyLoss()
        whole = -(-len(self.train_x) // config.batch_size)
        self.batches_per_epoch = min(whole, config.limit_batches or whole)
        self.result_so_far = RunResult(config)
        self.linear_client: LinearClient | None = None
        self.server = ServerState() if channel is None and config.protocol != "local" else None
        self.session: Session | None = None
        self.layer = self._connect(channel, len(dataset.classes))
        self.phases.seconds.clear()  # the handshake is not training

    def _connect(self, channel: Channel | None, classes: int) -> RemoteLayer:
        config = self.config
        parameters = None
        material = b""
        if config.protocol == "splitways":
            parameters = Parameters.recommend(
                in_features=ACTIVATIONS,
                out_features=classes,
                batch_size=config.batch_size,
                packing=config.packing,
                **_RANGES[config.optimizer],
            )
            key = SecretKey.generate(parameters)
            self.linear_client = LinearClient(key, ACTIVATIONS, classes, on_overflow=config.on_overflow)
            material = self.linear_client.public_material()
        terms = Terms(
            protocol=config.protocol,
            in_features=ACTIVATIONS,
            out_features=classes,
            batch_size=config.batch_size,
            batches=self.batches_per_epoch,
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            server_optimizer=config.optimizer,
            weight_seed=_weight_seed(config.seed),
            parameter_hash=parameters.hash if parameters else "",
        )
        if config.protocol == "local":
            self.channel = None
            return LocalLayer(terms, self.phases)
        self.channel = InProcessChannel(converse(self.server)) if self.server is not None else channel
        assert self.channel is not None
        self.session = Session(self.channel, terms, material, self.phases)
        notes: tuple[str, ...] = ()
        if parameters is not None:
            notes = ("noise flooding is off: gradients computed from decrypted logits are released as they are",)
        self.result_so_far = replace(
            self.result_so_far,
            parameters=parameters.to_dict() if parameters else None,
            notes=notes,
            setup_bytes_up=self.channel.bytes_up,
            setup_bytes_down=self.channel.bytes_down,
        )
        if self.linear_client is not None:
            return SplitWaysClient(self.session, self.linear_client)
        return PlainClient(self.session)

    def _bytes(self) -> tuple[int, int]:
        return (self.channel.bytes_up, self.channel.bytes_down) if self.channel is not None else (0, 0)

    def _add(self, **amounts: float) -> None:
        current = {name: getattr(self.result_so_far, name) + value for name, value in amounts.items()}
        self.result_so_far = replace(self.result_so_far, **current)

    def epoch(self, epoch: int, observer: Observer | None) -> None:
        """Train on every batch once, then evaluate."""
        if observer and epoch == 1:
            observer.on_start(self.batches_per_epoch, self.config.epochs)
        up, down = self._bytes()
        start = perf_counter()
        done, loss, correct, seen = 0, torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
        reported = start
        try:
            for done, (batch_loss, batch_correct, rows) in enumerate(self._steps(), 1):
                loss += batch_loss
                correct += batch_correct
                seen += rows
                if observer and perf_counter() - reported > _REPORT_SECONDS:
                    observer.on_batch(epoch, done, loss.item() / done, correct.item() / seen)
                    reported = perf_counter()
        finally:
            self.phases.enter(None)
            seconds = perf_counter() - start
            up_now, down_now = self._bytes()
            self._add(train_seconds=seconds, batches=done, bytes_up=up_now - up, bytes_down=down_now - down)
        if observer:
            observer.on_batch(epoch, done, loss.item() / done, correct.item() / seen)
            observer.on_evaluate(epoch)
        test_accuracy = self.evaluate()
        record = EpochRecord(epoch, loss.item() / done, correct.item() / seen, test_accuracy, seconds)
        self.result_so_far = replace(self.result_so_far, history=(*self.result_so_far.history, record))
        if observer:
            observer.on_epoch(record)

    def _steps(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """One epoch, a step at a time: loss and number of correct predictions of each batch."""
        phases = self.phases
        order = torch.randperm(len(self.train_x), generator=self.order)
        for indices in torch.split(order, self.config.batch_size)[: self.batches_per_epoch]:
            phases.enter("convolutions")
            x, labels = self.train_x[indices], self.train_y[indices]
            activations = self.model(x)
            phases.enter("activations and loss")
            logits = remote_linear(activations, self.layer)
            # The papers' code applies softmax twice: once here, once inside the criterion.
            loss = self.criterion(logits.softmax(1) if self.config.recipe == "paper" else logits, labels)
            phases.enter("backward")
            self.optimizer.zero_grad()
            loss.backward()
            phases.enter("optimizer")
            self.optimizer.step()
            phases.enter("accounting")
            yield loss.detach(), (logits.detach().argmax(1) == labels).sum(), len(labels)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Accuracy on the test set through the protocol, in large batches."""
        up, down = self._bytes()
        counted = dict(self.phases.seconds)
        correct = 0
        batches = zip(torch.split(self.test_x, EVALUATION_ROWS), torch.split(self.test_y, EVALUATION_ROWS), strict=True)
        for x, y in batches:
            correct += int((remote_linear(self.model(x), self.layer).argmax(1) == y).sum())
        self.phases.enter(None)
        # Phases are those of training.
        self.phases.seconds.clear()
        self.phases.seconds.update(counted)
        up_now, down_now = self._bytes()
        self._add(evaluation_bytes_up=up_now - up, evaluation_bytes_down=down_now - down)
        return correct / len(self.test_y)

    def finish(self) -> None:
        """End the session and take the server's account of its time."""
        if self.session is not None:
            seconds = self.session.end()
            self.result_so_far = replace(self.result_so_far, server_seconds_by_phase=seconds)
            self.phases.enter(None)

    def result(self, interrupted: str | None) -> RunResult:
        layer = self.layer.linear if isinstance(self.layer, LocalLayer) else None
        if self.server is not None and self.server.layer is not None:
            layer = self.server.layer.linear
        return replace(
            self.result_so_far,
            seconds_by_phase=dict(self.phases.seconds),
            clipped=self.linear_client.clipped if self.linear_client else 0,
            interrupted=interrupted,
            client_state=self.model.state_dict(),
            server_weight=layer.weight.detach() if layer is not None else None,
            server_bias=layer.bias.detach() if layer is not None else None,
        )
