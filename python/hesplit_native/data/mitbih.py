"""MIT-BIH heartbeats as in the papers, and two splits that do not leak.

The recipe was rebuilt from the records: the pool has 96,049 beats, and the ``paper`` split the 2 x 13,245 rows that Split Ways
(section 5) and its predecessors trained and tested on.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import Split
from hesplit_native.data.dataset import Dataset
from hesplit_native.data.npz import read_npz, write_cache
from hesplit_native.data.records import MITBIH_RECORDS, Record, cache_directory, find_mitbih, read_record, record_files
from hesplit_native.errors import DataError

Progress = Callable[[Iterable[str]], Iterable[str]]

CLASSES = ("N", "L", "R", "A", "V")
BEAT_SAMPLES = 128
_LEFT_OUT = ("102", "104", "107", "114", "217")
_PER_CLASS = (6000, 6000, 6000, 2490, 6000)
_SEED = 2019
_HALF_WINDOW = 100
_RECIPE = 1  # part of the cache's name: raise it when the processing changes

# De Chazal et al. 2004, the usual inter-patient division.
_DS1 = (
    *(101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122),
    *(124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230),
)


@dataclass(frozen=True)
class Beats:
    """All usable beats.

    `signal` float32 [n, 128]; `label` int64 [n], indices into `CLASSES`; `record` int64 [n], its number; `sample` int64 [n],
    the R peak in it.
    """

    signal: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]
    record: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64]


def load_mitbih(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: Split = "paper",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Heartbeats of five classes.

    Parameters
    ----------
    data_dir
        Directory of the 48 records; None: ``HESPLIT_MITDB``, or a download.
    split
        ``"paper"``: the papers' own; 27.8 % of its test rows are also in train, and patients are on both sides.
        ``"unique"``: as large and balanced alike, but no beat is on both sides. ``"patients"``: patients of one side never
        appear on the other (de Chazal's DS1/DS2 without the records that the recipe leaves out); the honest one.
    progress
        Wraps the iteration over records, e.g. `rich.progress.track`.

    Raises
    ------
    DataError
        Naming the missing or unusable file.
    """
    if split not in get_args(Split):
        raise DataError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    beats = load_beats(find_mitbih(data_dir), cache_dir=cache_dir, progress=progress)
    train, test = {"paper": _paper, "unique": _unique, "patients": _patients}[split](beats)
    x = beats.signal[:, None, :]
    # Records 201 and 202 are of one patient; 202 is in no division but `patients`.
    patient = np.where(beats.record == 202, 201, beats.record)
    return Dataset("mitbih", split, x[train], beats.label[train], x[test], beats.label[test], CLASSES, patient[train])


def load_beats(directory: Path, *, cache_dir: Path | None = None, progress: Progress | None = None) -> Beats:
    """The pool of 96,049 beats, from the cache when the records have not changed."""
    records = [name for name in MITBIH_RECORDS if name not in _LEFT_OUT]
    digest = hashlib.sha256(f"recipe {_RECIPE}".encode())
    for name in records:
        try:
            for path in record_files(directory, name):
                digest.update(path.read_bytes())
        except (DataError, OSError) as error:
            raise DataError(f"{error}; the MIT-BIH directory must hold all 48 records") from error
    cache = (cache_dir or cache_directory()) / f"mitbih-{digest.hexdigest()[:24]}.npz"
    cached = _read_cache(cache)
    if cached is not None:
        return cached
    parts = [record_beats(read_record(directory, name)) for name in (progress or list)(records)]
    beats = Beats(
        np.concatenate([p.signal for p in parts]),
        np.concatenate([p.label for p in parts]),
        np.concatenate([p.record for p in parts]),
        np.concatenate([p.sample for p in parts]),
    )
    _write_cache(cache, beats)
    return beats


def record_beats(record: Record) -> Beats:
    """The usable beats of one record, processed as in the papers (Split Ways, section 5, after Abuadbba et al.).

    Beats with an invalid sample in their window are left out, which a warning counts.
    """
    samples, symbols = record.samples[1:-1], record.symbols[1:-1]
    wanted = np.array([symbol in CLASSES for symbol in symbols], bool) & usable(samples, len(record.signal))
    wanted[:1] = wanted[-1:] = False
    signal, kept = cut_beats(record.signal, samples[wanted])
    if not kept.all():
        warnings.warn(
            f"record {record.name}: {np.sum(~kept)} of {len(kept)} beats are left out, their signal has invalid samples",
            stacklevel=2,
        )
    labels = [CLASSES.index(symbol) for symbol, is_wanted in zip(symbols, wanted, strict=True) if is_wanted]
    number = int(record.name) if record.name.isdigit() else 0
    return Beats(
        signal,
        np.array(labels, np.int64)[kept],
        np.full(len(signal), number, np.int64),
        samples[wanted][kept],
    )


def usable(samples: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.bool_]:
    """Which R peaks, int64 [n] in the order of time, have their window inside of the recording and no other peak in it."""
    gap = np.diff(samples) >= _HALF_WINDOW
    alone = (samples >= _HALF_WINDOW) & (samples + _HALF_WINDOW < length)
    alone[1:] &= gap
    alone[:-1] &= gap
    return alone


def cut_beats(
    signal: npt.NDArray[np.float64], samples: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The beats around `usable` R peaks of a lead at 360 Hz as networks take them, float32 [n, 128], and whose these are.

    Beats with an invalid sample are left out, and False among the peaks.
    """
    from scipy.signal import resample

    low, high = np.nanmin(signal), np.nanmax(signal)
    scaled = (signal - low) / (high - low)
    windows = scaled[samples[:, None] + np.arange(-_HALF_WINDOW, _HALF_WINDOW + 1)]
    kept = ~np.isnan(windows).any(axis=1)
    if not kept.any():
        return np.zeros((0, BEAT_SAMPLES), np.float32), kept
    return _denoise(resample(windows[kept], BEAT_SAMPLES, axis=1)).astype(np.float32), kept


def _denoise(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    import pywt

    threshold = 0.005 * np.sqrt(2 * np.log2(BEAT_SAMPLES))
    coefficients = pywt.wavedec(signal, "bior4.4", axis=-1)
    kept = [pywt.threshold(c, threshold, mode="soft") for c in coefficients]
    return np.asarray(pywt.waverec(kept, "bior4.4", axis=-1))[..., :BEAT_SAMPLES]


Indices = npt.NDArray[np.int64]


def _paper(beats: Beats) -> tuple[Indices, Indices]:
    """Drawn with replacement, halved class by class, and both halves shuffled by one index array, shuffled twice."""
    generator = np.random.RandomState(_SEED)  # numpy's legacy stream, as np.random.seed(2019) gives
    train, test = [], []
    for label, count in enumerate(_PER_CLASS):
        ids = np.flatnonzero(beats.label == label)
        drawn = ids[generator.choice(len(ids), count)]
        train.append(drawn[: count // 2])
        test.append(drawn[count // 2 :])
    order = np.arange(sum(_PER_CLASS) // 2)
    generator.shuffle(order)
    train_ids = np.concatenate(train)[order]
    generator.shuffle(order)
    return train_ids, np.concatenate(test)[order]


def _unique(beats: Beats) -> tuple[Indices, Indices]:
    """The papers' class sizes, drawn without replacement: no beat twice, none on both sides."""
    generator = np.random.default_rng(_SEED)
    train, test = [], []
    for label, count in enumerate(_PER_CLASS):
        drawn = generator.permutation(np.flatnonzero(beats.label == label))[:count]
        half = len(drawn) // 2
        train.append(drawn[:half])
        test.append(drawn[half:])
    return generator.permutation(np.concatenate(train)), generator.permutation(np.concatenate(test))


def _patients(beats: Beats) -> tuple[Indices, Indices]:
    """DS1 against DS2, at most 3,000 beats of a class on each side, without replacement.

    Classes are as rare as they are among those patients: nothing is repeated to balance them.
    """
    generator = np.random.default_rng(_SEED)
    in_train = np.isin(beats.record, _DS1)
    sides = []
    for side in (in_train, ~in_train):
        drawn = [
            generator.permutation(np.flatnonzero(side & (beats.label == label)))[: count // 2]
            for label, count in enumerate(_PER_CLASS)
        ]
        sides.append(generator.permutation(np.concatenate(drawn)))
    return sides[0], sides[1]


def _read_cache(path: Path) -> Beats | None:
    try:
        beats = Beats(**read_npz(path, ("signal", "label", "record", "sample")))
    except DataError:
        return None
    count = len(beats.label)
    whole = beats.signal.shape == (count, BEAT_SAMPLES) and beats.signal.dtype == np.float32
    return beats if whole and beats.record.shape == beats.sample.shape == (count,) else None


def _write_cache(path: Path, beats: Beats) -> None:
    write_cache(path, signal=beats.signal, label=beats.label, record=beats.record, sample=beats.sample)
