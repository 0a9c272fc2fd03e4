"""The client's checkpoints: safetensors files in one folder, the last two of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hesplit_native.errors import DataError
from hesplit_native.files import make_folder
from hesplit_native.protocols.storage import read_tensors, write_tensors
from hesplit_native.training.config import RunConfig
from hesplit_native.training.result import EpochRecord

_FORMAT = "hesplit_native-client-2"
_KEPT = 2


@dataclass
class Progress:
    """How far a run is, beside what its clients have learnt.

    `turn` is the participant at work in this epoch and `batch` how many batches it has done; `loss` is the sum over the
    `done` batches of the epoch, `correct` over its `seen` rows. `steps` counts, by participant, the states of the
    server's layer: training steps and averages. `stored` is which of them the server was last asked to keep. `best_epoch` is the
    one with the `best_scores`, 0: none was looked for; `best_number` names its checkpoint. Then `last_scores` are those of the last
    epoch.
    """

    epoch: int = 1
    turn: int = 0
    batch: int = 0
    done: int = 0
    loss: float = 0.0
    correct: float = 0.0
    seen: int = 0
    seconds: float = 0.0  # of this epoch
    steps: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_scores: dict[str, Any] = field(default_factory=dict)
    last_scores: dict[str, Any] = field(default_factory=dict)
    best_number: int = 0

    @property
    def latest(self) -> int:
        """The participant that trained last."""
        return (self.turn if self.batch else self.turn - 1) % max(len(self.steps), 1)

    def add(self, **amounts: float) -> None:
        """Add to the counts of the whole run."""
        for name, value in amounts.items():
            self.counts[name] = self.counts.get(name, 0) + value

    @property
    def records(self) -> tuple[EpochRecord, ...]:
        """The finished epochs."""
        return tuple(EpochRecord(**record) for record in self.history)


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. `sessions` are the names of its runs at the server, by participant."""

    progress: Progress
    group: str
    sessions: list[str]
    values: dict[str, Any]
    tensors: dict[str, Tensor]


class ClientCheckpoints:
    """The checkpoints of one run in a folder, by number: the sum of `Progress.steps`."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self._config = config

    def numbers(self) -> list[int]:
        """Those that are there, oldest first."""
        names = (path.stem.removeprefix("client-") for path in self.folder.glob("client-*.safetensors"))
        return sorted(int(name) for name in names if name.isdigit())

    def clear(self) -> None:
        """Remove those of an earlier run."""
        for number in self.numbers():
            self._path(number).unlink()

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot durably."""
        make_folder(self.folder)
        values = {
            "progress": asdict(snapshot.progress),
            "config": asdict(self._config),
            "group": snapshot.group,
            "sessions": snapshot.sessions,
            "values": snapshot.values,
        }
        tensors = {name: value.contiguous() for name, value in snapshot.tensors.items()}
        write_tensors(self._path(sum(snapshot.progress.steps)), tensors, _FORMAT, values)

    def prune(self, keep: int = 0) -> None:
        """Keep the last two, because the server may lack the last one, and that of number `keep`.

        Nothing stays of one that was being written when a run was killed.
        """
        for unfinished in self.folder.glob(".client-*.tmp"):
            unfinished.unlink(missing_ok=True)
        for old in self.numbers()[:-_KEPT]:
            if old != keep:
                self._path(old).unlink(missing_ok=True)

    def load(self, number: int) -> Snapshot:
        """What `save` wrote; DataError if it is damaged or of a run with another configuration."""
        path = self._path(number)
        tensors, values = read_tensors(path, _FORMAT)
        ours = json.loads(json.dumps(asdict(self._config)))
        config = values.get("config")
        if not isinstance(config, dict):
            raise DataError(f"{path} is damaged or of another version: it holds no configuration")
        for name, value in config.items():
            if name != "epochs" and ours.get(name) != value:
                raise DataError(f"{path} belongs to a run with {name}={value!r}, this one has {ours.get(name)!r}")
        try:
            progress = Progress(**values["progress"])
            return Snapshot(progress, values["group"], values["sessions"], values["values"], tensors)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged or of another version: {error}") from error

    def _path(self, number: int) -> Path:
        return self.folder / f"client-{number}.safetensors"
