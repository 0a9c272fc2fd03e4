"""Labels alone, without what they are of: what the server of `vertical` has."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hesplit_native.errors import DataError


def load_labels(path: Path) -> Tensor:
    """Classes int64 [n], or independent labels 0 or 1 float32 [n, k]: an .npy file, or text with a row a line, k > 1 by commas.

    Raises
    ------
    DataError
        When it cannot be read, is empty, or holds anything else.
    """
    try:
        if path.suffix == ".npy":
            values = np.asarray(np.load(path, allow_pickle=False))
        else:
            with warnings.catch_warnings():  # of files without a row, which are refused below
                warnings.simplefilter("ignore")
                values = np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8", comments=None)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} holds no labels: {error}") from error
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or not values.size:
        raise DataError(
            f"{path} holds {values.dtype} {list(values.shape)}; expected numbers, a row for each row of the data"
        )
    found = values.astype(np.float64)
    if found.ndim == 2 and found.shape[1] > 1:
        if not np.isin(found, (0, 1)).all():
            raise DataError(f"{path}: labels in several columns are 0 or 1")
        return torch.from_numpy(found.astype(np.float32))
    found = found.reshape(-1)
    if not (np.isfinite(found).all() and (found == np.round(found)).all() and found.min() >= 0 and found.max() < 2**31):
        raise DataError(f"{path}: expected classes, whole numbers from 0")
    return torch.from_numpy(found.astype(np.int64))
