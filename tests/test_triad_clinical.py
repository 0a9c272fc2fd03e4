"""Lipid tables as laboratories send them: codes of sex, units, decimal commas, marks."""

from __future__ import annotations

import math

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.triad import load_csv
from hesplit_native.triad.clinical import sex_values

PANEL = {"sex": "Sex", "age": "Age", "tc": "Chol", "hdl": "HDL", "tg": "TG", "ldl": "LDL"}


def people(count=100):
    """Columns in mg/dL and years, every row different."""
    i = np.arange(count)
    return {
        "sex": np.where(i % 2, "F", "M").tolist(),
        "age": 30 + i % 50,
        "tc": 160 + i,
        "hdl": 40 + i % 20,
        "tg": 80 + i,
        "ldl": 90 + 0.5 * i,
    }


@pytest.fixture
def write(tmp_path):
    def write(columns, *, sep=",", header=None, encoding="utf-8", form=str, lines=()):
        path = tmp_path / "panel.csv"
        rows = [sep.join(form(value) for value in row) for row in zip(*columns.values(), strict=True)]
        named = header or [PANEL.get(name, name) for name in columns]
        path.write_bytes("\n".join([sep.join(named), *rows, *lines, ""]).encode(encoding))
        return path

    return write


def column(cohort, name):
    values = dict(zip(cohort.features, np.concatenate([cohort.train_x, cohort.test_x]).T, strict=True))
    values[cohort.target] = np.concatenate([cohort.train_y, cohort.test_y])
    return values[name]


def coded(codes):
    return sex_values(codes, "t.csv, column 'Sex'")


# Sex


@pytest.mark.parametrize(
    ("male", "female"),
    [
        ("M", "F"),
        ("m", "w"),
        ("Männlich", "weiblich"),
        ("maennlich", "WEIBLICH "),
        ("H", "F"),
        ("Homme", "Femme"),
        ("H", "M"),  # hombre, mujer
        ("Hombre", "Mujer"),
        ("V", "H"),  # varón, hembra
        ("Mann", "Frau"),
        ("M.", "K."),
        ("Man", "Vrouw"),
        ("男", "女"),
        ("м", "ж"),
        ("1", "2"),
        ("01", "02"),
        ("1,0", "2,0"),
        ("1", "0"),
        ("1.0", "0.0"),
    ],
)
def test_a_column_has_one_coding(male, female):
    assert coded([male, female, female, male]) == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("codes", "values"),
    [
        (["M", "male", "F", "Female"], [1, 1, 0, 0]),  # of one mind
        (["1", "2", "9"], [1, 0, math.nan]),
        (["1", "2"] * 10 + ["0"], [1, 0] * 10 + [math.nan]),  # ISO 5218's "not known"
        (["m", "w", "d", "unbekannt"], [1, 0, math.nan, math.nan]),
        (["M"], [1]),
        (["1", "0", "3"], [1, 0, None]),
        (["M", "F", "x", "yes"], [1, 0, None, None]),
        (["M", "F"] * 50 + ["1"], [1, 0] * 50 + [None]),  # one stray number in a column of letters
        (["1", "2"] * 50 + ["F"], [1, 0] * 50 + [None]),
    ],
)
def test_unknown_and_strange_codes(codes, values):
    np.testing.assert_equal(coded(codes), values)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (["0", "1", "2"], "ISO 5218's code 0 is 'not known'"),
        (["0", "2", "2", "0"], "ISO 5218"),
        (["M", "F", "1", "2"], "by numbers in 2 rows and by words in 2"),
        (["male"] * 9 + ["0"], "by numbers in 1 rows"),
        (["M", "V"], "more than one way"),  # man and vrouw, or mujer and varón
        (["H", "M", "F"], "more than one way"),
        (["H"], "more than one way"),
        (["V"], "more than one way"),
    ],
)
def test_two_readings_are_refused(codes, words):
    with pytest.raises(hn.DataError, match=r"t\.csv, column 'Sex'") as caught:
        coded(codes)
    assert words in str(caught.value)


def test_codes_of_a_table(write):
    columns = people()
    columns["sex"] = [str(1 + i % 2) for i in range(97)] + ["0", "9", "unknown"]
    cohort = load_csv(write(columns), PANEL)
    assert cohort.dropped == {"unknown sex": 3}
    assert len(column(cohort, "sex")) == 97
    assert column(cohort, "sex").sum() == 49


# Units


def mmol(columns):
    factors = {"tc": 38.67, "hdl": 38.67, "ldl": 38.67, "tg": 88.57}
    return {
        name: np.round(values / factors[name], 2) if name in factors else values for name, values in columns.items()
    }


def test_the_named_unit_is_believed_when_it_can_be(write):
    expected = load_csv(write(people()), PANEL, unit="mg/dL")
    found = load_csv(write(mmol(people())), PANEL, unit="mmol/L")
    np.testing.assert_allclose(found.train_x, expected.train_x, rtol=0.01)


@pytest.mark.parametrize("name", ["tc", "hdl", "tg", "ldl"])
@pytest.mark.parametrize("unit", ["mg/dL", "mmol/L"])
def test_a_column_in_another_unit_is_refused(write, name, unit):
    columns, other = (people(), mmol(people())) if unit == "mg/dL" else (mmol(people()), people())
    columns[name] = other[name]
    with pytest.raises(hn.DataError, match=f"column '{PANEL[name]}'.*they look like") as caught:
        load_csv(write(columns), PANEL, unit=unit)
    assert ("mmol/L" if unit == "mg/dL" else "mg/dL") in str(caught.value).rpartition("look like")[2]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("unit", ["mg/dL", "mmol/L", None])
def test_two_units_in_one_table_are_refused(write, share, unit):
    columns, other = people(), mmol(people())
    rows = np.arange(100) < 100 * share
    mixed = {name: values if name == "sex" else np.where(rows, values, other[name]) for name, values in columns.items()}
    with pytest.raises(hn.DataError, match="mixed"):
        load_csv(write(mixed), PANEL, unit=unit)


@pytest.mark.parametrize("unit", ["mg/dL", "mmol/L"])
def test_single_rows_in_another_unit_are_left_out_and_counted(write, unit):
    columns, other = (people(), mmol(people())) if unit == "mg/dL" else (mmol(people()), people())
    rows = np.isin(np.arange(100), (5, 50, 95))
    mixed = {name: values if name == "sex" else np.where(rows, other[name], values) for name, values in columns.items()}
    cohort = load_csv(write(mixed), PANEL, unit=unit)
    assert cohort.dropped == {"implausible value": 3}
    assert column(cohort, "tc").max() < 300
    assert column(cohort, "tg").min() > 60


def test_a_unit_nobody_named_is_warned_of(write):
    with pytest.warns(UserWarning, match="'Chol', 'HDL', 'TG', 'LDL' read as mg/dL, but the values look like mmol/L"):
        load_csv(write(mmol(people())), PANEL)


@pytest.mark.parametrize("named", ["Chol (mmol/L)", "CHOL [mmol / l]"])
def test_a_unit_in_the_header_is_not_contradicted(write, named):
    columns = PANEL | {"tc": named}
    path = write(mmol(people()), header=list(columns.values()))
    for unit in (None, "mg/dL"):
        with pytest.raises(hn.DataError, match="is in mmol/L, not mg/dL"):
            load_csv(path, columns, unit=unit)
    assert len(column(load_csv(path, columns, unit="mmol/L"), "tc")) == 100


@pytest.mark.parametrize(
    ("name", "convert", "looks"),
    [
        ("age", lambda x: 365 * x, "days"),
        ("age", lambda x: 12 * x, "days or months"),
        ("age", lambda x: 2024 - x, ""),  # the year of birth
        ("height", lambda x: x / 100, "m"),
        ("height", lambda x: 10 * x, "mm"),
        ("height", lambda x: x / 2.54, "inches"),
        ("weight", lambda x: x / 0.4536, "lb"),
        ("weight", lambda x: 1000 * x, "g"),
        ("bmi", lambda x: x / 10, ""),
    ],
)
def test_measures_of_the_body_in_another_unit_are_refused(write, name, convert, looks):
    i = np.arange(100)
    body = {"age": 30 + i % 50, "height": 160 + i % 30, "weight": 70 + i % 30, "bmi": 20 + i % 15, "ldl": 90 + 0.5 * i}
    columns = {key: key for key in body}
    assert len(load_csv(write(body), columns).train_y) == 80
    with pytest.raises(hn.DataError, match=f"{name}") as caught:
        load_csv(write(body | {name: convert(body[name])}), columns)
    if looks and name != "weight":
        assert f"look like {looks}" in str(caught.value)


def test_single_ages_nobody_has_are_left_out(write):
    columns = people()
    columns["age"] = np.where(np.arange(100) == 7, 300, columns["age"])  # PTB-XL's "older than 89"
    assert load_csv(write(columns), PANEL).dropped == {"implausible value": 1}


# Dialects


@pytest.mark.parametrize("sep", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_decimal_commas(write, sep, encoding):
    expected = load_csv(write(people()), PANEL)
    path = write(
        people(),
        sep=sep,
        encoding=encoding,
        form=lambda value: f'"{value}"'.replace(".", ","),
        header=list(PANEL.values()),
    )
    found = load_csv(path, PANEL)
    np.testing.assert_array_equal(found.train_x, expected.train_x)
    np.testing.assert_array_equal(found.test_y, expected.test_y)


def test_thousands_are_grouped_as_the_table_does(write):
    columns = people()
    columns["tg"] = [300 + 10 * i for i in range(100)]
    columns["ldl"] = [f"{value:.1f}".replace(".", ",") for value in columns["ldl"]]
    german = dict(columns.items())
    german["tg"] = [f"{value:,}".replace(",", ".") for value in columns["tg"]]
    found = load_csv(write(german, sep=";"), PANEL)
    assert sorted(column(found, "tg").tolist()) == columns["tg"]


def test_a_comma_that_may_be_either_is_refused(write):
    columns = people()
    columns["tg"] = [f"1,{100 + i}" for i in range(100)]
    columns["ldl"] = [int(value) for value in columns["ldl"]]
    with pytest.raises(hn.DataError, match="'1,100' could have a decimal mark or one of thousands"):
        load_csv(write(columns, sep=";"), PANEL)


def test_marks_are_counted_by_reason(write):
    columns = {name: list(values) for name, values in people().items()}
    columns["ldl"][3], columns["ldl"][4], columns["hdl"][5], columns["tg"][6], columns["tc"][7] = (
        "n.d.",
        "#N/A",
        "<5",
        ">1000",
        "",
    )
    columns["tc"][8], columns["sex"][9], columns["age"][10] = "hämolytisch", "??", "forty"
    path = write(columns)
    with pytest.raises(hn.DataError, match=r"row 10, column 'Chol': 'hämolytisch' is not a number \(3 of 100 rows"):
        load_csv(path, PANEL)
    columns["age"][10] = 40
    cohort = load_csv(write(columns), PANEL)
    assert cohort.dropped == {"missing value": 3, "beyond a limit": 2, "not a number": 1, "no code of a sex": 1}
    assert len(cohort.train_y) + len(cohort.test_y) == 93


def test_when_nothing_is_left_the_commonest_reason_comes_first(write):
    columns = people()
    columns["ldl"] = ["<1"] * 60 + ["n.d."] * 40
    with pytest.raises(hn.DataError, match=r"0 usable rows .*'beyond a limit': 60, 'missing value': 40"):
        load_csv(write(columns), PANEL)
