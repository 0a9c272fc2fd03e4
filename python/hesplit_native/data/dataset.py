"""What every data set becomes before training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import Labels
from hesplit_native.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """Signals and labels, split into train and test.

    `train_x` and `test_x` are float32 [n, channels, samples]; `train_y` and `test_y` int64 [n], indices into `classes`, or, where a
    row may be of several, int64 [n, classes] of 0 and 1.
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

    @property
    def labels(self) -> Labels:
        """Whether a row is of one class, or of any number of them."""
        return "multi" if self.train_y.ndim == 2 else "single"


def check_dataset(data: Dataset) -> None:
    """Refuse what no training can use, before it starts.

    Raises
    ------
    DataError
        Naming the array, the row and the sample where a value is not finite or a label is none of the classes, or saying what is
        wrong with shapes, types and lengths.
    """
    name = f"the data set {data.name!r}"
    if len(data.classes) < 2 or len(set(data.classes)) != len(data.classes):
        raise DataError(f"{name} needs at least two classes of different names, got {data.classes}")
    for side, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 3 or 0 in x.shape:
            raise DataError(f"{name}, {side}_x: expected float32 [n, channels, samples] with n > 0, got {_describe(x)}")
        shapes = (x.shape[:1], (len(x), len(data.classes)))
        if not isinstance(y, np.ndarray) or y.dtype != np.int64 or y.shape not in shapes:
            raise DataError(
                f"{name}, {side}_y: expected int64 [{len(x)}], a label for each row of {side}_x, or "
                f"[{len(x)}, {len(data.classes)}] of 0 and 1, got {_describe(y)}"
            )
        _check_finite(x, f"{name}, {side}_x")
        _check_labels(y, len(data.classes), f"{name}, {side}_y")
    if data.train_y.ndim != data.test_y.ndim:
        raise DataError(f"{name}: train_y and test_y must both have one label a row, or both a column for each class")
    if data.train_x.shape[1:] != data.test_x.shape[1:]:
        raise DataError(
            f"{name}: rows of train_x are {data.train_x.shape[1:]}, those of test_x {data.test_x.shape[1:]}"
        )
    patient = data.train_patient
    if patient is not None and (
        not isinstance(patient, np.ndarray) or patient.dtype.kind not in "iu" or patient.shape != data.train_y.shape[:1]
    ):
        raise DataError(f"{name}, train_patient: expected integers [{len(data.train_y)}], got {_describe(patient)}")


def _check_labels(y: npt.NDArray[np.int64], classes: int, where: str) -> None:
    least, most = (0, classes - 1) if y.ndim == 1 else (0, 1)
    unknown = np.argwhere((y < least) | (y > most))
    if len(unknown):
        row = unknown[0, 0]
        of = f"row {row}" if y.ndim == 1 else f"row {row}, column {unknown[0, 1]}"
        raise DataError(f"{where}: label {y[tuple(unknown[0])]} of {of} is not in {least}..{most}")


def _check_finite(x: npt.NDArray[np.float32], where: str) -> None:
    """A chunk of rows at a time: a mask of the whole would take a quarter of the data's memory again."""
    bad: list[int] = []
    for start in range(0, len(x), 4096):
        part = x[start : start + 4096]
        bad += (start + np.flatnonzero(~np.isfinite(part).all(axis=(1, 2)))).tolist()
    if bad:
        channel, sample = np.argwhere(~np.isfinite(x[bad[0]]))[0]
        raise DataError(
            f"{where}: {len(bad)} of {len(x)} rows hold values that are not finite, the first {x[bad[0], channel, sample]} in row "
            f"{bad[0]}, channel {channel}, sample {sample}; leave these rows out or repair them"
        )


def _describe(array: object) -> str:
    return f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
