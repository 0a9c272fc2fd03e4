"""Leads from EDF, text tables and numpy arrays, everything that they say checked before it is believed."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hesplit_native.data.tables import TextTable, is_missing, not_a_number, notations, number, read_table
from hesplit_native.data.wfdb_files import MILLIVOLTS, find_leads, fold_unit
from hesplit_native.errors import DataError, ParameterError

MAX_SAMPLES = 1 << 26  # of a lead: 51 hours at 360 Hz, half a gigabyte as float64
_MAX_TABLE = 1 << 25  # bytes: text takes up to forty times its size in memory
_HINT = "; name another with --lead"
# Millivolts that an ECG spans in a second, the median over a recording: hardly less in a flat lead, more only when leads are off.
_SPAN = (0.02, 30.0)

Signal = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Leads:
    """float64 [samples, leads] in millivolts, at so many Hz."""

    signal: Signal
    sampling_rate: float


def _needed(path: Path, sampling_rate: float | None) -> float:
    if sampling_rate is None:
        raise ParameterError(f"{path} does not say how many samples a second has: give its sampling rate with --rate")
    if not 0 < sampling_rate < float("inf"):
        raise ParameterError(f"the sampling rate must be positive, got {sampling_rate}")
    return sampling_rate


def _check_millivolts(path: Path, leads: tuple[str, ...], found: Leads) -> Leads:
    """Refuse values that cannot be an ECG in millivolts: microvolts, volts, or an ADC's steps."""
    width = max(2, int(found.sampling_rate))
    for lead, values in zip(leads, found.signal.T, strict=True):
        whole = values[: len(values) // width * width].reshape(-1, width)
        whole = whole[np.isfinite(whole).all(axis=1)]
        if not len(whole):
            continue
        span = float(np.median(np.ptp(whole, axis=1)))
        if span > 0 and not _SPAN[0] <= span <= _SPAN[1]:
            likely = "microvolts or an ADC's steps" if span > _SPAN[1] else "volts"
            raise DataError(
                f"{path}: the lead {lead} spans {span:.3g} in a second, which is no ECG in mV; it may be in {likely}. Convert it to mV"
            )
    return found


# Numpy


def read_npy(path: Path, leads: tuple[str, ...], sampling_rate: float | None) -> Leads:
    """Of an array of floats in millivolts, [samples] for one lead, or [samples, leads] or [leads, samples] in the order of `leads`.

    Raises
    ------
    DataError
        For other files, types and shapes, values that are no ECG in millivolts, and more samples than are read.
    ParameterError
        Without a sampling rate.
    """
    rate = _needed(path, sampling_rate)
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a damaged header, whatever it makes of it
        raise DataError(f"{path} is no numpy array: {error or type(error).__name__}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path} is an archive, not one array; save the signal with numpy.save")
    what = f"{array.dtype} {list(array.shape)}"
    if array.dtype.kind != "f":
        raise DataError(f"{path}: expected floats in mV, got {what}; steps of an ADC must be converted")
    count = len(leads)
    if array.ndim == 1 and count == 1:
        array = array[:, None]
    elif array.ndim == 2 and array.shape[0] == count != array.shape[1]:
        array = array.T
    elif array.ndim != 2 or array.shape[1] != count:
        raise DataError(
            f"{path}: expected [samples{f', {count}' if count > 1 else ''}] of {', '.join(leads)}, got {what}"
        )
    check_length(path, len(array), count)
    signal = np.array(array, np.float64, order="C")
    signal[np.isinf(signal)] = np.nan
    return _check_millivolts(path, leads, Leads(signal, rate))


def check_length(path: Path, samples: int, leads: int) -> None:
    """Refuse what would take more memory than a recording should: of a lead, and of four and more together."""
    most = min(MAX_SAMPLES, 4 * MAX_SAMPLES // leads)
    if samples > most:
        raise DataError(f"{path} has {samples} samples a lead, more than the {most} of {leads} that are read; cut it")


# Text tables


def read_csv(path: Path, leads: tuple[str, ...], sampling_rate: float | None) -> Leads:
    """Of a table with a column for each lead, whatever its delimiter, encoding and decimal mark.

    A unit stands after the lead's name, ``MLII (uV)``, or in a row of units below the names; without one it is millivolts. Missing
    values are invalid samples.

    Raises
    ------
    DataError
        When it is no text, a lead is missing, a row is broken, a cell no number, a value no ECG in millivolts, or the file too large.
    ParameterError
        Without a sampling rate.
    """
    rate = _needed(path, sampling_rate)
    size = path.stat().st_size
    if size > _MAX_TABLE:
        raise DataError(
            f"{path} has {size} bytes, more than the {_MAX_TABLE} that are read as text; save it as .npy, EDF or WFDB"
        )
    table = _table(path, leads)
    headed = [_headed(name) for name in table.header]
    places = find_leads(str(path), [name for name, _ in headed], leads, _HINT)
    if table.faults:
        raise DataError(f"{path}, {table.faults[0].words}: a signal has no rows that could be left out")
    columns = {lead: [row[place].strip("'") for row in table.rows] for lead, place in zip(leads, places, strict=True)}
    units = {lead: headed[place][1] for lead, place in zip(leads, places, strict=True)}
    first = 0
    if table.rows and all(fold_unit(cells[0]) in MILLIVOLTS for cells in columns.values()):
        units, first = {lead: fold_unit(cells[0]) for lead, cells in columns.items()}, 1
    columns = {lead: cells[first:] for lead, cells in columns.items()}
    if not len(columns[leads[0]]):
        raise DataError(f"{path} has no samples")
    signal = np.stack(
        [_numbers(path, lead, columns[lead], table.lines[first:]) * MILLIVOLTS[units[lead]] for lead in leads], axis=1
    )
    return _check_millivolts(path, leads, Leads(signal, rate))


def _table(path: Path, leads: tuple[str, ...]) -> TextTable:
    """With the leads' names, or with whatever is in its first row, which may have units or quotes around them."""
    try:
        return read_table(path, leads)
    except DataError:
        return read_table(path, ())


def _headed(name: str) -> tuple[str, str]:
    """The lead that a column's name tells, and its unit."""
    name = name.strip("'\" ")
    found = re.fullmatch(r"(.+?)[\s_]*[(\[/ _]\s*([mun\u00b5\u03bc]?V)\s*[)\]]?", name, re.IGNORECASE)
    return (found[1], fold_unit(found[2])) if found else (name, "mv")


def _numbers(path: Path, lead: str, cells: list[str], lines: tuple[int, ...]) -> Signal:
    """The values of a column; NaN where one is missing or infinite."""
    plain = _plain_numbers(cells)
    if plain is not None:
        return plain
    notation = notations({lead: cells})[lead]
    values = np.empty(len(cells))
    for i, cell in enumerate(cells):
        value = None if is_missing(cell) else number(cell, notation)
        if value is None and not is_missing(cell):
            raise DataError(f"{path}, row {lines[i]}: {lead}: {not_a_number(cell)}")
        values[i] = np.nan if value is None or abs(value) == float("inf") else value
    return values


def _plain_numbers(cells: list[str]) -> Signal | None:
    """Of a column that has nothing but digits, signs and decimal points, as most have: ten times as fast. None of any other."""
    if not set().union(*cells) <= set("0123456789+-.eE"):
        return None
    try:
        values = np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None
    values[np.isinf(values)] = np.nan  # 1e999
    return values


# EDF


def read_edf(path: Path, leads: tuple[str, ...], sampling_rate: float | None) -> Leads:
    """Of an EDF or EDF+ file without interruptions, in the unit that it says.

    Raises
    ------
    DataError
        When it is damaged, truncated or interrupted, a lead is missing, no voltage or of another rate than its neighbours.
    ParameterError
        Where edfio is not installed.
    """
    try:
        import edfio
    except ImportError as error:
        raise ParameterError(
            "EDF is read by edfio, which is missing: pip install -c constraints.txt '.[edf]' (from the source) brings it"
        ) from error
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")  # it mends what does not fit, with a warning
            file: Any = edfio.read_edf(path, lazy_load_data=True, header_encoding="latin-1")
            continuous = file.is_continuous
        names = [re.sub(r"^(ECG|EKG)[\s_-]+", "", signal.label, flags=re.IGNORECASE) for signal in file.signals]
        places = find_leads(str(path), names, leads, _HINT)
        signals = [file.signals[place] for place in places]
        rates = {float(signal.sampling_frequency) for signal in signals}
        counts = {int(signal.samples_per_data_record) * int(file.num_data_records) for signal in signals}
    except DataError:
        raise
    except Exception as error:  # of a damaged header, whatever it makes of it
        raise DataError(f"{path} cannot be read as EDF: {error or type(error).__name__}") from error
    if said:
        raise DataError(f"{path} is damaged or truncated: {said[0].message}")
    if not continuous:
        raise DataError(f"{path} is interrupted (EDF+D); cut it into recordings without gaps")
    if len(rates) > 1 or len(counts) > 1:
        raise DataError(
            f"{path}: its leads are recorded at {', '.join(f'{rate:g}' for rate in sorted(rates))} Hz; resample them first"
        )
    if sampling_rate is not None and {sampling_rate} != rates:
        raise DataError(f"{path} says {rates.pop():g} Hz, not {sampling_rate:g} Hz; leave the rate out")
    check_length(path, counts.pop(), len(leads))
    return Leads(np.stack([_physical(path, signal) for signal in signals], axis=1), rates.pop())


def _physical(path: Path, signal: Any) -> Signal:
    scale = MILLIVOLTS.get(fold_unit(signal.physical_dimension))
    if scale is None:
        raise DataError(f"{path}: the lead {signal.label} is in {signal.physical_dimension!r}, expected mV, uV or V")
    try:
        low, high = float(signal.physical_min), float(signal.physical_max)
        if not np.isfinite([low, high]).all() or low == high or signal.digital_min >= signal.digital_max:
            raise ValueError("its physical or digital minimum is not below its maximum")
        return np.asarray(signal.data, np.float64) * scale
    except (ValueError, TypeError, ArithmeticError, OSError) as error:
        raise DataError(f"{path}: the lead {signal.label} cannot be read: {error}") from error
