"""Runs one row of a table in a process of its own and writes what it measured."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from hesplit_native.data import load_mitbih, load_ptbxl, synthetic_ecg
from hesplit_native.data.dataset import Dataset
from hesplit_native.errors import HESplitError, ParameterError
from hesplit_native.reproduce.tables import Row
from hesplit_native.training import report
from hesplit_native.training.config import RunConfig
from hesplit_native.triad import TriadConfig

if TYPE_CHECKING:
    from hesplit_native.training.result import EpochRecord
    from hesplit_native.triad import Cohort

_REPORT_SECONDS = 0.5


def run_row(row: Row, folder: Path, sources: dict[str, str | None], queue: Any) -> None:
    """Train, and write ``<id>.json`` when done. A row that was interrupted goes on from its last checkpoint.

    ``queue`` receives (row id, done, total) from time to time.
    """
    import torch

    from hesplit_native import _core

    # Rows run side by side: one thread each.
    torch.set_num_threads(1)
    _core.set_num_threads(1)
    values = (
        _triad(row, sources, queue)
        if isinstance(row.config, TriadConfig)
        else _train(row, row.config, folder, sources, queue)
    )
    report.write_metrics(folder / f"{row.id}.json", values)


def load(data: str, sources: dict[str, str | None]) -> Dataset:
    """A data set by its name in the tables."""
    if data == "synthetic":
        return synthetic_ecg(train=320, test=200)
    return load_mitbih(sources.get(data)) if data == "mitbih" else load_ptbxl(sources.get(data))


def _train(row: Row, config: RunConfig, folder: Path, sources: dict[str, str | None], queue: Any) -> dict[str, Any]:
    from hesplit_native.training.run import train

    dataset = load(row.data, sources)
    checkpoints = folder / "checkpoints" / row.id
    progress = _Progress(row.id, queue)
    resume = any(checkpoints.glob("client-*.safetensors"))
    result = train(config, dataset, observer=progress, checkpoints=checkpoints, resume=resume)
    if result.interrupted:
        raise HESplitError(f"{row.id}: {result.interrupted}")
    values = report.metrics(result, dataset)
    epochs = len(result.history)
    curve = [100 * record.test_accuracy for record in result.history if record.test_accuracy is not None]
    return {
        "metric": sum(curve[-3:]) / len(curve[-3:]),
        "seconds_per_epoch": result.train_seconds / epochs,
        "bytes_per_epoch": (result.bytes_up + result.bytes_down) / epochs,
        "curve": curve,
        **{key: values[key] for key in ("config", "parameters", "flooding", "clipped", "machine", "versions", "notes")},
        "data": f"{dataset.name} ({dataset.split}), {len(dataset.train_y)} rows to train on",
    }


def _triad(row: Row, sources: dict[str, str | None], queue: Any) -> dict[str, Any]:
    from hesplit_native.triad import load_cifar10, run, synthetic_cohort, synthetic_images

    config = row.config
    assert isinstance(config, TriadConfig)
    source = sources.get(row.data)
    data: Any
    if row.data == "ldl":
        data = _cohort(Path(source), sources) if source else synthetic_cohort()
    else:
        data = load_cifar10(Path(source)) if source else synthetic_images()
    progress = _TriadProgress(row.id, config.epochs, queue)
    result = run(config, data, progress)
    percent = 100.0 if config.task == "cifar10" else 1.0
    return {
        "metric": percent * result.metric,
        "seconds_per_epoch": result.train_seconds / config.epochs,
        "bytes_per_epoch": float(result.bytes_sent),
        "curve": [percent * record.metric for record in result.history],
        "config": asdict(config),
        "data": f"{data.name}, {result.train_rows} rows to train on",
        "baseline": percent * result.baseline,
        **report.environment(),
    }


def _cohort(path: Path, sources: dict[str, str | None]) -> Cohort:
    from hesplit_native.triad import load_csv

    pairs = [part.partition("=") for part in (sources.get("ldl-columns") or "").split(",")]
    if not all(name.strip() and column.strip() for name, _, column in pairs):
        raise ParameterError("columns of a table are named as name=column,name=column,...")
    columns = {name.strip(): column.strip() for name, _, column in pairs}
    return load_csv(path, columns, unit="mg/dL" if sources.get("ldl-unit") == "mg/dL" else "mmol/L")


class _Progress:
    """Reports steps of training."""

    def __init__(self, row: str, queue: Any) -> None:
        self.row, self.queue, self.said = row, queue, 0.0
        self.parent = os.getppid()
        self.batches, self.total = 0, 0

    def on_start(self, batches_per_epoch: int, epochs: int) -> None:
        self.batches, self.total = batches_per_epoch, batches_per_epoch * epochs

    def on_batch(self, epoch: int, batch: int, loss: float, accuracy: float) -> None:
        if monotonic() - self.said > _REPORT_SECONDS:
            if os.getppid() != self.parent:
                raise KeyboardInterrupt  # killed without a chance to stop its rows, which another run will go on with
            self.queue.put((self.row, (epoch - 1) * self.batches + batch, self.total))
            self.said = monotonic()

    def on_evaluate(self, epoch: int) -> None:
        pass

    def on_epoch(self, record: EpochRecord) -> None:
        self.queue.put((self.row, record.epoch * self.batches, self.total))


class _TriadProgress:
    """Reports epochs of a Triad run."""

    def __init__(self, row: str, epochs: int, queue: Any) -> None:
        self.row, self.epochs, self.queue = row, epochs, queue

    def on_participant(self, participant: int, participants: int, rows: int, sent: int) -> None:
        pass

    def on_epoch(self, record: Any) -> None:
        self.queue.put((self.row, record.epoch, self.epochs))
