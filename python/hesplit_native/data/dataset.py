"""What every data set becomes before training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Dataset:
    """Signals and labels, split into train and test.

    `train_x` and `test_x` are float32 [n, channels, samples]; `train_y` and `test_y` int64 [n], indices into `classes`.
    `train_patient`, int64 [n], numbers the patients of the training rows, where that is known.
    """

    name: str
    split: str
    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    train_patient: npt.NDArray[np.int64] | None = None
