"""What several commands share: choices and loading a data set. Importing this loads neither torch nor matplotlib."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hesplit_native.data.dataset import Dataset


class DatasetName(str, Enum):
    """Where the heartbeats come from."""

    synthetic = "synthetic"
    mitbih = "mitbih"


class SplitName(str, Enum):
    """How MIT-BIH is divided."""

    paper = "paper"
    unique = "unique"
    patients = "patients"


class PackingName(str, Enum):
    """How ciphertexts are filled."""

    blocks = "blocks"
    slots = "slots"


def load_dataset(name: DatasetName, data_dir: Path | None, split: SplitName) -> Dataset:
    """The named data set, with a progress bar while records are read for the first time."""
    from hesplit_native.data import load_mitbih, synthetic_ecg

    if name is DatasetName.synthetic:
        return synthetic_ecg()
    from rich.progress import track

    return load_mitbih(
        data_dir, split=split.value, progress=lambda names: track(names, description="Reading records", transient=True)
    )


def set_threads(count: int) -> None:
    """One setting for torch and for the core."""
    import torch

    from hesplit_native import _core

    torch.set_num_threads(count)
    _core.set_num_threads(count)
