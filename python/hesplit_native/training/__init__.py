"""Training runs: configuration, the client, the loop, checkpoints, defences and reports."""

from __future__ import annotations

from hesplit_native.training.config import RunConfig
from hesplit_native.training.defences import Defences
from hesplit_native.training.result import EpochRecord, Observer, RunResult
from hesplit_native.training.run import train, train_together

__all__ = ["Defences", "EpochRecord", "Observer", "RunConfig", "RunResult", "train", "train_together"]
