"""One run of Triad of Split Learning (section III and figure 1): participants sanitise and send once, the server trains on it.

The data are dealt evenly to the participants (section IV-A). Each passes its rows through its privacy-preserving layer and sends the
outcome with the labels; the server merges what it gets and trains the deeper layers. The layer is frozen by then, so nothing flows
back. The server sees nothing except what
travelled as messages (`service`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hesplit_native.errors import ParameterError, ProtocolError, WireError
from hesplit_native.seeding import seeded
from hesplit_native.training.fit import prepare
from hesplit_native.training.run import Run
from hesplit_native.transport.channel import Channel, ClientInfo
from hesplit_native.transport.in_process import InProcessChannel
from hesplit_native.triad.cifar10 import Images
from hesplit_native.triad.layers import PretrainedLocal, RandomVector, RandomVectorReLU, pretrained_shape
from hesplit_native.triad.lipids import Cohort
from hesplit_native.triad.service import Parcel, TriadServer, join, submit

Task = Literal["ldl", "cifar10"]
Layer = Literal["none", "random-vector", "random-vector-relu", "pretrained"]

_LEARNING_RATE = 1e-3
_LOCAL_EPOCHS = 5
_EVALUATION_ROWS = 1024
_SUM_ROWS = 4096


@dataclass(frozen=True)
class TriadConfig:
    """What distinguishes one run from another.

    `layer` ``"none"`` is the unsplit network on all the data in one place, which the paper compares with: it has one participant.
    `share` takes one in so many training rows, drawn at random, as figure 2 does to show what a participant gets from its own data
    alone; `limit` no more than so many.
    """

    task: Task = "ldl"
    layer: Layer = "none"
    participants: int = 1
    epochs: int = 20
    batch_size: int = 64
    seed: int = 0
    share: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("task", get_args(Task)), ("layer", get_args(Layer))):
            if getattr(self, name) not in known:
                raise ParameterError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("participants", "epochs", "batch_size", "share", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ParameterError(f"{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise ParameterError(f"seed must not be negative, got {self.seed}")
        if self.layer == "none" and self.participants != 1:
            raise ParameterError(f"without a layer nothing is split: participants must be 1, got {self.participants}")


@dataclass(frozen=True)
class TriadEpoch:
    """One epoch of the server: mean losses on training and validation rows, the metric on the latter, seconds of training.

    Losses are square errors in (mg/dL)², the units of figure 4, or cross-entropies.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    metric: float
    seconds: float


@dataclass(frozen=True)
class TriadResult:
    """Everything that a report needs.

    `metric_name` is ``"mean deviation"``, mean |prediction - truth| in the unit of the target (mg/dL), or ``"accuracy"``, 0..1.
    `baseline` is the metric of the best constant guess. `bytes_sent` counts the sanitised training rows and their labels as they
    were serialised, `validation_bytes` those of the validation rows, `scaling_bytes` the sums behind the common normalisation.
    `local_seconds` is the time of all participants together, `train_seconds` the server's.
    """

    config: TriadConfig
    metric_name: str
    baseline: float
    history: tuple[TriadEpoch, ...]
    train_rows: int
    validation_rows: int
    local_seconds: float
    train_seconds: float
    bytes_sent: int
    validation_bytes: int
    scaling_bytes: int

    @property
    def metric(self) -> float:
        """The metric after the last epoch."""
        return self.history[-1].metric


class TriadObserver(Protocol):
    """What a progress display implements."""

    def on_participant(self, participant: int, participants: int, rows: int, sent: int) -> None:
        """After participant 1, 2, ... has sent its training rows, `sent` bytes of them."""

    def on_epoch(self, record: TriadEpoch) -> None:
        """After an epoch."""


@dataclass(frozen=True)
class Share:
    """The rows of one participant, as in the data set: x [n, *shape], y [n]."""

    train_x: npt.NDArray[Any]
    train_y: npt.NDArray[Any]
    test_x: npt.NDArray[Any]
    test_y: npt.NDArray[Any]


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of every feature, or channel, over all training rows; float32, broadcastable to a row."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, x: npt.NDArray[Any]) -> Tensor:
        """Rows [n, *shape] of any type to float32 of about mean 0 and deviation 1."""
        return (torch.from_numpy(x.astype(np.float32)) - self.mean) / self.deviation


def run(
    config: TriadConfig,
    dataset: Cohort | Images,
    observer: TriadObserver | None = None,
    *,
    server: TriadServer | None = None,
    connect: Callable[[int], Channel] | None = None,
) -> TriadResult:
    """Deal the data, sanitise them at the participants, train the server's network.

    Parameters
    ----------
    dataset
        A `Cohort` for the task ``"ldl"``, `Images` for ``"cifar10"``. Its test side is the validation set.
    server
        The session. None: one whose nonce is derived from the seed, which is enough to measure accuracy and no secret.
    connect
        Opens the connection of participant 0, 1, … to that server; None: in this process.

    Returns
    -------
    TriadResult
        The same numbers, but for seconds, for the same configuration, data and nonce.
    """
    if not isinstance(dataset, Cohort if config.task == "ldl" else Images):
        raise ParameterError(f"the task {config.task!r} does not go with the {type(dataset).__name__} {dataset.name!r}")
    classes = len(dataset.classes) if isinstance(dataset, Images) else None
    server = server or TriadServer(_digest(f"nonce {config.seed}"))
    start = perf_counter()
    shares = deal(dataset, config)
    scaling, scaling_bytes = fit_scaling(shares)
    for index, share in enumerate(shares):
        channel = (
            connect(index) if connect else InProcessChannel(server.converse(ClientInfo(f"participant-{index + 1}")))
        )
        layer = participant_layer(config, share, scaling, join(channel), index, classes)
        parcel = pack(_sanitise(layer, scaling, share.train_x), share.train_y)
        submit(channel, parcel, pack(_sanitise(layer, scaling, share.test_x), share.test_y))
        channel.close()
        if observer:
            observer.on_participant(index + 1, len(shares), len(share.train_y), len(parcel))
    if len(server.received) != len(shares):
        raise ProtocolError(f"{len(shares)} participants sent rows, the server has those of {len(server.received)}")
    trains, tests = (list(parcels) for parcels in zip(*server.received.values(), strict=True))
    shape = shares[0].train_x.shape[1:]
    shape = pretrained_shape(shape) if config.layer == "pretrained" else shape
    train, test = merge(trains, shape, classes), merge(tests, shape, classes)
    local_seconds = perf_counter() - start
    history = tuple(_train_server(config, train, test, classes, observer))
    split = config.layer != "none"  # unsplit, nothing leaves the place where the data are
    return TriadResult(
        config=config,
        metric_name="accuracy" if classes else "mean deviation",
        baseline=_baseline(train[1], test[1], classes),
        history=history,
        train_rows=len(train[1]),
        validation_rows=len(test[1]),
        local_seconds=local_seconds,
        train_seconds=sum(record.seconds for record in history),
        bytes_sent=split * sum(map(len, trains)),
        validation_bytes=split * sum(map(len, tests)),
        scaling_bytes=split * scaling_bytes,
    )


def deal(dataset: Cohort | Images, config: TriadConfig) -> tuple[Share, ...]:
    """Both sides shuffled and dealt evenly: sizes differ by one row at most."""
    generator = np.random.default_rng(config.seed)
    train = generator.permutation(len(dataset.train_y))
    train = train[: len(train) // config.share][: config.limit]
    test = generator.permutation(len(dataset.test_y))
    if len(train) < 2 * config.participants or len(test) < config.participants:
        raise ParameterError(
            f"{len(train)} training and {len(test)} test rows are too few for {config.participants} participants, "
            "who take 2 and 1 each"
        )
    x, y, test_x, test_y = dataset.train_x, dataset.train_y, dataset.test_x, dataset.test_y
    parts = zip(*(np.array_split(rows, config.participants) for rows in (train, test)), strict=True)
    return tuple(Share(x[own], y[own], test_x[held], test_y[held]) for own, held in parts)


def fit_scaling(shares: tuple[Share, ...]) -> tuple[Scaling, int]:
    """The scaling of all training rows together, and the bytes of the sums that the participants send for it.

    Of its rows a participant gives away how many they are and, for each feature, their sum and sum of squares; with scalings of
    their own, participants of different populations would send rows that mean different things.
    """
    sums = np.zeros(0)
    sent = 0
    for share in shares:
        own = _sums(share.train_x)
        sent += len(own.astype("<f8").tobytes())
        sums = own if not len(sums) else sums + own
    count, (total, squares) = sums[0], np.split(sums[1:], 2)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    deviation[deviation < 1e-6 * (1 + abs(mean))] = 1.0  # a constant feature stays at zero
    row = (-1, *[1] * (shares[0].train_x.ndim - 2))
    return Scaling(*(torch.from_numpy(values.astype(np.float32)).view(row) for values in (mean, deviation))), sent


def participant_layer(
    config: TriadConfig, share: Share, scaling: Scaling, nonce: bytes, index: int, classes: int | None
) -> nn.Module:
    """The privacy-preserving layer of one participant, ready for use; for case 3 this trains it."""
    shape = share.train_x.shape[1:]
    if config.layer == "none":
        return nn.Identity()
    if config.layer == "random-vector":
        return RandomVector(shape, nonce)
    if config.layer == "random-vector-relu":
        return RandomVectorReLU(shape, nonce)
    layer = PretrainedLocal(shape, nonce)
    y = torch.from_numpy(share.train_y)
    seed = _seed(f"participant {index} {config.seed}")
    layer.pretrain(scaling(share.train_x), y, classes=classes, epochs=_LOCAL_EPOCHS, seed=seed)
    return layer


def pack(activations: Tensor, labels: npt.NDArray[Any]) -> Parcel:
    """Serialise sanitised rows float32 [n, *shape] with their labels, float32 or int64 (0..255) [n]."""
    kind = "<f4" if labels.dtype.kind == "f" else "u1"
    return Parcel(activations.numpy().astype("<f4", copy=False).tobytes(), labels.astype(kind).tobytes())


def merge(parcels: list[Parcel], shape: tuple[int, ...], classes: int | None) -> tuple[Tensor, Tensor]:
    """All participants' rows as the server trains on them: float32 [n, *shape], and float32 or int64 labels [n].

    Raises
    ------
    WireError
        For parcels of the wrong length, values that are not finite and labels that are no class.
    """
    activations, labels = [], []
    for number, parcel in enumerate(parcels, 1):
        rows, rest = divmod(len(parcel.activations), 4 * math.prod(shape))
        if rest or len(parcel.labels) != rows * (1 if classes else 4):
            raise WireError(f"parcel {number} holds no whole number of rows {list(shape)} with a label each")
        activations.append(np.frombuffer(parcel.activations, "<f4").astype(np.float32).reshape(rows, *shape))
        received: npt.NDArray[Any] = np.frombuffer(parcel.labels, "u1" if classes else "<f4")
        if not np.isfinite(activations[-1]).all() or not np.isfinite(received).all():
            raise WireError(f"parcel {number} has values that are not finite")
        if classes and received.max(initial=0) >= classes:
            raise WireError(f"parcel {number} has labels that are not below {classes}")
        labels.append(received.astype(np.int64 if classes else np.float32))
    return torch.from_numpy(np.concatenate(activations)), torch.from_numpy(np.concatenate(labels))


def server_network(layer: Layer, shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """The deeper layers: sanitised rows [n, *shape] to [n, outputs].

    Without a layer and in cases 1 and 2 it is the whole network, as a random vector replaces nothing; in case 3 the pre-trained
    layer stands for the first block.
    """
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, outputs))
    channels, height, width = shape
    first: list[nn.Module] = [nn.ReLU()]
    if layer != "pretrained":
        first = [nn.Conv2d(channels, 16, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, height, width = 16, height // 2, width // 2
    return nn.Sequential(
        *first,
        *(nn.Conv2d(channels, 32, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(), nn.Linear(64, outputs)),
    )


def _train_server(
    config: TriadConfig,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int | None,
    observer: TriadObserver | None,
) -> Iterator[TriadEpoch]:
    x, y = train
    with seeded(_seed(f"server {config.seed}")):
        network = server_network(config.layer, tuple(x.shape[1:]), classes or 1)
    # The server standardises the target for training; losses and predictions are in its own unit again.
    center, unit = (0.0, 1.0) if classes else (y.mean().item(), max(y.std().item(), 1e-6))
    target, truth = (part if classes else ((part - center) / unit)[:, None] for part in (y, test[1]))
    # Nothing is split any more: the network is a client's that holds its own last layer.
    _, run_config, task = prepare(
        network[:-1], (x, target), (test[0], truth), None, outputs=classes or 1, loss=None, classes=None, metrics=False,
        epochs=config.epochs, batch_size=config.batch_size, learning_rate=_LEARNING_RATE, protocol="local",
        seed=_seed(f"order {config.seed}"), device="cpu", more={},
    )  # fmt: skip
    training = Run(run_config, replace(task, monitor="loss", minimise=True), [np.arange(len(x))])
    training.begin()
    while not training.is_over:
        for _ in training.epoch():
            pass
        done = training.close_epoch()
        loss, scores = done.train_loss * unit**2, done.validation
        metric = scores["accuracy"] if classes else scores["mae"] * unit
        record = TriadEpoch(done.epoch, loss, scores["loss"] * unit**2, metric, done.seconds)
        if observer:
            observer.on_epoch(record)
        yield record


def _baseline(train_y: Tensor, test_y: Tensor, classes: int | None) -> float:
    """The metric of always answering the most frequent class, or the median, of the training labels."""
    if classes:
        return (test_y == train_y.mode().values).double().mean().item()
    return (test_y - train_y.median()).abs().double().mean().item()


@torch.no_grad()
def _sanitise(layer: nn.Module, scaling: Scaling, x: npt.NDArray[Any]) -> Tensor:
    parts = np.split(x, range(_EVALUATION_ROWS, len(x), _EVALUATION_ROWS))
    return torch.cat([layer(scaling(part)) for part in parts])


def _sums(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Values per feature, sums and sums of squares, [1 + 2 * features] of them, exact enough for a million rows."""
    axes = (0, *range(2, x.ndim))
    sums = np.zeros((2, x.shape[1]))
    for part in np.split(x, range(_SUM_ROWS, len(x), _SUM_ROWS)):
        values = part.astype(np.float64)
        sums += values.sum(axes), np.square(values).sum(axes)
    return np.concatenate([[x.size / x.shape[1]], sums.ravel()])


def _digest(label: str) -> bytes:
    return hashlib.sha256(f"triad {label}".encode()).digest()


def _seed(label: str) -> int:
    """Streams that have nothing to do with one another."""
    return int.from_bytes(_digest(label)[:4], "little")
