"""What a network classifies of a recording: its beats, or its windows of ten seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesplit_native.data import mitbih, ptbxl
from hesplit_native.data.recordings import Recording, Signal, resampled, without_gaps
from hesplit_native.data.records import LEAD, SAMPLING_RATE, Record
from hesplit_native.errors import DataError

Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Rows:
    """Rows of a recording as a network takes them.

    Parameters
    ----------
    recording
        Where they come from, at the network's sampling rate.
    x
        float32 [n, channels, samples].
    samples
        int64 [n], R peaks or beginnings of windows in `recording`.
    labels
        int64 [n], indices into `mitbih.CLASSES`, where there are annotations.
    called
        What rows are: ``beats``, ``windows of 10 s``.
    notes
        What a reader has to know.
    """

    recording: Recording
    x: npt.NDArray[np.float32]
    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None
    called: str
    notes: tuple[str, ...]


def leads_of(channels: int, samples: int, lead: str | None) -> tuple[str, ...]:
    """The leads that a network for signals [channels, samples] reads of a recording: ``MLII`` or `lead`, or all twelve.

    Raises
    ------
    DataError
        When it is neither for beats nor for recordings of ten seconds.
    """
    if (channels, samples) == (1, mitbih.BEAT_SAMPLES):
        return (lead or LEAD,)
    if (channels, samples) == (len(ptbxl.LEADS), ptbxl.SAMPLES):
        if lead is not None:
            raise DataError(f"the model takes the twelve leads {', '.join(ptbxl.LEADS)}; leave --lead out")
        return ptbxl.LEADS
    raise DataError(f"a model for signals of [{channels}, {samples}] takes no recordings, only its own data set")


def rows_of(recording: Recording, *, progress: Progress | None = None) -> Rows:
    """Beats of one lead, cut as those of MIT-BIH, or of twelve leads windows of ten seconds, scaled as those of PTB-XL.

    Where there are annotations of beats, the beats are theirs; elsewhere they are found. ``progress`` wraps the iteration over the
    pieces of a long recording that are searched for beats.

    Raises
    ------
    DataError
        When there is nothing to classify.
    """
    beats = len(recording.leads) == 1
    rate = SAMPLING_RATE if beats else ptbxl.SAMPLING_RATE
    notes = []
    if recording.sampling_rate != rate:
        notes.append(f"resampled from {recording.sampling_rate:g} Hz to the model's {rate} Hz")
    found = resampled(recording, rate)
    if not beats:
        return _windows(found, notes)
    return _found_beats(found, notes, progress) if found.samples is None else _annotated_beats(found, notes)


def _annotated_beats(recording: Recording, notes: list[str]) -> Rows:
    assert recording.samples is not None
    assert recording.symbols is not None
    record = Record(recording.path.name, recording.signal[:, 0], recording.samples, recording.symbols)
    beats = mitbih.record_beats(record)
    if len(beats.label) == 0:
        raise DataError(
            f"{recording.path} has no beats of the classes N, L, R, A, V that stand apart from their neighbours; the first two and "
            "the last two annotations do not count"
        )
    return Rows(
        recording, beats.signal[:, None, :], beats.sample, beats.label, _counted("beat", len(beats.label)), tuple(notes)
    )


def _found_beats(recording: Recording, notes: list[str], progress: Progress | None) -> Rows:
    lead, signal = recording.leads[0], recording.signal[:, 0]
    peaks = find_beats(signal, SAMPLING_RATE, progress=progress)
    wanted = mitbih.usable(peaks, len(signal))
    x, kept = mitbih.cut_beats(signal, peaks[wanted])
    notes.append(f"without annotations of beats: {len(peaks)} found in {lead} by gqrs")
    if len(x) < len(peaks):
        notes.append(
            f"{len(peaks) - len(x)} of them left out: within 0.28 s of another or of an end ({np.sum(~wanted)}), or with invalid "
            f"samples ({np.sum(~kept)})"
        )
    if not len(x):
        raise DataError(
            f"{recording.path}: no beats that stand apart were found in {lead}, of {recording.seconds:.3g} s"
        )
    return Rows(recording, x[:, None, :], peaks[wanted][kept], None, _counted("beat", len(x)), tuple(notes))


def _counted(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _windows(recording: Recording, notes: list[str]) -> Rows:
    count = len(recording.signal) // ptbxl.SAMPLES
    if not count:
        raise DataError(
            f"{recording.path} is too short: {recording.seconds:.3g} s, and the model takes {ptbxl.SAMPLES / ptbxl.SAMPLING_RATE:g} s"
        )
    windows = recording.signal[: count * ptbxl.SAMPLES].reshape(count, ptbxl.SAMPLES, -1).transpose(0, 2, 1)
    whole = np.isfinite(windows).all(axis=(1, 2))
    rest = (len(recording.signal) - count * ptbxl.SAMPLES) / ptbxl.SAMPLING_RATE
    if rest >= 1:
        notes.append(f"the last {rest:.3g} s are left out: they make no window")
    if not whole.all():
        notes.append(f"{np.sum(~whole)} of {count} windows left out: invalid samples")
    if not whole.any():
        raise DataError(f"{recording.path}: every window of ten seconds has invalid samples")
    x = ptbxl.normalise(np.ascontiguousarray(windows[whole], np.float32))
    return Rows(
        recording, x, np.flatnonzero(whole) * ptbxl.SAMPLES, None, f"{_counted('window', len(x))} of 10 s", tuple(notes)
    )


_PIECE = 1 << 20  # samples that are searched at once: the detector remembers several values of each
_OVERLAP = 3600


def find_beats(signal: Signal, sampling_rate: float, *, progress: Progress | None = None) -> npt.NDArray[np.int64]:
    """R peaks of a lead, float64 [samples] in millivolts, as int64 [beats]: gqrs of WFDB, by `wfdb.processing`.

    That finds where a QRS complex begins; what is returned is the middle of its filter, a fixed time later, which lies where
    annotators mark the beat (docs/recordings.md has what that was measured to be). Gaps of invalid samples hold no beats.

    Parameters
    ----------
    progress
        Wraps the iteration over pieces of a long recording.
    """
    from wfdb import processing

    onset = 2 * int(0.07 * int(sampling_rate) / 4)  # its `dt2`: gqrs reports the peak of its filter less so much
    valid = np.isfinite(signal)
    # Mirrored beyond its ends: where the detector runs out of beats it misplaces the last one.
    filled = np.pad(without_gaps(signal), _OVERLAP, mode="reflect")
    found: list[npt.NDArray[np.int64]] = []
    for start in (progress or list)(range(0, len(signal), _PIECE)):
        end = min(len(signal), start + _PIECE)
        piece = filled[start : end + 2 * _OVERLAP]
        if piece.max() <= piece.min():
            continue
        peaks = np.asarray(processing.gqrs_detect(sig=piece, fs=sampling_rate), np.int64) + (start - _OVERLAP + onset)
        found.append(peaks[(peaks >= start) & (peaks < end)])
    peaks = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
    # A beat at the border of two pieces may be found in both, a sample apart.
    again = np.diff(peaks, prepend=-sampling_rate) < sampling_rate / 10
    found_peaks: npt.NDArray[np.int64] = peaks[~again & valid[peaks]]
    return found_peaks
