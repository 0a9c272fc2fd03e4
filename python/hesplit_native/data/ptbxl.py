"""PTB-XL: 12-lead recordings of ten seconds in five diagnostic superclasses.

The label of a recording is the superclass of the first diagnostic statement among its SCP codes; recordings without one are left out.
That leaves the papers' 21,430 of the 21,799 recordings. Fold 10 is the test set, as the data set's authors recommend.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.data.dataset import Dataset
from hesplit_native.data.npz import read_npz
from hesplit_native.data.records import cache_directory
from hesplit_native.errors import DataError

CLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
SAMPLES = 1000
SAMPLING_RATE = 100
TEST_FOLD = 10
_RECIPE = 1  # part of the cache's name: raise it when the reading changes

Progress = Callable[[Iterable[Any]], Iterable[Any]]
Signals = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def load_ptbxl(
    data_dir: str | os.PathLike[str] | None = None, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Recordings float32 [n, 12, 1000] at 100 Hz, each with its leads centred and the whole scaled to unit deviation.

    Parameters
    ----------
    data_dir
        The official folder (``ptbxl_database.csv``, ``scp_statements.csv``, ``records100/``), or an ``.npz`` with ``signal_uV`` int16
        [n, 12, 1000], ``label``, ``classes``, ``strat_fold`` and ``leads``; None: ``HESPLIT_PTBXL``.
    progress
        Wraps the iteration over recordings, e.g. `rich.progress.track`.

    Raises
    ------
    DataError
        Naming the missing or unusable file.
    """
    named = data_dir or os.environ.get("HESPLIT_PTBXL")
    if not named:
        raise DataError(
            "PTB-XL is not downloaded by itself: give its folder with --data-dir or in the environment variable HESPLIT_PTBXL"
        )
    path = Path(named)
    if path.is_dir():
        millivolts, labels, folds, patients = _read_folder(path, cache_dir or cache_directory(), progress)
    elif path.suffix == ".npz":
        millivolts, labels, folds = _read_subset(path)
        patients = None
    else:
        raise DataError(f"{path} is neither the PTB-XL folder nor an .npz file")
    signals = _normalise(millivolts)
    test = folds == TEST_FOLD
    if not test.any() or test.all():
        raise DataError(f"{path} has no recordings of fold {TEST_FOLD}, the test set, or no others")
    return Dataset(
        "ptbxl",
        "fold 10",
        signals[~test],
        labels[~test],
        signals[test],
        labels[test],
        CLASSES,
        patients[~test] if patients is not None else None,
    )


def _normalise(millivolts: Signals) -> Signals:
    centred = millivolts - millivolts.mean(axis=2, keepdims=True)
    deviation = centred.std(axis=(1, 2), keepdims=True)
    scaled: Signals = centred / np.maximum(deviation, np.float32(0.01))
    return scaled


# The official folder


def _read_folder(folder: Path, cache_dir: Path, progress: Progress | None) -> tuple[Signals, Labels, Labels, Labels]:
    superclass = _superclasses(folder / "scp_statements.csv")
    rows = _read_database(folder / "ptbxl_database.csv", superclass)
    digest = hashlib.sha256(f"recipe {_RECIPE}".encode())
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        digest.update((folder / name).read_bytes())
    for name, *_ in rows:
        for suffix in (".hea", ".dat"):
            file = folder / (name + suffix)
            if not file.is_file():
                raise DataError(f"{file} is missing, though ptbxl_database.csv names it; download the data set again")
            status = file.stat()
            digest.update(f"{name}{suffix} {status.st_size} {status.st_mtime_ns}".encode())
    cache = cache_dir / f"ptbxl-{digest.hexdigest()[:24]}.npz"
    signals = _read_cache(cache, len(rows))
    if signals is None:
        signals = np.stack([_read_recording(folder, row[0]) for row in (progress or list)(rows)])
        _write_cache(cache, signals)
    numbers = np.array([row[1:] for row in rows], np.int64)
    return signals, numbers[:, 0], numbers[:, 1], numbers[:, 2]


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks the column {missing[0]!r}")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _superclasses(path: Path) -> dict[str, int]:
    """The superclass of each diagnostic statement."""
    rows = _table(path, ("", "diagnostic", "diagnostic_class"))
    found = {
        row[""]: CLASSES.index(row["diagnostic_class"])
        for row in rows
        if row["diagnostic"] in ("1", "1.0") and row["diagnostic_class"] in CLASSES
    }
    if not found:
        raise DataError(f"{path} names no diagnostic statements")
    return found


def _read_database(path: Path, superclass: dict[str, int]) -> list[tuple[str, int, int, int]]:
    """File name, label, fold and patient of every recording with a diagnostic statement."""
    rows = []
    for number, row in enumerate(_table(path, ("scp_codes", "strat_fold", "filename_lr", "patient_id")), 2):
        try:
            codes = ast.literal_eval(row["scp_codes"])
            label = next((superclass[code] for code in codes if code in superclass), None)
            fold, patient = int(row["strat_fold"]), int(float(row["patient_id"]))
            if not isinstance(codes, dict) or not 1 <= fold <= 10:
                raise ValueError("expected a dictionary of codes and a fold from 1 to 10")
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        name = row["filename_lr"]
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}, line {number}: the file name {name!r} does not lie in the data set's folder")
        if label is not None:
            rows.append((name, label, fold, patient))
    if not rows:
        raise DataError(f"{path} names no recording with a diagnostic statement")
    return rows


def _read_recording(folder: Path, name: str) -> Signals:
    import wfdb

    path = folder / name
    try:
        record = wfdb.rdrecord(str(path))
    except Exception as error:
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}") from error
    signal = record.p_signal
    if record.fs != SAMPLING_RATE or signal is None or signal.shape != (SAMPLES, len(LEADS)):
        shape = None if signal is None else list(signal.shape)
        raise DataError(
            f"{path} is no recording of PTB-XL: {shape} at {record.fs} Hz, expected [{SAMPLES}, {len(LEADS)}] at {SAMPLING_RATE} Hz"
        )
    if [lead.upper() for lead in record.sig_name] != list(LEADS) or set(record.units) != {"mV"}:
        raise DataError(f"{path} has other leads or units than PTB-XL: {record.sig_name} in {set(record.units)}")
    if not np.isfinite(signal).all():
        raise DataError(f"{path} holds invalid samples")
    return np.ascontiguousarray(signal.T, dtype=np.float32)


def _read_cache(path: Path, count: int) -> Signals | None:
    try:
        signals = read_npz(path, ("signal",))["signal"]
    except DataError:
        return None
    return signals if signals.shape == (count, len(LEADS), SAMPLES) and signals.dtype == np.float32 else None


def _write_cache(path: Path, signals: Signals) -> None:
    """Atomic; a cache that cannot be written costs time, not results."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, signal=signals)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


# The subset in one file


def _read_subset(path: Path) -> tuple[Signals, Labels, Labels]:
    data = read_npz(path, ("signal_uV", "label", "classes", "strat_fold", "leads"))
    signal, label, fold = data["signal_uV"], data["label"], data["strat_fold"]
    count = len(signal)
    if signal.shape != (count, len(LEADS), SAMPLES) or signal.dtype != np.int16 or count == 0:
        raise DataError(f"{path}: expected signal_uV as int16 [n, {len(LEADS)}, {SAMPLES}]")
    if label.shape != (count,) or fold.shape != (count,) or label.dtype.kind not in "iu" or fold.dtype.kind not in "iu":
        raise DataError(f"{path}: expected label and strat_fold as integers [{count}]")
    names = [str(name) for name in data["classes"]]
    if sorted(names) != sorted(CLASSES) or [str(lead).upper() for lead in data["leads"]] != list(LEADS):
        raise DataError(f"{path}: expected the classes {', '.join(CLASSES)} and the leads {', '.join(LEADS)}")
    if label.min() < 0 or label.max() >= len(CLASSES) or fold.min() < 1 or fold.max() > 10:
        raise DataError(f"{path}: a label or a fold is out of range")
    order = np.array([CLASSES.index(name) for name in names], np.int64)
    return signal.astype(np.float32) / np.float32(1000), order[label], fold.astype(np.int64)
