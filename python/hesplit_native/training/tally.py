"""What a run adds up of its batches."""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesplit_native.errors import RangeError

if TYPE_CHECKING:
    from hesplit_native.training.run import Run


class Tally:
    """Sums of the batches since it was last read: losses and hits stay tensors, which are only read when somebody asks."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loss = torch.tensor(run.progress.loss, dtype=torch.float64)
        self._correct = torch.tensor(run.progress.correct, dtype=torch.float64)
        self._batches = 0
        self.restart()

    def restart(self) -> None:
        """Time and bytes count from here."""
        self._since, self._before = perf_counter(), self._run.bytes

    def add(self, loss: Tensor, correct: Tensor | None, rows: int) -> None:
        """One batch more."""
        self._loss += loss
        if correct is not None:
            self._correct += correct
        self._run.progress.seen += rows
        self._run.progress.done += 1
        self._batches += 1

    def read(self) -> None:
        """Bring losses and hits of the progress up to date."""
        self._run.progress.loss, self._run.progress.correct = self._loss.item(), self._correct.item()

    def add_up(self) -> None:
        """Bring the progress up to date, and begin anew."""
        progress, now = self._run.progress, perf_counter()
        self.read()
        progress.seconds += now - self._since
        progress.add(train_seconds=now - self._since, batches=self._batches)
        self._run.count("", self._before)
        self._batches = 0
        self.restart()

    def check(self) -> None:
        """RangeError when training has diverged."""
        self.read()
        progress = self._run.progress
        if not math.isfinite(progress.loss):
            raise RangeError(
                f"the loss is {progress.loss} in epoch {progress.epoch}: training has diverged; lower the learning rate"
            )
