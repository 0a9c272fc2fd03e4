"""Numpy archives that are checked before they are believed, and written whole or not at all."""

from __future__ import annotations

import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import DataError
from hesplit_native.files import SHARED, make_folder, write_atomically


def read_npz(
    path: Path, names: tuple[str, ...], *, optional: tuple[str, ...] = (), max_bytes: int = 1 << 34
) -> dict[str, npt.NDArray[Any]]:
    """These arrays of an archive, without pickles; those that are ``optional`` only where they are.

    Every checksum is compared first: numpy stops reading where a header says that an array ends, and zip compares the checksum of a
    member only at its end, so a damaged header could pass as other data.

    Raises
    ------
    DataError
        When the file is missing, damaged, lacks an array, or would unpack to more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max_bytes:
                raise DataError(f"{path} would unpack to {unpacked} bytes, more than the {max_bytes} that are expected")
            damaged = archive.testzip()
            if damaged is not None:
                raise DataError(f"{path} is damaged: the checksum of {damaged} is wrong")
        with np.load(path, allow_pickle=False) as data:
            missing = [name for name in names if name not in data]
            if missing:
                raise DataError(f"{path} has no array {missing[0]!r}; it has {sorted(data)}")
            return {name: data[name] for name in (*names, *optional) if name in data}
    except DataError:
        raise
    # A TokenError is what numpy says to a header that is no literal of Python; a RuntimeError what the zip reader says to encryption
    # and, as NotImplementedError, to compressions that it does not know.
    except (
        OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, MemoryError, zipfile.BadZipFile, zlib.error,
        NotImplementedError, RuntimeError, struct.error, tokenize.TokenError,
    ) as error:  # fmt: skip
        raise DataError(f"{path} cannot be read: {error}") from error


def write_cache(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write an archive in one step. One that cannot be written costs time, not results: a warning says so."""
    try:
        make_folder(path.parent)
        # numpy types the first keyword after the arrays
        write_atomically(path, lambda file: np.savez(file, **arrays), mode=SHARED)  # type: ignore[arg-type]
    except OSError as error:
        warnings.warn(
            f"{path.parent} cannot keep processed data ({error.strerror or error}), which is made anew each time; "
            "XDG_CACHE_HOME can name another directory",
            stacklevel=2,
        )
