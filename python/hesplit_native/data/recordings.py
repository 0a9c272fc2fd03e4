"""Recordings to classify: WFDB, EDF, CSV and npy, of any sampling rate, with annotations of beats or without.

One door for all of them, `read_recording`. What a file does not say, and only that, is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hesplit_native.data.recording_files import Leads, check_length, read_csv, read_edf, read_npy
from hesplit_native.data.wfdb_files import (
    find_leads,
    lead_names,
    read_leads,
    read_with,
    samples_per_frame,
    signal_files,
)
from hesplit_native.errors import DataError

#: Sampling rates that are read, in Hz: below there is nothing left of a QRS complex, above no electrocardiograph records.
RATES = (50.0, 50_000.0)
_LEAST_SECONDS = 2.0
_WFDB = (".hea", ".dat", ".atr")
_DENOMINATOR = 100_000  # of the ratio of two rates, which is exact for whole ones

Signal = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """Leads of a recording.

    `signal` is float64 [samples, leads] in millivolts, NaN where a sample is invalid, at `sampling_rate` Hz. `samples` int64 [beats]
    and `symbols` are annotations (MIT codes) where there are any of beats, None otherwise. One sample of the file is `step` samples
    here.
    """

    path: Path
    leads: tuple[str, ...]
    signal: Signal
    sampling_rate: float
    samples: npt.NDArray[np.int64] | None = None
    symbols: tuple[str, ...] | None = None
    step: Fraction = Fraction(1)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.signal) / self.sampling_rate

    def in_file(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where samples of this signal are in the file."""
        found: npt.NDArray[np.int64] = np.round(samples / float(self.step)).astype(np.int64)
        return found


def read_recording(path: Path, leads: Sequence[str], *, sampling_rate: float | None = None) -> Recording:
    """Leads of a recording, by their names.

    Parameters
    ----------
    path
        A WFDB record (without suffix or with that of one of its files; several segments, files and formats alike), an EDF or EDF+ file
        (``.edf``), a text table with a column for each lead (``.csv``, ``.tsv``, ``.txt``), or an array of floats in millivolts
        (``.npy``): [samples] of one lead, or [samples, leads] or [leads, samples] in the order of `leads`.
    leads
        Names, compared without case and spaces; of EDF also without ``ECG``. Names in a table may end in a unit, as ``MLII (uV)``;
        without one its values are millivolts, and refused when they cannot be.
    sampling_rate
        In Hz, needed for tables and arrays, which do not say it.

    Raises
    ------
    DataError
        Naming the file that is missing, damaged, too short or too long, or of another kind; the leads that are there where one is
        not; saying that the rate is missing, or is another one than the file's.
    """
    reader = _READERS.get(path.suffix.lower())
    base = path.with_suffix("") if path.suffix in _WFDB else path
    if reader is None or base.with_name(f"{base.name}.hea").is_file():
        if path.suffix not in _WFDB and path.is_file() and not base.with_name(f"{base.name}.hea").is_file():
            kinds = ", ".join(sorted(_READERS))
            raise DataError(f"{path} is no recording that is read: WFDB (with its .hea beside it), {kinds}")
        found = _read_wfdb(base, tuple(leads), sampling_rate)
    else:
        if not path.is_file():
            raise DataError(f"{path} does not exist, or is not a file")
        read = reader(path, tuple(leads), sampling_rate)
        found = Recording(path, tuple(leads), read.signal, read.sampling_rate)
    _check(found)
    return found


_READERS: dict[str, Callable[[Path, tuple[str, ...], float | None], Leads]] = {
    ".edf": read_edf, ".csv": read_csv, ".tsv": read_csv, ".txt": read_csv, ".npy": read_npy,
}  # fmt: skip


def _check(found: Recording) -> None:
    low, high = RATES
    if not low <= found.sampling_rate <= high:
        raise DataError(f"{found.path} is recorded at {found.sampling_rate:g} Hz; {low:g} to {high:g} Hz are read")
    if found.seconds < _LEAST_SECONDS:
        raise DataError(f"{found.path} is too short: {found.seconds:.3g} s, expected at least {_LEAST_SECONDS:g} s")
    for lead, values in zip(found.leads, found.signal.T, strict=True):
        finite = values[np.isfinite(values)]
        if not len(finite) or finite.max() <= finite.min():
            raise DataError(f"{found.path}: the lead {lead} holds no usable signal")


def _read_wfdb(base: Path, leads: tuple[str, ...], sampling_rate: float | None) -> Recording:
    header, _ = signal_files(base)
    place = f"{base}.hea"
    check_length(base, header.sig_len or 0, max(header.n_sig or 1, 1))  # all of its leads are read at once
    if not hasattr(header, "seg_name"):
        find_leads(place, lead_names(header), leads, "; name another with --lead")
    frame = samples_per_frame(base, header, leads)
    rate = float(header.fs) * frame
    if sampling_rate is not None and sampling_rate != rate:
        raise DataError(f"{place} says {rate:g} Hz, not {sampling_rate:g} Hz; leave the rate out")
    if not 0 < rate <= RATES[1]:
        raise DataError(f"{place} says {rate:g} Hz; {RATES[0]:g} to {RATES[1]:g} Hz are read")
    check_length(base, frame * (header.sig_len or 0), len(leads))
    found = Recording(base, leads, read_leads(base, header, leads, header.fs, frame=frame), rate)
    return _with_annotations(found, frame) if base.with_name(f"{base.name}.atr").is_file() else found


def _with_annotations(recording: Recording, frame: int) -> Recording:
    """With the annotations of the file beside it, if there are beats among them. They count frames of so many samples."""
    import wfdb
    from wfdb.io.annotation import is_qrs

    base = recording.path
    found = read_with(wfdb.rdann, base, ".atr", "atr")
    samples = np.asarray(found.sample, dtype=np.int64) * frame
    if found.fs not in (None, recording.sampling_rate / frame):
        raise DataError(
            f"{base}.atr counts time in steps of 1/{found.fs} s, expected 1/{recording.sampling_rate / frame:g} s as in the signal"
        )
    if len(samples) and (samples.min() < 0 or samples.max() >= len(recording.signal)):
        raise DataError(f"{base}.atr does not belong to this record: its annotations lie outside of the signal")
    if (np.diff(samples) < 0).any():
        raise DataError(f"{base}.atr is damaged: its annotations are not in the order of time")
    codes = wfdb.io.annotation.ann_label_table
    beats = {symbol for symbol, code in zip(codes["symbol"], codes["label_store"], strict=True) if is_qrs[code]}
    if not beats.intersection(found.symbol):
        return recording
    return replace(recording, samples=samples, symbols=tuple(found.symbol))


def resampled(recording: Recording, sampling_rate: float) -> Recording:
    """The same recording at another rate, low-passed below half of the lower one (`scipy.signal.resample_poly`).

    Invalid samples stay invalid, and so do those within reach of the filter.

    Raises
    ------
    DataError
        When it would have more samples than are read.
    """
    if recording.sampling_rate == sampling_rate:
        return recording
    from scipy.signal import resample_poly

    ratio = Fraction(sampling_rate / recording.sampling_rate).limit_denominator(_DENOMINATOR)
    count = -(-len(recording.signal) * ratio.numerator // ratio.denominator)
    check_length(recording.path, count, len(recording.leads))
    columns = []
    for values in recording.signal.T:
        invalid = ~np.isfinite(values)
        # From line to line between the ends: zeros beyond them would ring.
        column = resample_poly(without_gaps(values), ratio.numerator, ratio.denominator, padtype="line")
        if invalid.any():
            reach = -(
                -10 * max(ratio.numerator, ratio.denominator) // ratio.numerator
            )  # of its filter, in samples of the file
            near = np.convolve(invalid, np.ones(2 * reach + 1), "same") > 0.5
            source = np.arange(count) * ratio.denominator // ratio.numerator
            column[near[np.minimum(source, len(near) - 1)]] = np.nan
        columns.append(column)
    samples = recording.samples
    if samples is not None:
        samples = np.minimum(np.round(samples * float(ratio)).astype(np.int64), count - 1)
    return replace(
        recording, signal=np.stack(columns, axis=1), sampling_rate=sampling_rate, samples=samples, step=recording.step * ratio
    )  # fmt: skip


def without_gaps(values: Signal) -> Signal:
    """A lead, float64 [samples], with a straight line over each gap of invalid samples."""
    valid = np.isfinite(values)
    if valid.all():
        return values
    places = np.arange(len(values))
    filled: Signal = np.interp(places, places[valid], values[valid])
    return filled
