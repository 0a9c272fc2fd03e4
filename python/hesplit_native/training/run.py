"""One training run: the same loop for every protocol, with checkpoints from which it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from hesplit_native.training.client import Client
from hesplit_native.training.config import RunConfig
from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import ConnectionLost, DataError, ParameterError, ProtocolError
from hesplit_native.training.models import Architecture, architecture
from hesplit_native.training.defences import leaks
from hesplit_native.protocols.server import Server
from hesplit_native.protocols.session import RolledBack, resumable
from hesplit_native.protocols.storage import read_tensors, write_tensors
from hesplit_native.transport.channel import Channel, ClientInfo
from hesplit_native.transport.in_process import InProcessChannel

EVALUATION_ROWS = (
    2048  # as many as coefficients at N = 2048: one feature per ciphertext, whose layer is a matrix product
)
_REPORT_SECONDS = 0.1  # between two calls of Observer.on_batch: reading the loss costs a few microseconds
_FORMAT = "hesplit_native-client-1"
_KEPT = 2


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss and accuracy (0..1) while training, accuracy on the test set after it, seconds of training.

    `epsilon` is what a sample's noised releases add up to so far (`Defences`); None without noise.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float
    epsilon: float | None = None


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
    flooding_deviation: float = 0.0
    participants: int = 1
    notes: tuple[str, ...] = ()
    interrupted: str | None = None
    architecture: Architecture | None = None
    client_state: dict[str, Tensor] = field(default_factory=dict)
    server_weight: Tensor | None = None
    server_bias: Tensor | None = None

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return self.config.protocol

    @property
    def epochs(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def test_accuracy(self) -> float | None:
        """After the last finished epoch."""
        return self.history[-1].test_accuracy if self.history else None

    @property
    def epsilon(self) -> float | None:
        """What a sample's noised releases add up to after the last finished epoch; None without noise."""
        return self.history[-1].epsilon if self.history else None

    @property
    def flooding(self) -> str:
        """How released decryptions were flooded: with a fresh key per step, with one per run, or not at all."""
        return self.config.flooding if self.config.releases else "not needed"


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


def epoch_batches(config: RunConfig, rows: int, outputs: int) -> int:
    """Batches of an epoch over so many rows.

    A short last one is left out where the server would recover its activations; with `accumulate` there are only whole sums.
    """
    whole = -(-rows // config.batch_size)
    rest = rows % config.batch_size
    together = rest + (config.accumulate - 1) * config.batch_size
    if rest and whole > 1 and not config.accept_leak and leaks(config.protocol, together, outputs):
        whole -= 1
    count = min(whole, config.limit_batches or whole) // config.accumulate * config.accumulate
    if count == 0:
        raise ParameterError(f"{rows} rows do not make the {config.accumulate} batches that accumulate takes together")
    return count


def dataset_architecture(config: RunConfig, dataset: Dataset) -> Architecture:
    """The network for a data set's signals."""
    _, channels, samples = dataset.train_x.shape
    return architecture(config.model, channels, samples, len(dataset.classes), config.convolutions)


def train(
    config: RunConfig,
    dataset: Dataset,
    *,
    connect: Callable[[], Channel] | None = None,
    observer: Observer | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
) -> RunResult:
    """Train the client's convolutions and the server's layer.

    Parameters
    ----------
    connect
        Opens a connection to a server; called again when one is lost. None: a server in this process.
    checkpoints
        Directory for the state of client (and of a server in this process), from which a killed run resumes; None: none is kept.
    resume
        Go on from the last checkpoint in that directory.

    Returns
    -------
    RunResult
        Also when the peer goes away or the user interrupts: then `interrupted` says so, with the metrics so far.

    Raises
    ------
    ProtocolError
        When the handshake fails.
    DataError
        When there is nothing to resume, or it belongs to another run.
    """
    run = _Run(config, dataset, connect, checkpoints)
    run.begin(resume=resume)
    interrupted = None
    try:
        run.train(observer)
        run.finish()
    except ProtocolError as error:
        interrupted = str(error)
    except KeyboardInterrupt:
        interrupted = "interrupted by the user"
    run.client.phases.enter(None)
    return run.result(interrupted)


@dataclass
class Progress:
    """How far a run is, beside what its client has learnt. `order` is the state of the generator before this epoch's permutation."""

    order: Tensor
    epoch: int = 1
    batch: int = 0
    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0  # of this epoch
    counts: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **amounts: float) -> None:
        """Add to the counts of the whole run."""
        for name, value in amounts.items():
            self.counts[name] = self.counts.get(name, 0) + value

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The finished epochs."""
        return tuple(EpochRecord(**record) for record in self.history)


class _Run:
    """Data, client, server if it is in this process, and progress."""

    def __init__(
        self, config: RunConfig, dataset: Dataset, connect: Callable[[], Channel] | None, checkpoints: Path | None
    ) -> None:
        self.config = config
        self.folder = checkpoints
        self.train_x, self.train_y = torch.from_numpy(dataset.train_x), torch.from_numpy(dataset.train_y)
        self.test_x, self.test_y = torch.from_numpy(dataset.test_x), torch.from_numpy(dataset.test_y)
        shape = dataset_architecture(config, dataset)
        self.batches_per_epoch = epoch_batches(config, len(self.train_x), shape.outputs)
        self.server: Server | None = None
        self.reconnects = connect is not None
        if connect is None and config.protocol != "local":
            self.server = Server(checkpoints=checkpoints / "server" if checkpoints else None)
            connect = in_process(self.server)
        self.client = Client(
            config,
            shape,
            batches=self.batches_per_epoch,
            connect=connect,
            ledgers=checkpoints,
        )
        if self.client.defender is not None:
            self.train_y = self.client.defender.labels(self.train_y, len(dataset.classes))
        self.connect = connect
        # Independent of the protocol: the same data in the same order for one seed.
        self.order = torch.Generator().manual_seed(config.seed)
        self.progress = Progress(self.order.get_state())
        self.server_seconds: dict[str, float] = {}

    # Checkpoints

    @property
    def step(self) -> int:
        """Training steps so far."""
        return (self.progress.epoch - 1) * self.batches_per_epoch + self.progress.batch

    def begin(self, *, resume: bool) -> None:
        """Connect; with `resume` go on from the last checkpoint that client and server both have."""
        if not resume:
            if self.folder is not None:
                for old in self._checkpoints():
                    self._path(old).unlink()
            self.client.begin(reconnect=self.reconnects and self.folder is not None)
            self.progress.add(setup_bytes_up=self.client.bytes[0], setup_bytes_down=self.client.bytes[1])
            self._checkpoint()
        else:
            if self.folder is None or not self._checkpoints():
                raise DataError(f"there is no checkpoint in {self.folder} to resume from; start without --resume")
            if self.config.protocol == "local":
                self._load(self._checkpoints()[-1])
                self.client.begin()
            else:
                assert self.connect is not None
                run = self._load(self._checkpoints()[-1])
                channel = self.connect()
                found = resumable(channel, run)
                channel.close()
                step = self._common(found or [])
                self._load(step)
                before = self.client.bytes
                self.client.begin(resume=(run, step), reconnect=self.reconnects)
                self._count("setup", before)
        self.client.phases.seconds.clear()  # the handshake is not training

    def _common(self, found: list[int]) -> int:
        both = [step for step in self._checkpoints() if step in found]
        if not both:
            raise DataError("client and server have no checkpoint of this run in common; start without --resume")
        return both[-1]

    def _roll_back(self, found: list[int]) -> None:
        """The server was restarted: go back with it to its last checkpoint."""
        step = self._common(found)
        self._load(step)
        before = self.client.bytes
        assert self.client.session is not None
        self.client.begin(resume=(self.client.session.run, step))
        self._count("setup", before)

    def _checkpoints(self) -> list[int]:
        assert self.folder is not None
        names = (path.stem.removeprefix("client-") for path in self.folder.glob("client-*.safetensors"))
        return sorted(int(name) for name in names if name.isdigit())

    def _path(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"client-{step}.safetensors"

    def _checkpoint(self) -> None:
        """Store this state at both ends: here first, so that the server never has one that the client lacks."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        back = self.client.phases.enter("checkpoint")
        progress = asdict(self.progress)
        order = progress.pop("order")
        session = self.client.session
        values = {
            "progress": progress,
            "config": asdict(self.config),
            "run": session.run if session else "",
            "phases": dict(self.client.phases.seconds),
            "clipped": self.client.linear.clipped if self.client.linear else 0,
        }
        tensors = self.client.tensors() | {"order": order}
        if self.config.defences.label_epsilon is not None:
            tensors["labels"] = self.train_y  # noised once: noising them again would say more of the true ones
        write_tensors(self._path(self.step), {n: t.contiguous() for n, t in tensors.items()}, _FORMAT, values)
        if session is not None:
            before = self.client.bytes
            session.checkpoint(self.step)
            self._count("setup", before)
        for old in self._checkpoints()[:-_KEPT]:
            self._path(old).unlink(missing_ok=True)
        self.client.phases.enter(back)

    def _load(self, step: int) -> str:
        """Put a checkpoint's state into this run; the name of the run."""
        tensors, values = read_tensors(self._path(step), _FORMAT)
        ours = json.loads(json.dumps(asdict(self.config)))
        for name, value in values.get("config", {}).items():
            if name != "epochs" and ours.get(name) != value:
                raise DataError(
                    f"{self._path(step)} belongs to a run with {name}={value!r}, this one has {ours.get(name)!r}"
                )
        try:
            self.client.load(tensors)
            self.progress = Progress(order=tensors["order"], **values["progress"])
            if self.config.defences.label_epsilon is not None:
                self.train_y = tensors["labels"]
            self.client.phases.seconds.clear()
            self.client.phases.seconds.update(values["phases"])
            if self.client.linear is not None:
                self.client.linear.clipped = values["clipped"]
            return str(values["run"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{self._path(step)} is damaged or of another version: {error}") from error

    # Training

    def train(self, observer: Observer | None) -> None:
        """All epochs that are left."""
        if observer:
            observer.on_start(self.batches_per_epoch, self.config.epochs)
        while self.progress.epoch <= self.config.epochs:
            try:
                self._epoch(observer)
            except RolledBack as error:
                self._roll_back(error.checkpoints)

    def _epoch(self, observer: Observer | None) -> None:
        """What is left of an epoch, then the test set."""
        progress = self.progress
        self.order.set_state(progress.order)
        order = torch.randperm(len(self.train_x), generator=self.order)
        batches = torch.split(order, self.config.batch_size)[: self.batches_per_epoch]
        loss, correct = torch.tensor(progress.loss, dtype=torch.float64), torch.tensor(progress.correct)
        start = reported = perf_counter()
        before = self.client.bytes
        first = progress.batch

        def settle() -> None:
            nonlocal start, before, first
            now = perf_counter()
            progress.loss, progress.correct = loss.item(), int(correct.item())
            progress.seconds += now - start
            progress.add(train_seconds=now - start, batches=progress.batch - first)
            self._count("", before)
            start, before, first = now, self.client.bytes, progress.batch

        try:
            for indices in batches[progress.batch :]:
                batch_loss, batch_correct = self.client.learn(self.train_x[indices], self.train_y[indices])
                loss += batch_loss
                correct += batch_correct
                progress.seen += len(indices)
                progress.batch += 1
                if self.folder is not None and self.step % self.config.checkpoint_every == 0:
                    settle()
                    self._checkpoint()
                    start, before = perf_counter(), self.client.bytes
                if observer and perf_counter() - reported > _REPORT_SECONDS:
                    observer.on_batch(
                        progress.epoch, progress.batch, loss.item() / progress.batch, correct.item() / progress.seen
                    )
                    reported = perf_counter()
        finally:
            self.client.phases.enter(None)
            settle()
        mean, accuracy = progress.loss / progress.batch, progress.correct / progress.seen
        if observer:
            observer.on_batch(progress.epoch, progress.batch, mean, accuracy)
            observer.on_evaluate(progress.epoch)
        epsilon = self.client.epsilon(progress.epoch)
        record = EpochRecord(progress.epoch, mean, accuracy, self._evaluate(), progress.seconds, epsilon)
        progress.history.append(asdict(record))
        progress.order = self.order.get_state()
        progress.epoch, progress.batch, progress.loss, progress.correct = progress.epoch + 1, 0, 0.0, 0
        progress.seen, progress.seconds = 0, 0.0
        if observer:
            observer.on_epoch(record)
        self._checkpoint()
        self.client.phases.enter(None)

    def _evaluate(self) -> float:
        """Accuracy on the test set through the protocol, in large batches."""
        before = self.client.bytes
        accuracy = evaluate(self.client, self.test_x, self.test_y)
        self._count("evaluation", before)
        return accuracy

    def _count(self, what: str, before: tuple[int, int]) -> None:
        up, down = self.client.bytes
        prefix = f"{what}_" if what else ""
        self.progress.add(**{f"{prefix}bytes_up": up - before[0], f"{prefix}bytes_down": down - before[1]})

    def finish(self) -> None:
        """End the session and take the server's account of its time."""
        self.server_seconds = self.client.end()

    def result(self, interrupted: str | None) -> RunResult:
        client = self.client
        layer = client.own_layer.linear if client.own_layer is not None else None
        if layer is None and self.server is not None:
            layer = self.server.last_linear()
        counts = {
            name: value if name == "train_seconds" else int(value) for name, value in self.progress.counts.items()
        }
        return RunResult(
            self.config,
            history=self.progress.records,
            seconds_by_phase=dict(client.phases.seconds),
            server_seconds_by_phase=self.server_seconds,
            parameters=client.parameters.to_dict() if client.parameters else None,
            clipped=client.linear.clipped if client.linear else 0,
            flooding_deviation=getattr(client.linear, "flooding_deviation", 0.0),
            notes=notes(self.config, client.architecture.outputs),
            interrupted=interrupted,
            architecture=client.architecture,
            client_state=client_state(client),
            server_weight=layer.weight.detach() if layer is not None else None,
            server_bias=layer.bias.detach() if layer is not None else None,
            **counts,  # type: ignore[arg-type]
        )


def client_state(client: Client) -> dict[str, Tensor]:
    """What the client trained: convolutions, and the second fully connected layer where there is one."""
    state = {f"body.{name}": value for name, value in client.model.state_dict().items()}
    return state | {f"head.{name}": value for name, value in client.head.state_dict().items()}


def evaluate(client: Client, x: Tensor, labels: Tensor) -> float:
    """Accuracy through the protocol, in large batches; not counted as a phase of training."""
    counted = dict(client.phases.seconds)
    correct = 0
    # sealed keeps the batch size's layout whatever the rows: more of them at once only take memory.
    rows = 64 * client.config.batch_size if client.config.protocol == "sealed" else EVALUATION_ROWS
    for part, wanted in zip(torch.split(x, rows), torch.split(labels, rows), strict=True):
        correct += client.correct(part, wanted)
    client.phases.enter(None)
    client.phases.seconds.clear()
    client.phases.seconds.update(counted)
    return correct / len(labels)


def in_process(server: Server, client: str = "in-process") -> Callable[[], Channel]:
    """Connections to a server in this process."""
    return lambda: InProcessChannel(server.converse(ClientInfo(client)))


def notes(config: RunConfig, outputs: int) -> tuple[str, ...]:
    """What a reader of the report has to know."""
    found = []
    if config.accept_leak and leaks(config.protocol, config.batch_size * config.accumulate, outputs):
        found.append(
            f"leak accepted: batches with fewer samples than outputs (batch size {config.batch_size}) give the server the activations"
        )
    if config.releases and config.flooding == "off":
        found.append("noise flooding is off: gradients computed from decrypted logits are released as they are")
    if config.protocol == "sealed":
        found.append(
            "sealed is encrypted custody of shared parameters: the client knows W and could compute the layer itself, see the "
            "row local; one client that colludes with the server opens the key"
        )
    return tuple(found)


__all__ = ["ConnectionLost", "EpochRecord", "Observer", "RunConfig", "RunResult", "train"]
