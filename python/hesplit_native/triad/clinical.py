"""What values of patients can be: codes of sex, and the ranges that tell one unit from another."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesplit_native.data.tables import TOLERATED
from hesplit_native.errors import DataError

# mg/dL in a mmol/L: cholesterol of whatever particle, and triglycerides.
CHOLESTEROL_MG_DL = 38.67
TRIGLYCERIDES_MG_DL = 88.57
LIPIDS = dict.fromkeys(("tc", "hdl", "ldl", "vldl"), CHOLESTEROL_MG_DL) | {"tg": TRIGLYCERIDES_MG_DL}

# Codes of sex

_MALE = (
    "male man masculine männlich maennlich mann herr homme masculin hombre varón varon masculino maschio uomo maschile "
    "mannelijk homem mężczyzna мужской муж м 男 男性"
)
_FEMALE = (
    "female woman feminine weiblich frau femme féminin feminin mujer hembra femenino femmina donna femminile vrouw "
    "vrouwelijk mulher feminino kobieta женский жен ж 女 女性 f w k"
)
_WORDS = dict.fromkeys(_MALE.split(), 1.0) | dict.fromkeys(_FEMALE.split(), 0.0)
_UNKNOWN = frozenset(
    (
        *(
            "9",
            "u",
            "unk",
            "unknown",
            "unbekannt",
            "inconnu",
            "desconocido",
            "notknown",
            "notspecified",
            "indeterminate",
        ),
        *("d", "divers", "diverse", "o", "other"),  # known, but the paper's feature has two values
    )
)
_MOSTLY_ZEROS = 0.1  # more zeros than this share beside twos are no "not known"


def is_sex_unknown(cell: str) -> bool:
    """Whether a cell says that the sex is not known, or neither male nor female."""
    return _code(cell) in _UNKNOWN


def sex_values(cells: Iterable[str], where: str) -> list[float | None]:
    """Cells of one column as 1 (male), 0 (female), NaN (not known) or None (no code of the column's coding).

    The coding is decided for the whole column, words or numbers by what most cells are. Numbers are 1 and 0 as they stand, or
    ISO 5218's 1 and 2, beside which 0 is "not known". Letters are read beside each other: M is male beside F, W or K, but the
    Spanish *mujer* beside H.

    Raises
    ------
    DataError
        Beginning with ``where``, when the column can be read in two ways.
    """
    codes = [_code(cell) for cell in cells]
    counts = Counter(code for code in codes if code not in _UNKNOWN)
    digits = sum(count for code, count in counts.items() if code.isdigit())
    if TOLERATED * counts.total() < digits < (1 - TOLERATED) * counts.total():
        raise DataError(
            f"{where}: sex is coded by numbers in {digits} rows and by words in {counts.total() - digits}; recode the column"
        )
    if 2 * digits > counts.total():
        known = _numbers(counts, where)
    else:
        known = _WORDS | _letters({code for code in counts if code in set("mhv")}, counts, where)
    return [math.nan if code in _UNKNOWN else known.get(code) for code in codes]


def _numbers(counts: Counter[str], where: str) -> dict[str, float]:
    if "2" not in counts:
        return {"1": 1.0, "0": 0.0}
    if counts["0"] > _MOSTLY_ZEROS * counts.total():
        raise DataError(
            f"{where}: beside 1 (male) and 2 (female) ISO 5218's code 0 is 'not known', but {counts['0']} of {counts.total()} rows "
            "have it; recode the column"
        )
    return {"1": 1.0, "2": 0.0, "0": math.nan}


def _letters(letters: set[str], counts: Counter[str], where: str) -> dict[str, float]:
    """What M, H and V mean: they stand for either sex in one language or another."""
    female = bool({"f", "w", "k"} & counts.keys())
    if letters <= {"m"}:
        return {"m": 1.0}
    if letters == {"h"} and female:  # homme, femme
        return {"h": 1.0}
    if letters == {"h", "m"} and not female:  # hombre, mujer
        return {"h": 1.0, "m": 0.0}
    if letters == {"h", "v"} and not female:  # hembra, varón
        return {"h": 0.0, "v": 1.0}
    found = ", ".join(sorted(counts))
    raise DataError(
        f"{where}: the codes {found} of sex can be read in more than one way; recode the column as male and female"
    )


def _code(cell: str) -> str:
    text = "".join(unicodedata.normalize("NFKC", cell).casefold().split()).rstrip(".")
    whole = re.fullmatch(r"0*([0-9])(?:[.,]0*)?", text)
    return whole[1] if whole else text


# Ranges


class Plausible(NamedTuple):
    """Limits of single values and of a column's median, wide enough for rare diseases and special cohorts, in `unit`."""

    low: float
    high: float
    median_low: float
    median_high: float
    unit: str


PLAUSIBLE = {
    "tc": Plausible(20, 1500, 70, 450, "mg/dL"),
    "hdl": Plausible(5, 400, 20, 120, "mg/dL"),
    "ldl": Plausible(10, 1000, 30, 350, "mg/dL"),
    "vldl": Plausible(2, 600, 4, 200, "mg/dL"),
    "tg": Plausible(15, 2700, 35, 1000, "mg/dL"),
    "age": Plausible(0, 130, 0, 110, "years"),
    "bmi": Plausible(8, 120, 12, 55, "kg/m²"),
    "height": Plausible(30, 275, 75, 220, "cm"),
    "weight": Plausible(1, 650, 8, 150, "kg"),
}
# Other units that tables have, and what they are in PLAUSIBLE's.
_OTHER_UNITS = {
    "age": {"days": 1 / 365.25, "months": 1 / 12},
    "height": {"m": 100.0, "mm": 0.1, "inches": 2.54, "feet": 30.48},
    "weight": {"lb": 0.45359237, "g": 0.001},
} | {name: {"mmol/L": factor, "mg/dL": 1.0} for name, factor in LIPIDS.items()}
_FEW = 0.1  # share of implausible values that are left out; more are a wrong unit


def beyond_people(name: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_] | None:
    """Which values [n] of a column cannot be, in `PLAUSIBLE`'s unit; None when the column as a whole cannot."""
    limits = PLAUSIBLE[name]
    outside = (values < limits.low) | (values > limits.high)
    fits = outside.mean() <= _FEW and limits.median_low <= np.median(values) <= limits.median_high
    return outside if fits else None


def looks_like(name: str, values: npt.NDArray[np.float64]) -> str:
    """The units in which a column's values [n] would be plausible, in words; nothing where there is none."""
    units = {unit: values * factor for unit, factor in _OTHER_UNITS.get(name, {}).items()}
    fitting = [unit for unit, converted in units.items() if beyond_people(name, converted) is not None]
    if fitting:
        return " or ".join(fitting)
    if name not in LIPIDS:
        return ""
    limits = PLAUSIBLE[name]
    inside = np.stack([(limits.low <= v) & (v <= limits.high) for v in units.values()])
    mixed = inside.any(0).mean() >= 1 - _FEW > inside.mean(1).max()
    return " and ".join(units) + ", mixed" if mixed else ""
