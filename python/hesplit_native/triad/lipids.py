"""LDL cholesterol from the other values of a lipid panel: the regression task of the paper (section IV-A).

Its data, 400,000 patients of a hospital, are not public. Here are a synthetic cohort of the same columns and a reader for any table.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import LipidsUnit as Unit
from hesplit_native.errors import DataError, ParameterError

# mg/dL in a mmol/L: cholesterol of whatever particle, and triglycerides.
CHOLESTEROL_MG_DL = 38.67
TRIGLYCERIDES_MG_DL = 88.57

_FACTORS = dict.fromkeys(("tc", "hdl", "ldl", "vldl"), CHOLESTEROL_MG_DL) | {"tg": TRIGLYCERIDES_MG_DL}
_POSITIVE = frozenset({*_FACTORS, "age", "bmi", "height", "weight"})  # a zero there means "not measured"
_MISSING = frozenset({"", "-", "?", "na", "n/a", "nan", "null", "none"})
_SEX = {"m": 1.0, "male": 1.0, "man": 1.0, "1": 1.0, "1.0": 1.0}
_SEX |= {"f": 0.0, "female": 0.0, "woman": 0.0, "0": 0.0, "0.0": 0.0, "2": 0.0, "2.0": 0.0}
_TEST_SHARE = 0.2
_MIN_ROWS = 10


@dataclass(frozen=True)
class Cohort:
    """Patients, split into train and test.

    `train_x` and `test_x` are float32 [n, features] in the order of `features`; `train_y` and `test_y` float32 [n], the `target`.
    Lipids are in mg/dL, heights in cm, weights in kg, ages in years, BMI in kg/m²; sex is 1 or 0. `dropped` counts the rows of the
    source that were left out, by reason.
    """

    name: str
    features: tuple[str, ...]
    target: str
    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.float32]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.float32]
    dropped: Mapping[str, int] = field(default_factory=dict)


def synthetic_cohort(rows: int = 20_000, seed: int = 0) -> Cohort:
    """Patients after Friedewald et al. 1972: LDL = TC - HDL - TG / 5 (mg/dL), as a laboratory would see it.

    Body measures follow sex; triglycerides rise and HDL falls with BMI. The measured LDL-C differs from Friedewald's by an error
    that grows with triglycerides (standard deviation 7 mg/dL + 2 % of TG), and one row in a hundred carries the LDL-C of
    somebody else. A fifth of the rows is for testing; the same numbers for the same seed.
    """
    if rows < _MIN_ROWS:
        raise ParameterError(f"a cohort has at least {_MIN_ROWS} rows, got {rows}")
    generator = np.random.default_rng(seed)
    sex = generator.integers(0, 2, rows).astype(np.float64)
    height = np.where(sex == 1, generator.normal(171, 6.5, rows), generator.normal(158, 6.0, rows))
    bmi = np.exp(generator.normal(np.log(23.8), 0.14, rows))
    weight = bmi * (height / 100) ** 2
    tg = np.exp(generator.normal(np.log(105) + 1.2 * np.log(bmi / 23.8) + 0.12 * sex, 0.45))
    hdl = np.exp(generator.normal(np.log(56) - 0.13 * sex - 0.18 * np.log(tg / 105), 0.18))
    ldl = generator.gamma(12.5, 115 / 12.5, rows)
    tc = ldl + hdl + tg / 5
    measured = np.maximum(ldl + generator.normal(0, 7 + 0.02 * tg), 5.0)
    mixed_up = np.flatnonzero(generator.random(rows) < 0.01)
    measured[mixed_up] = measured[generator.permutation(mixed_up)]
    x = np.stack([height, weight, sex, tc, hdl, tg], axis=1)
    return _split("synthetic", ("height", "weight", "sex", "tc", "hdl", "tg"), "ldl", x, measured, seed, {})


def load_csv(
    path: str | os.PathLike[str],
    columns: Mapping[str, str],
    *,
    target: str = "ldl",
    unit: Unit = "mg/dL",
    seed: int = 0,
) -> Cohort:
    """A table of patients, cleaned; a fifth of its rows, drawn at random, is for testing.

    Rows are dropped, and counted in `Cohort.dropped`, when a value is missing, when a body measure or a lipid is zero or negative,
    when the sex is unknown, when HDL + LDL exceed the total cholesterol they are part of by more than 5 % (at least one of the
    three is then wrong), and when a row repeats another in all of `columns`: left in, the same patient could be in train and test.

    Parameters
    ----------
    path
        A text file, UTF-8, with a header line; comma, semicolon or tab between fields.
    columns
        From names to the file's columns, e.g. ``{"sex": "Gender", "tc": "Chol", "ldl": "LDL"}``. All but the target become
        features, in this order. Known names are ``sex`` (words, 1/0, or ISO 5218's 1/2, where 2 is female), ``tc``, ``hdl``,
        ``ldl``, ``vldl``, ``tg``, ``age``, ``bmi``, ``height`` and ``weight``; others are plain numbers.
    target
        Which of `columns` is to be predicted.
    unit
        Of the file's lipids; mmol/L is converted to mg/dL.

    Raises
    ------
    DataError
        Naming the file, and row and column where they matter.
    """
    if unit not in get_args(Unit):
        raise ParameterError(f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}")
    if target not in columns or len(columns) < 2 or target == "sex":
        raise ParameterError(
            f"columns must name the numeric target {target!r} and at least one feature, got {list(columns)}"
        )
    file = Path(path)
    dropped: Counter[str] = Counter()
    rows: dict[tuple[float, ...], None] = {}
    for values in _numbers(file, columns, dropped):
        reason = _impossible(values)
        row = tuple(values[name] for name in columns)
        if reason is None and row in rows:
            reason = "duplicate"
        if reason is None:
            rows[row] = None
        else:
            dropped[reason] += 1
    if len(rows) < _MIN_ROWS:
        raise DataError(f"{file}: {len(rows)} usable rows are too few ({_MIN_ROWS} needed); dropped: {dict(dropped)}")
    table = np.array(list(rows))
    if unit == "mmol/L":
        table *= [_FACTORS.get(name, 1.0) for name in columns]
    names = list(columns)
    at = names.index(target)
    x = np.delete(table, at, axis=1)
    features = tuple(name for name in names if name != target)
    return _split(file.stem, features, target, x, table[:, at], seed, dict(dropped))


def _split(
    name: str,
    features: tuple[str, ...],
    target: str,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    seed: int,
    dropped: Mapping[str, int],
) -> Cohort:
    order = np.random.default_rng([seed, 1]).permutation(len(x))
    test, train = np.split(order, [max(1, round(_TEST_SHARE * len(x)))])
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    return Cohort(name, features, target, x32[train], y32[train], x32[test], y32[test], dropped)


def _numbers(path: Path, columns: Mapping[str, str], dropped: Counter[str]) -> Iterator[dict[str, float]]:
    """The selected columns of every row that has them all."""
    for line, cells in _rows(path, columns):
        missing = [name for name, cell in cells.items() if cell.lower() in _MISSING]
        if missing:
            dropped["missing value"] += 1
            continue
        values = {name: _number(path, line, columns[name], name, cell) for name, cell in cells.items()}
        if any(math.isnan(value) for value in values.values()):
            dropped["unknown sex"] += 1
            continue
        yield values


def _number(path: Path, line: int, column: str, name: str, cell: str) -> float:
    """The cell as a number; NaN for a sex that the table says is unknown."""
    where = f"{path}, row {line}, column {column!r}"
    if name == "sex":
        if cell.lower() in ("u", "unknown", "9"):
            return math.nan
        if cell.lower() not in _SEX:
            raise DataError(f"{where}: {cell!r} is no code of a sex that is known here")
        return _SEX[cell.lower()]
    try:
        value = float(cell.replace("_", "?"))  # Python would read 1_000 as a number
    except ValueError:
        raise DataError(f"{where}: {cell!r} is not a number") from None
    if not abs(value) < 1e9:
        raise DataError(f"{where}: {cell!r} is out of range")
    return value


def _impossible(values: Mapping[str, float]) -> str | None:
    if any(values[name] <= 0 for name in _POSITIVE & values.keys()):
        return "zero or negative"
    if {"tc", "hdl", "ldl"} <= values.keys() and values["hdl"] + values["ldl"] > 1.05 * values["tc"]:
        return "HDL + LDL above TC"
    return None


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and the selected cells, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        places = {name: _place(path, header, column) for name, column in columns.items()}
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(f"{path}, row {reader.line_num}: {len(cells)} fields, but the header has {len(header)}")
            yield reader.line_num, {name: cells[place].strip() for name, place in places.items()}
    except csv.Error as error:
        raise DataError(f"{path}, row {reader.line_num}: {error}") from error


def _place(path: Path, header: list[str], column: str) -> int:
    if header.count(column) != 1:
        found = "more than once" if column in header else "not"
        raise DataError(f"{path}: the column {column!r} is {found} in the header {header}")
    return header.index(column)
