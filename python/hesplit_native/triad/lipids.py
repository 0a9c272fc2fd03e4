"""LDL cholesterol from the other values of a lipid panel: the regression task of the paper (section IV-A).

Its data, 400,000 patients of a hospital, are not public. Here are a synthetic cohort of the same columns and a reader for any table.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from hesplit_native.choices import LipidsUnit as Unit
from hesplit_native.data.tables import (
    Fault,
    TextTable,
    is_censored,
    is_missing,
    not_a_number,
    notations,
    number,
    read_table,
    settle,
)
from hesplit_native.errors import DataError, ParameterError
from hesplit_native.triad.clinical import LIPIDS, PLAUSIBLE, beyond_people, is_sex_unknown, looks_like, sex_values

Table = npt.NDArray[np.float64]

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
    unit: Unit | None = None,
    seed: int = 0,
) -> Cohort:
    """A table of patients, cleaned; a fifth of its rows, drawn at random, is for testing.

    Rows are dropped, and counted in `Cohort.dropped`, when a value is missing or only said to lie beyond a limit (``<0.2``), when a
    body measure or a lipid is zero or negative or no person could have it, when the sex is unknown, when HDL + LDL exceed the total
    cholesterol they are part of by more than 5 % (at least one of the three is then wrong), and when a row repeats another in all
    of `columns`: left in, the same patient could be in train and test. Rows that are malformed or hold what is no number are dropped
    as long as they are at most one in fifty.

    Parameters
    ----------
    path
        A text file with a header line; comma, semicolon, tab or bar between fields, decimal points or commas, in UTF-8, UTF-16 or
        Windows-1252 (`hesplit_native.data.tables.read_table`).
    columns
        From names to the file's columns, e.g. ``{"sex": "Gender", "tc": "Chol", "ldl": "LDL"}``. All but the target become
        features, in this order. Known names are ``sex`` (words, 1/0, or ISO 5218's 1/2, where 2 is female and 0 unknown), ``tc``,
        ``hdl``, ``ldl``, ``vldl``, ``tg``, ``age``, ``bmi``, ``height`` and ``weight``; others are plain numbers.
    target
        Which of `columns` is to be predicted.
    unit
        Of the file's lipids; mmol/L is converted to mg/dL. None: mg/dL, with a warning where they look like mmol/L.

    Raises
    ------
    DataError
        Naming the file, and row and column where they matter; also when a column's values are plausible only in another unit.
    """
    if unit is not None and unit not in get_args(Unit):
        raise ParameterError(f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}")
    if target not in columns or len(columns) < 2 or target == "sex":
        raise ParameterError(
            f"columns must name the numeric target {target!r} and at least one feature, got {list(columns)}"
        )
    file = Path(path)
    source = read_table(file, list(columns.values()))
    _check_header(source, columns, unit)
    dropped: Counter[str] = Counter()
    values = _values(source, columns, dropped)
    rows: dict[tuple[float, ...], None] = {}
    for row, implausible in zip(
        map(tuple, values.tolist()), _implausible_rows(file, columns, values, unit), strict=True
    ):
        reason = _impossible(dict(zip(columns, row, strict=True)))
        if reason is None and implausible:
            reason = "implausible value"
        elif row in rows:
            reason = "duplicate"
        if reason is None:
            rows[row] = None
        else:
            dropped[reason] += 1
    if len(rows) < _MIN_ROWS:
        raise DataError(
            f"{file}: {len(rows)} usable rows are too few ({_MIN_ROWS} needed); dropped, the commonest reason first: "
            f"{dict(dropped.most_common())}"
        )
    table = np.array(list(rows))
    if unit == "mmol/L":
        table *= [LIPIDS.get(name, 1.0) for name in columns]
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


def _check_header(source: TextTable, columns: Mapping[str, str], unit: Unit | None) -> None:
    """A header that names a lipid's unit is believed more than the argument."""
    for name in LIPIDS.keys() & columns.keys():
        folded = "".join(columns[name].split()).lower()
        for named in get_args(Unit):
            if named.lower() in folded and named != (unit or "mg/dL"):
                raise DataError(
                    f"{source.path}: the column {columns[name]!r} is in {named}, not {unit or 'mg/dL'}; say unit={named!r}"
                )


def _values(source: TextTable, columns: Mapping[str, str], dropped: Counter[str]) -> Table:
    """The numbers [rows, columns] of the rows that have them all, in the file's units."""
    cells = {name: source.column(column) for name, column in columns.items()}
    whole = []
    for i in range(len(source.rows)):
        row = {name: column[i] for name, column in cells.items()}
        if any(is_missing(cell) and not (name == "sex" and is_sex_unknown(cell)) for name, cell in row.items()):
            dropped["missing value"] += 1
        elif any(is_censored(cell) for cell in row.values()):
            dropped["beyond a limit"] += 1
        else:
            whole.append(i)
    written = notations({name: [column[i] for i in whole] for name, column in cells.items() if name != "sex"})
    sex: list[float | None] = []
    if "sex" in columns:
        sex = sex_values([cells["sex"][i] for i in whole], f"{source.path}, column {columns['sex']!r}")
    faults = list(source.faults)
    table = []
    for at, i in enumerate(whole):
        values: list[float] = []
        for name, column in cells.items():
            cell = column[i]
            value = sex[at] if name == "sex" else number(cell, written[name])
            where = f"row {source.lines[i]}, column {columns[name]!r}"
            if value is None and name == "sex":
                faults.append(Fault("no code of a sex", f"{where}: {cell!r} is no code of a sex that is known here"))
            elif value is None:
                faults.append(Fault("not a number", f"{where}: {not_a_number(cell)}"))
            elif abs(value) >= 1e9:
                faults.append(Fault("out of range", f"{where}: {cell!r} is out of range"))
            else:
                values.append(value)
                continue
            break
        if len(values) < len(cells):
            continue
        if any(math.isnan(value) for value in values):
            dropped["unknown sex"] += 1
        else:
            table.append(values)
    dropped.update(settle(source.path, faults, len(source.rows) + len(source.faults)))
    return np.array(table).reshape(-1, len(columns))


def _implausible_rows(path: Path, columns: Mapping[str, str], table: Table, unit: Unit | None) -> npt.NDArray[np.bool_]:
    """Which rows hold values that no person has, after a look at each column as a whole: a wrong unit is no outlier."""
    values = {
        name: (repr(column), table[:, at]) for at, (name, column) in enumerate(columns.items()) if name in PLAUSIBLE
    }
    checked = [(name, where, column) for name, (where, column) in values.items()]
    if {"height", "weight"} <= values.keys():
        (tall, height), (heavy, weight) = values["height"], values["weight"]
        bmi = np.divide(weight, (height / 100) ** 2, out=np.zeros(len(table)), where=height > 0)
        checked.append(("bmi", f"{heavy} by {tall}", bmi))
    outside = np.zeros(len(table), bool)
    untold = []
    for name, where, column in checked:
        beyond = _beyond_people(f"{path}, column {where}", name, column, unit)
        if beyond is None:
            untold.append(where)
        else:
            outside |= beyond
    if untold:
        words = f"{path}: {', '.join(untold)} read as mg/dL, but the values look like mmol/L; say unit='mmol/L'"
        warnings.warn(words, stacklevel=3)
    return outside


def _beyond_people(
    where: str, name: str, values: npt.NDArray[np.float64], unit: Unit | None
) -> npt.NDArray[np.bool_] | None:
    """Which values cannot be; None when all are lipids in mmol/L and no unit was told."""
    outside = np.zeros(len(values), bool)
    positive = values > 0
    if not positive.any():
        return outside
    converted = values[positive] * (LIPIDS.get(name, 1.0) if unit == "mmol/L" else 1.0)
    found = beyond_people(name, converted)
    if found is not None:
        outside[positive] = found
        return outside
    alike = looks_like(name, values[positive])
    if unit is None and alike == "mmol/L":
        return None
    limits = PLAUSIBLE[name]
    beyond = np.mean((converted < limits.low) | (converted > limits.high))
    told = f" (read as {unit or 'mg/dL'})" if name in LIPIDS else ""
    raise DataError(
        f"{where}: a median of {np.median(converted):.4g} {limits.unit}{told}, and {beyond:.0%} of the values beyond {limits.low:g} "
        f"to {limits.high:g}, are no {name} of people" + (f"; they look like {alike}" if alike else "")
    )


def _impossible(values: Mapping[str, float]) -> str | None:
    if any(values[name] <= 0 for name in PLAUSIBLE.keys() & values.keys()):
        return "zero or negative"
    if {"tc", "hdl", "ldl"} <= values.keys() and values["hdl"] + values["ldl"] > 1.05 * values["tc"]:
        return "HDL + LDL above TC"
    return None
