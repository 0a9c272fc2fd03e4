"""WFDB files: wfdb reads them, this checks what it is given and what comes out, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import DataError

# Bytes on disk of so many samples. FLAC (508, 516, 524) has no fixed number; its decoder notices missing ones.
_BYTES = {"8": (1, 1), "16": (2, 1), "24": (3, 1), "32": (4, 1), "61": (2, 1), "80": (1, 1), "160": (2, 1)}
_BYTES |= {"212": (3, 2), "310": (4, 3), "311": (4, 3)}
#: Millivolts in a unit, by its name as `fold_unit` leaves it.
MILLIVOLTS = {"v": 1000.0, "mv": 1.0, "uv": 0.001, "nv": 1e-6}
_MAX_SAMPLES = 1 << 28  # of a lead, eight days at 360 Hz: beyond it a header is damaged or means harm


def read_with(reader: Any, base: Path, suffix: str, *arguments: Any, **options: Any) -> Any:
    """What a function of wfdb returns for a record; whatever it raises becomes a DataError that names the file."""
    try:
        return reader(str(base), *arguments, **options)
    except Exception as error:
        raise DataError(f"{base}{suffix} cannot be read: {error or type(error).__name__}") from error


def signal_files(base: Path) -> tuple[Any, list[Path]]:
    """The header of a record (wfdb's `Record` or `MultiRecord`) and its signal files, none for a record of several segments.

    Raises
    ------
    DataError
        When the header cannot be read, or names a file that is missing or shorter than it says.
    """
    import wfdb

    path = base.with_name(f"{base.name}.hea")
    if not path.is_file():
        raise DataError(f"{path} is missing, the header of the record")
    header = read_with(wfdb.rdheader, base, ".hea")
    if (header.sig_len or 0) > _MAX_SAMPLES:
        raise DataError(f"{path} announces {header.sig_len} samples a lead, more than the {_MAX_SAMPLES} that are read")
    names = list(dict.fromkeys(getattr(header, "file_name", None) or ()))
    files = [base.with_name(name) for name in names]
    for name, file in zip(names, files, strict=True):
        if not file.is_file():
            raise DataError(f"{file} is missing, though {path} names it")
        _check_size(file, header, [i for i, other in enumerate(header.file_name) if other == name])
    return header, files


def _check_size(file: Path, header: Any, signals: list[int]) -> None:
    """Wfdb reads what is there; a truncated file must not pass as a shorter record."""
    width = _BYTES.get(header.fmt[signals[0]])
    if width is None or not header.sig_len:
        return
    samples = header.sig_len * sum(header.samps_per_frame[i] for i in signals)
    expected = (header.byte_offset[signals[0]] or 0) - -samples * width[0] // width[1]
    size = file.stat().st_size
    if size < expected:
        raise DataError(f"{file} is truncated: {size} bytes, expected {expected}; download it again")


def read_leads(
    base: Path, header: Any, leads: tuple[str, ...], sampling_rate: float, *, frame: int = 1
) -> npt.NDArray[np.float64]:
    """Leads of a record by name, float64 [samples, leads] in millivolts; NaN where samples are invalid or a segment is empty.

    The header is what `signal_files` gave. Names are compared without case and spaces. Of a record of several segments each is
    searched for the leads by itself: their order may differ. A record counts frames, ``sampling_rate`` a second, in each of which all
    of these leads must have ``frame`` samples.

    Raises
    ------
    DataError
        When a file is missing, truncated or cannot be read, a lead is missing or there twice, or its unit is no voltage or its
        sampling rate another.
    """
    header, _ = signal_files(base)
    if header.fs != sampling_rate:
        raise DataError(
            f"{base}.hea: recorded at {header.fs} Hz, expected {sampling_rate} Hz; resample the record first"
        )
    if not hasattr(header, "seg_name"):
        return _read_segment(base, header, find_leads(f"{base}.hea", lead_names(header), leads), frame)
    parts = [
        _read_part(base, name, length, leads, sampling_rate, frame)
        for name, length in zip(header.seg_name, header.seg_len, strict=True)
        if length  # a segment of no length only describes the layout
    ]
    signal = np.concatenate(parts or [np.zeros((0, len(leads)))])
    if header.sig_len and len(signal) != frame * header.sig_len:
        raise DataError(f"{base}.hea announces {frame * header.sig_len} samples, its segments have {len(signal)}")
    if not np.isfinite(signal).any():
        raise DataError(f"{base}.hea: no segment has the leads {', '.join(leads)}")
    return signal


def _read_part(
    base: Path, name: str, length: int, leads: tuple[str, ...], sampling_rate: float, frame: int
) -> npt.NDArray[np.float64]:
    """One segment of so many frames [samples, leads]: all NaN where it is empty or lacks a lead."""
    empty = np.full((frame * length, len(leads)), np.nan)
    if name == "~":
        return empty
    segment = base.with_name(name)
    header, _ = signal_files(segment)
    if hasattr(header, "seg_name"):
        raise DataError(f"{segment}.hea: a segment of {base}.hea has segments itself")
    if header.fs != sampling_rate:
        raise DataError(f"{segment}.hea: recorded at {header.fs} Hz, expected {sampling_rate} Hz as in {base}.hea")
    if not {_fold(lead) for lead in leads} <= {_fold(lead) for lead in lead_names(header)}:
        return empty
    signal = _read_segment(segment, header, find_leads(f"{segment}.hea", lead_names(header), leads), frame)
    if len(signal) != len(empty):
        raise DataError(f"{segment}.hea has {len(signal)} samples, but {len(empty)} according to {base}.hea")
    return signal


def samples_per_frame(base: Path, header: Any, leads: tuple[str, ...]) -> int:
    """How many samples the first of these leads has in a frame of a record, in its first segment that has all of them; 1 without."""
    if not hasattr(header, "seg_name"):
        return int(header.samps_per_frame[find_leads(f"{base}.hea", lead_names(header), leads)[0]])
    wanted = {_fold(lead) for lead in leads}
    for name in dict.fromkeys(name for name in header.seg_name if name != "~"):
        segment, _ = signal_files(base.with_name(name))
        if not hasattr(segment, "seg_name") and wanted <= {_fold(lead) for lead in lead_names(segment)}:
            return samples_per_frame(base.with_name(name), segment, leads)
    return 1


def _read_segment(base: Path, header: Any, channels: list[int], frame: int) -> npt.NDArray[np.float64]:
    import wfdb

    for i in channels:
        if header.samps_per_frame[i] != frame:
            rate, expected = header.samps_per_frame[i] * header.fs, frame * header.fs
            raise DataError(
                f"{base}.hea: the lead {header.sig_name[i]} is recorded at {rate} Hz, expected {expected} Hz; resample it first"
            )
    scales = [MILLIVOLTS.get(fold_unit(header.units[i] or "")) for i in channels]
    for i, scale in zip(channels, scales, strict=True):
        if scale is None:
            raise DataError(
                f"{base}.hea: the lead {header.sig_name[i]} is in {header.units[i]!r}, expected mV, uV or V"
            )
    ordered = sorted(channels)
    record = read_with(wfdb.rdrecord, base, "", channels=ordered, smooth_frames=frame == 1)
    together = record.p_signal if frame == 1 else np.stack(record.e_p_signal, axis=1)
    signal = np.asarray(together, dtype=np.float64)[:, [ordered.index(i) for i in channels]]
    if header.sig_len and len(signal) != frame * header.sig_len:
        raise DataError(f"{base}.hea announces {frame * header.sig_len} samples, its signal files have {len(signal)}")
    return signal if set(scales) == {1.0} else signal * np.array(scales)


def lead_names(header: Any) -> list[str]:
    """What the leads are called; empty where one has no name."""
    return [name or "" for name in header.sig_name or ()]


def find_leads(place: str, names: Sequence[str], leads: Iterable[str], hint: str = "") -> list[int]:
    """Where the leads are among the names, compared without case and spaces.

    Raises
    ------
    DataError
        When one is not there or more than once: with the names that are, and ``hint``. ``place`` is what it calls the file.
    """
    folded = [_fold(name) for name in names]
    for lead in leads:
        if folded.count(_fold(lead)) != 1:
            problem = f"{folded.count(_fold(lead))} leads called" if _fold(lead) in folded else "no lead"
            there = ", ".join(name or "(unnamed)" for name in names) or "none"
            raise DataError(
                f"{place} has {problem} {lead}, its leads are {there}; which one to read must be clear from its name{hint}"
            )
    return [folded.index(_fold(lead)) for lead in leads]


def fold_unit(unit: str) -> str:
    """A unit's name as compared."""
    return unit.strip().replace("µ", "u").replace("μ", "u").lower()


def _fold(name: str) -> str:
    """A lead's name as compared; a sign stays: -aVR is another signal."""
    return "".join(name.split()).lower()
