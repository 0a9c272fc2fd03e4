"""Training runs: configuration, the client, the loop, checkpoints, defences and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesplit_native.training.config import Defences, RunConfig

if TYPE_CHECKING:
    from hesplit_native.training.observers import CsvLog, TensorBoardLog
    from hesplit_native.training.result import EpochRecord, Observer, RunResult, StopTraining
    from hesplit_native.training.run import train, train_together

__all__ = [
    "CsvLog",
    "Defences",
    "EpochRecord",
    "Observer",
    "RunConfig",
    "RunResult",
    "StopTraining",
    "TensorBoardLog",
    "train",
    "train_together",
]

_WITH_TORCH = {
    "CsvLog": "observers",
    "TensorBoardLog": "observers",
    "EpochRecord": "result",
    "Observer": "result",
    "RunResult": "result",
    "StopTraining": "result",
    "train": "run",
    "train_together": "run",
}


def __getattr__(name: str) -> object:
    # A configuration is made without torch, which takes seconds to load.
    if name in _WITH_TORCH:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
