"""PTB-XL: 12-lead recordings of ten seconds in five diagnostic superclasses.

The papers' label of a recording is the superclass of the first diagnostic statement among its SCP codes; as the data set's authors
mean it, a recording is of the superclasses of all its diagnostic statements. Recordings without one are left out. That leaves the
papers' 21,430 of the 21,799 recordings. Fold 10 is the test set, as the authors recommend.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import Labels
from hesplit_native.data.dataset import Dataset
from hesplit_native.data.npz import read_npz, write_cache
from hesplit_native.data.records import cache_directory
from hesplit_native.data.tables import Fault, read_table, settle
from hesplit_native.data.wfdb_files import read_leads, signal_files
from hesplit_native.errors import DataError

CLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
SAMPLES = 1000
SAMPLING_RATE = 100
TEST_FOLD = 10
_RECIPE = 1  # part of the cache's name: raise it when the reading changes

Progress = Callable[[Iterable[Any]], Iterable[Any]]
Signals = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def load_ptbxl(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    labels: Labels = "single",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Recordings float32 [n, 12, 1000] at 100 Hz, each with its leads centred and the whole scaled to unit deviation.

    Leads are found by their names. Recordings with invalid samples, and rows of ``ptbxl_database.csv`` that cannot be read or repeat
    another, are left out with a warning that counts them; of unreadable rows at most one in fifty.

    Parameters
    ----------
    data_dir
        The official folder (``ptbxl_database.csv``, ``scp_statements.csv``, ``records100/``), or an ``.npz`` with ``signal_uV`` int16
        [n, 12, 1000], ``label`` (or ``label_multi``), ``classes``, ``strat_fold`` and ``leads``; None: ``HESPLIT_PTBXL``.
    labels
        ``"single"``: the papers', int64 [n], the superclass of the first diagnostic statement. ``"multi"``: those of all of them,
        int64 [n, 5] of 0 and 1.
    progress
        Wraps the iteration over recordings, e.g. `rich.progress.track`.

    Raises
    ------
    DataError
        Naming the missing or unusable file.
    """
    if labels not in get_args(Labels):
        raise DataError(f"labels must be {' or '.join(get_args(Labels))}, got {labels!r}")
    named = data_dir or os.environ.get("HESPLIT_PTBXL")
    if not named:
        raise DataError(
            "PTB-XL is not downloaded by itself: give its folder with --data-dir or in the environment variable HESPLIT_PTBXL"
        )
    path = Path(named)
    if path.is_dir():
        millivolts, classes, folds, patients = _read_folder(path, cache_dir or cache_directory(), progress)
        y = _labels(classes, labels)
    elif path.suffix == ".npz":
        millivolts, y, folds = _read_subset(path, labels)
        patients = None
    else:
        raise DataError(f"{path} is neither the PTB-XL folder nor an .npz file")
    signals = normalise(millivolts)
    test = folds == TEST_FOLD
    if not test.any() or test.all():
        raise DataError(f"{path} has no recordings of fold {TEST_FOLD}, the test set, or no others")
    return Dataset(
        "ptbxl",
        "fold 10",
        signals[~test],
        y[~test],
        signals[test],
        y[test],
        CLASSES,
        patients[~test] if patients is not None else None,
    )


def _labels(classes: list[tuple[int, ...]], labels: Labels) -> Integers:
    """The first class of each recording [n], or for all [n, 5] whether the recording is of it."""
    if labels == "single":
        return np.array([found[0] for found in classes], np.int64)
    several = np.zeros((len(classes), len(CLASSES)), np.int64)
    for row, found in zip(several, classes, strict=True):
        row[list(found)] = 1
    return several


def normalise(millivolts: Signals) -> Signals:
    """Recordings float32 [n, 12, 1000] with their leads centred and the whole scaled to unit deviation."""
    centred = millivolts - millivolts.mean(axis=2, keepdims=True)
    deviation = centred.std(axis=(1, 2), keepdims=True)
    scaled: Signals = centred / np.maximum(deviation, np.float32(0.01))
    return scaled


# The official folder


def _read_folder(
    folder: Path, cache_dir: Path, progress: Progress | None
) -> tuple[Signals, list[tuple[int, ...]], Integers, Integers]:
    """Signals, the classes of each in the order of its statements, folds and patients."""
    rows = _read_database(folder)
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
        write_cache(cache, signal=signals)
    whole = np.array([np.isfinite(signal).all() for signal in signals])
    if not whole.all():
        first = rows[int(np.argmin(whole))][0]
        words = (
            f"{np.sum(~whole)} of {len(rows)} recordings are left out, they hold invalid samples; the first is {first}"
        )
        if not whole.any():
            raise DataError(f"{folder}: {words}")
        warnings.warn(f"{folder}: {words}", stacklevel=3)
        signals, rows = signals[whole], [row for row, is_whole in zip(rows, whole, strict=True) if is_whole]
    numbers = np.array([row[2:] for row in rows], np.int64)
    return signals, [row[1] for row in rows], numbers[:, 0], numbers[:, 1]


def _read_database(folder: Path) -> list[tuple[str, tuple[int, ...], int, int]]:
    """File name, classes in the order of its statements, fold and patient of every recording with a diagnostic statement."""
    path = folder / "ptbxl_database.csv"
    columns = ("scp_codes", "strat_fold", "filename_lr", "patient_id")
    table = read_table(path, columns)
    faults = list(table.faults)
    recordings: dict[str, tuple[list[str], int, int]] = {}
    repeated = 0
    for line, *cells in zip(table.lines, *map(table.column, columns), strict=True):
        try:
            codes, fold, patient = _codes(cells[0]), _whole(cells[1], "strat_fold"), _whole(cells[3], "patient_id")
            name = _file_name(cells[2])
            if not 1 <= fold <= 10:
                raise ValueError(f"the fold {fold} is not in 1..10")
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            faults.append(Fault("unreadable", f"line {line}: {error or type(error).__name__}"))
            continue
        repeated += name in recordings
        recordings.setdefault(name, (codes, fold, patient))
    dropped = settle(path, faults, len(table.rows) + len(table.faults)) + Counter(repeated=repeated)
    if dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        first = f"; the first: {faults[0].words}" if faults else ""
        warnings.warn(f"{path}: rows left out: {counts}{first}", stacklevel=4)
    superclass = _superclasses(
        folder / "scp_statements.csv", {code for codes, _, _ in recordings.values() for code in codes}
    )
    rows = []
    for name, (codes, fold, patient) in recordings.items():
        classes = tuple(superclass[code] for code in codes if code in superclass)
        if classes:
            rows.append((name, classes, fold, patient))
    if not rows:
        raise DataError(f"{path} names no recording with a diagnostic statement")
    return rows


def _codes(cell: str) -> list[str]:
    """The SCP codes of a recording in their order, from the dictionary that the cell writes, whatever its quotes have become."""
    value = ast.literal_eval(cell.translate(dict.fromkeys(map(ord, "‘’‚“”„"), "'")))
    if isinstance(value, str):
        value = ast.literal_eval(value)
    if not isinstance(value, dict) or not all(isinstance(code, str) for code in value):
        raise ValueError("scp_codes is no dictionary of codes")
    return [code.strip() for code in value]


def _whole(cell: str, column: str) -> int:
    """A whole number, which pandas and spreadsheets like to write as 10.0 or 10,0."""
    found = re.fullmatch(r"([0-9]{1,15})(?:[.,]0?)?", cell)
    if not found:
        raise ValueError(f"{column} is {cell!r}, expected a whole number")
    return int(found[1])


def _file_name(cell: str) -> str:
    name = re.sub(r"\.(hea|dat)$", "", cell.replace("\\", "/"))
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"the file name {name!r} does not lie in the data set's folder")
    return name


def _superclasses(path: Path, used: set[str]) -> dict[str, int]:
    """The superclass of each diagnostic statement.

    The column of codes has no name, or what a spreadsheet or pandas made of that: it is the one that holds most of the used codes,
    each once.
    """
    table = read_table(path, ("diagnostic", "diagnostic_class"))
    settle(path, table.faults, len(table.rows) + len(table.faults))
    hits = []
    for name, *cells in zip(table.header, *table.rows, strict=True):
        codes = [cell for cell in cells if cell]
        once = len(set(codes)) == len(codes) and name.lower() != "diagnostic_class"  # a code, NORM, is a class as well
        hits.append(len(used.intersection(codes)) if once else 0)
    if 2 * max(hits) < len(used) or not used:
        raise DataError(f"{path} has no column with the codes of statements that ptbxl_database.csv uses")
    codes = [row[int(np.argmax(hits))] for row in table.rows]
    unknown = used.difference(codes)
    if unknown:
        warnings.warn(f"{path} lacks the codes {', '.join(sorted(unknown))}, which count as no diagnosis", stacklevel=5)
    kinds = zip(codes, table.column("diagnostic"), table.column("diagnostic_class"), strict=True)
    found = {
        code: CLASSES.index(superclass)
        for code, diagnostic, superclass in kinds
        if re.fullmatch(r"1([.,]0?)?|true", diagnostic, re.IGNORECASE) and superclass in CLASSES
    }
    if not found:
        raise DataError(f"{path} names no diagnostic statements")
    return found


def _read_recording(folder: Path, name: str) -> Signals:
    path = folder / name
    header, _ = signal_files(path)
    if header.fs != SAMPLING_RATE or header.sig_len != SAMPLES:
        raise DataError(
            f"{path} is no recording of PTB-XL: {header.sig_len} samples at {header.fs} Hz, expected {SAMPLES} at {SAMPLING_RATE} Hz"
        )
    return np.ascontiguousarray(read_leads(path, header, LEADS, SAMPLING_RATE).T, dtype=np.float32)


def _read_cache(path: Path, count: int) -> Signals | None:
    try:
        signals = read_npz(path, ("signal",))["signal"]
    except DataError:
        return None
    return signals if signals.shape == (count, len(LEADS), SAMPLES) and signals.dtype == np.float32 else None


# The subset in one file


def _read_subset(path: Path, labels: Labels) -> tuple[Signals, Integers, Integers]:
    key, several = ("label_multi", True) if labels == "multi" else ("label", False)
    data = read_npz(path, ("signal_uV", key, "classes", "strat_fold", "leads"))
    signal, label, fold = data["signal_uV"], data[key], data["strat_fold"]
    count = len(signal)
    if signal.shape != (count, len(LEADS), SAMPLES) or signal.dtype != np.int16 or count == 0:
        raise DataError(f"{path}: expected signal_uV as int16 [n, {len(LEADS)}, {SAMPLES}]")
    shape = (count, len(CLASSES)) if several else (count,)
    if label.shape != shape or fold.shape != (count,) or label.dtype.kind not in "iu" or fold.dtype.kind not in "iu":
        raise DataError(f"{path}: expected {key} and strat_fold as integers {list(shape)} and [{count}]")
    names = [str(name) for name in data["classes"]]
    leads = [str(lead).upper() for lead in data["leads"]]
    if sorted(names) != sorted(CLASSES) or sorted(leads) != sorted(LEADS):
        raise DataError(f"{path}: expected the classes {', '.join(CLASSES)} and the leads {', '.join(LEADS)}")
    if label.min() < 0 or label.max() >= (2 if several else len(CLASSES)) or fold.min() < 1 or fold.max() > 10:
        raise DataError(f"{path}: a label or a fold is out of range")
    order = np.array([CLASSES.index(name) for name in names], np.int64)
    y = np.ascontiguousarray(label[:, np.argsort(order)], np.int64) if several else order[label]
    # Contiguous: sums over another layout would round differently.
    ordered = np.ascontiguousarray(signal[:, [leads.index(lead) for lead in LEADS]])
    return ordered.astype(np.float32) / np.float32(1000), y, fold.astype(np.int64)
