"""The records of MIT-BIH: where they come from, and reading one with errors that name the file."""

from __future__ import annotations

import functools
import os
import stat
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.data.wfdb_files import read_leads, read_with, signal_files
from hesplit_native.errors import DataError

# The 48 records of the MIT-BIH Arrhythmia Database.
MITBIH_RECORDS = tuple(
    str(n)
    for n in (
        *(100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 111, 112, 113, 114, 115, 116, 117, 118),
        *(119, 121, 122, 123, 124, 200, 201, 202, 203, 205, 207, 208, 209, 210, 212, 213, 214, 215),
        *(217, 219, 220, 221, 222, 223, 228, 230, 231, 232, 233, 234),
    )
)
SAMPLING_RATE = 360
LEAD = "MLII"
_SUFFIXES = (".hea", ".dat", ".atr")


@dataclass(frozen=True)
class Record:
    """The lead MLII of a record with its annotations.

    `signal` is float64 [samples] in millivolts, NaN where the file says that a sample is invalid; `samples` int64 [annotations]
    positions in it, `symbols` their MIT codes.
    """

    name: str
    signal: npt.NDArray[np.float64]
    samples: npt.NDArray[np.int64]
    symbols: tuple[str, ...]


def cache_directory() -> Path:
    """Where processed and downloaded data is kept: ``$XDG_CACHE_HOME/hesplit_native`` or ``~/.cache/hesplit_native``.

    Users without a home directory, or with one in which nothing can be made, get a directory of their own among the system's
    temporary files, and a warning that says so.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        path = (Path(base) if base else Path.home() / ".cache") / "hesplit_native"
        path.mkdir(parents=True, exist_ok=True)
    except RuntimeError:
        return _temporary_cache("there is no home directory")
    except OSError as error:
        return _temporary_cache(f"{error.filename or path} cannot be made ({error.strerror or error})")
    return path


@functools.cache
def _temporary_cache(why: str) -> Path:
    """A directory that no other user can write to: what is in it will be believed."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        path = Path(tempfile.gettempdir()) / f"hesplit_native-{user}"
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or (
            hasattr(os, "getuid") and (found.st_uid != user or found.st_mode & 0o022)
        ):
            raise FileExistsError(f"{path} belongs to somebody else")
    except FileExistsError:
        path = Path(tempfile.mkdtemp(prefix="hesplit_native-"))
    except OSError as error:
        raise DataError(
            f"there is no place for processed and downloaded data: {why}, and no temporary directory ({error.strerror or error}); "
            "name a directory in the environment variable XDG_CACHE_HOME"
        ) from error
    warnings.warn(
        f"{why}: processed and downloaded data is kept in {path}; XDG_CACHE_HOME can name another directory",
        stacklevel=3,
    )
    return path


def find_mitbih(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The directory of the records: the one given, ``HESPLIT_MITDB``, or a download into the cache.

    Raises
    ------
    DataError
        When the directory does not exist or the download fails.
    """
    named = data_dir or os.environ.get("HESPLIT_MITDB")
    if named:
        path = Path(named)
        if not path.is_dir():
            source = "--data-dir" if data_dir else "HESPLIT_MITDB"
            raise DataError(f"{source} names {path}, which is not a directory")
        return path
    path = cache_directory() / "mitdb"
    _download(path)
    return path


def _download(path: Path) -> None:
    import wfdb
    from rich.progress import track

    try:
        missing = [
            name + suffix for name in MITBIH_RECORDS for suffix in _SUFFIXES if not (path / (name + suffix)).exists()
        ]
        if missing:
            path.mkdir(parents=True, exist_ok=True)
            for file in track(missing, description="Downloading MIT-BIH records"):
                wfdb.dl_files("mitdb", str(path), [file], keep_subdirs=False)
    except Exception as error:
        raise DataError(
            f"could not download the MIT-BIH records to {path} ({type(error).__name__}). Without a network, give a directory that "
            "holds the 48 records with --data-dir or in the environment variable HESPLIT_MITDB"
        ) from error


def record_files(directory: Path, name: str) -> list[Path]:
    """The files of a record as MIT-BIH's: header, annotations and the signal file that the header names.

    Raises
    ------
    DataError
        Naming the file that is missing or truncated, or saying what else the header describes.
    """
    base = directory / name
    header, signals = signal_files(base)
    _check_storage(base, header, signals)
    return [base.with_name(f"{name}.hea"), _annotations(base), *signals]


def read_record(directory: Path, name: str, *, annotations: bool = True, any_storage: bool = False) -> Record:
    """The lead MLII of a record at 360 Hz, with its reference annotations.

    The lead is chosen by its name, wherever it lies in the record.

    Parameters
    ----------
    name
        Without suffix or with that of one of the record's files.
    any_storage
        Read whatever wfdb reads, several segments, signal files and all formats. Otherwise a record that is not stored as MIT-BIH's
        are, in one file in format 212, is refused: it is another one under its name.

    Raises
    ------
    DataError
        Naming the file that is missing, truncated or of another kind, or the leads there are where MLII is not.
    """
    if name.endswith(_SUFFIXES) and not (directory / f"{name}.hea").is_file():
        name = name.rpartition(".")[0]
    base = directory / name
    header, files = signal_files(base)
    if not any_storage:
        _check_storage(base, header, files)
    if annotations:
        _annotations(base)
    signal = read_leads(base, header, (LEAD,), SAMPLING_RATE)[:, 0]
    finite = signal[np.isfinite(signal)]
    if not len(finite) or finite.max() <= finite.min():
        raise DataError(f"{base}.hea: the lead {LEAD} holds no usable signal")
    if not annotations:
        return Record(name, signal, np.zeros(0, np.int64), ())
    samples, symbols = _read_annotations(base, len(signal))
    return Record(name, signal, samples, symbols)


def _check_storage(base: Path, header: Any, files: list[Path]) -> None:
    """Refuse a record that is not stored as those of MIT-BIH are."""
    if header.fs != SAMPLING_RATE or not header.n_sig:
        raise DataError(
            f"{base}.hea is not an MIT-BIH record: {header.n_sig} signals at {header.fs} Hz, expected {SAMPLING_RATE} Hz"
        )
    if hasattr(header, "seg_name"):
        raise DataError(f"{base}.hea is not an MIT-BIH record: it has {header.n_seg} segments, expected a single one")
    if len(files) != 1 or set(header.fmt) != {"212"}:
        raise DataError(
            f"{base}.hea is not an MIT-BIH record: {len(files)} signal files in format {', '.join(sorted(set(header.fmt)))}, "
            "expected one in format 212"
        )


def _annotations(base: Path) -> Path:
    path = base.with_name(f"{base.name}.atr")
    if not path.is_file():
        raise DataError(f"{path} is missing, the record's reference annotations")
    return path


def _read_annotations(base: Path, length: int) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    import wfdb

    found = read_with(wfdb.rdann, base, ".atr", "atr")
    samples = np.asarray(found.sample, dtype=np.int64)
    if found.fs not in (None, SAMPLING_RATE):
        raise DataError(
            f"{base}.atr counts time in steps of 1/{found.fs} s, expected 1/{SAMPLING_RATE} s as in the signal"
        )
    if len(samples) and (samples.min() < 0 or samples.max() >= length):
        raise DataError(f"{base}.atr does not belong to this record: its annotations lie outside of the signal")
    if (np.diff(samples) < 0).any():
        raise DataError(f"{base}.atr is damaged: its annotations are not in the order of time")
    return samples, tuple(found.symbol)
