"""What can watch a run: logs as CSV and for TensorBoard, and several observers as one."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hesplit_native.errors import ParameterError
from hesplit_native.files import SHARED, make_folder, write_atomically
from hesplit_native.training.result import EpochRecord, Observer


def numbers(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch by name, those of the validation set as ``validation_auroc`` and so on."""
    found: dict[str, Any] = {
        "train_loss": record.train_loss, "train_accuracy": record.train_accuracy, "test_accuracy": record.test_accuracy,
        "seconds": record.seconds, "epsilon": record.epsilon,
    }  # fmt: skip
    for side, scores in (("validation", record.validation), ("test", record.test)):
        found |= {f"{side}_{name}": value for name, value in scores.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


class CsvLog:
    """A line for every epoch in a CSV file, which is complete after each; an earlier run's is replaced, a resumed one's goes on."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._rows: list[dict[str, Any]] = []

    def on_start(self, batches_per_epoch: int, epochs: int) -> None:
        """Nothing is known yet."""

    def on_batch(self, epoch: int, batch: int, loss: float, accuracy: float) -> None:
        """Batches are not logged."""

    def on_evaluate(self, epoch: int) -> None:
        """Nothing is known yet."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Write the file anew; OSError where that cannot be done."""
        if not self._rows and record.epoch > 1 and self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                earlier = [row for row in csv.DictReader(file) if (row.get("epoch") or "").isdigit()]
            self._rows = [row for row in earlier if int(row["epoch"]) < record.epoch]
        self._rows.append({"epoch": record.epoch, **numbers(record)})
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        make_folder(self._path.parent)
        write_atomically(self._path, text.getvalue().encode(), mode=SHARED)


class TensorBoardLog:
    """Every epoch's numbers, and running loss and accuracy, for ``tensorboard --logdir``; ParameterError where it is missing."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ParameterError(
                f"{error.name} is missing: pip install -c constraints.txt '.[train]' (from the source) brings it"
            ) from error
        self._writer: Any = SummaryWriter(str(folder))
        self._batches = 0

    def on_start(self, batches_per_epoch: int, epochs: int) -> None:
        """Remember how long epochs are."""
        self._batches = batches_per_epoch

    def on_batch(self, epoch: int, batch: int, loss: float, accuracy: float) -> None:
        """Running means over the epoch so far, by batches since the beginning."""
        done = (epoch - 1) * self._batches + batch
        self._writer.add_scalar("batch/loss", loss, done)
        if accuracy == accuracy:
            self._writer.add_scalar("batch/accuracy", accuracy, done)

    def on_evaluate(self, epoch: int) -> None:
        """Nothing is known yet."""

    def on_epoch(self, record: EpochRecord) -> None:
        """All numbers, by epoch."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(name.replace("_", "/", 1), value, record.epoch)
        self._writer.flush()


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def on_start(self, batches_per_epoch: int, epochs: int) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_start(batches_per_epoch, epochs)

    def on_batch(self, epoch: int, batch: int, loss: float, accuracy: float) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_batch(epoch, batch, loss, accuracy)

    def on_evaluate(self, epoch: int) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_evaluate(epoch)

    def on_epoch(self, record: EpochRecord) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_epoch(record)
