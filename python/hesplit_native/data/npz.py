"""Numpy archives that are checked before they are believed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import DataError


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """These arrays of an archive, without pickles.

    Every checksum is compared first: numpy stops reading where a header says that an array ends, and zip compares the checksum of a
    member only at its end, so a damaged header could pass as other data.

    Raises
    ------
    DataError
        When the file is missing, damaged or lacks an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise DataError(f"{path} is damaged: the checksum of {damaged} is wrong")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in names}
    except KeyError as error:
        raise DataError(f"{path} lacks the array {error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
