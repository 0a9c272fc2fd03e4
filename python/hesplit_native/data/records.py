"""WFDB records: where they come from, and reading one with errors that name the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
_SUFFIXES = (".hea", ".dat", ".atr")


@dataclass(frozen=True)
class Record:
    """One channel of a record with its annotations.

    `signal` is float64 [samples] in millivolts, `samples` int64 [annotations] positions in it, `symbols` their MIT codes.
    """

    name: str
    signal: npt.NDArray[np.float64]
    samples: npt.NDArray[np.int64]
    symbols: tuple[str, ...]


def cache_directory() -> Path:
    """Where processed and downloaded data is kept: ``$XDG_CACHE_HOME/hesplit_native`` or ``~/.cache/hesplit_native``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hesplit_native"


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
    missing = [
        name + suffix for name in MITBIH_RECORDS for suffix in _SUFFIXES if not (path / (name + suffix)).exists()
    ]
    if not missing:
        return
    import wfdb
    from rich.progress import track

    path.mkdir(parents=True, exist_ok=True)
    try:
        for file in track(missing, description="Downloading MIT-BIH records"):
            wfdb.dl_files("mitdb", str(path), [file], keep_subdirs=False)
    except Exception as error:
        raise DataError(
            f"could not download the MIT-BIH records ({type(error).__name__}). Without a network, give a directory that holds the "
            "48 records with --data-dir or in the environment variable HESPLIT_MITDB"
        ) from error


def read_record(directory: Path, name: str, *, annotations: bool = True) -> Record:
    """The first channel of a record at 360 Hz, with its reference annotations.

    Raises
    ------
    DataError
        Naming the file that is missing, truncated or of another kind.
    """
    import wfdb

    base = directory / name
    for suffix in _SUFFIXES if annotations else _SUFFIXES[:2]:
        if not base.with_name(name + suffix).is_file():
            raise DataError(f"{base}{suffix} is missing; a record is the three files {name}.hea, .dat and .atr")
    header = _read(wfdb.rdheader, base, ".hea")
    if header.fs != SAMPLING_RATE or not header.n_sig or not header.sig_len:
        raise DataError(
            f"{base}.hea is not an MIT-BIH record: {header.n_sig} signals at {header.fs} Hz, expected {SAMPLING_RATE} Hz"
        )
    _check_size(base, header)
    signal = np.asarray(_read(wfdb.rdrecord, base, ".dat", channels=[0]).p_signal[:, 0])
    if not np.isfinite(signal).all() or signal.max() <= signal.min():
        raise DataError(f"{base}.dat holds no usable signal in its first channel")
    if not annotations:
        return Record(name, signal, np.zeros(0, np.int64), ())
    found = _read(wfdb.rdann, base, ".atr", "atr")
    samples = np.asarray(found.sample, dtype=np.int64)
    if len(samples) < 3 or samples.min() < 0 or samples.max() >= len(signal):
        raise DataError(f"{base}.atr does not belong to this record: its annotations lie outside of the signal")
    return Record(name, signal, samples, tuple(found.symbol))


def _read(reader: Any, base: Path, suffix: str, *arguments: Any, **options: Any) -> Any:
    try:
        return reader(str(base), *arguments, **options)
    except Exception as error:
        raise DataError(f"{base}{suffix} cannot be read: {error or type(error).__name__}") from error


def _check_size(base: Path, header: Any) -> None:
    """Wfdb reads what is there; a truncated format-212 file must not pass as a shorter record."""
    names = header.file_name or []
    if not names or len(set(names)) != 1 or set(header.fmt) != {"212"}:
        raise DataError(f"{base}.hea is not an MIT-BIH record: expected one signal file in format 212")
    path = base.with_name(names[0])
    if not path.is_file():
        raise DataError(f"{path} is missing (named in {base}.hea)")
    expected = (header.sig_len * header.n_sig * 3 + 1) // 2
    size = path.stat().st_size
    if size < expected:
        raise DataError(f"{path} is truncated: {size} bytes, expected {expected}; download it again")
