"""Tables for the attack on private features, in the dialects of the field."""

from __future__ import annotations

import numpy as np
import pytest

import hesplit_native as hn
from hesplit_native.privacy.attacks.features import load_table


def write(
    path,
    *,
    sep=",",
    decimal=".",
    header=("", "Age", "bmi", "name", "Sick", "y"),
    change=lambda rows: rows,
    encoding="utf-8",
):
    rows = [
        [str(i), str(30 + i % 40), f"{20 + i % 7 + 0.5}".replace(".", decimal), f"p{i}", "YN"[i % 2], str(i // 3 % 2)]
        for i in range(100)
    ]
    path.write_bytes("\n".join(sep.join(row) for row in [list(header), *change(rows)]).encode(encoding))
    return path


def load(path):
    return load_table(path, private=["Sick"], label="y")


@pytest.fixture
def expected(tmp_path):
    return load(write(tmp_path / "plain.csv"))


def test_what_becomes_what(expected):
    age = np.array([30 + i % 40 for i in range(100)])
    assert expected.public.shape == (100, 2)  # neither the index nor the name
    np.testing.assert_allclose(expected.public[:, 0], (age - age.mean()) / age.std(), rtol=1e-5)
    assert expected.private[:, 0].tolist() == [float(i % 2 == 0) for i in range(100)]
    assert expected.labels.tolist() == [float(i // 3 % 2) for i in range(100)]


@pytest.mark.parametrize(
    "options",
    [
        {"sep": ";", "decimal": ","},
        {"sep": ";", "decimal": ",", "encoding": "utf-8-sig"},
        {"sep": "\t", "encoding": "utf-16"},
        {"sep": "|", "header": ("Unnamed: 0", "age", "BMI", "Name", " SICK", "Y ")},
        {
            "change": lambda rows: [
                [*row[:4], row[4].lower() if i % 3 else f" {row[4]}", row[5]] for i, row in enumerate(rows)
            ]
        },
        {"change": lambda rows: [[*row[:5], f"{row[5]}.0" if i % 3 else row[5]] for i, row in enumerate(rows)]},
    ],
)
def test_dialects(tmp_path, expected, options):
    found = load(write(tmp_path / "t.csv", **options))
    for name in ("public", "private", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_rows_without_a_value_are_left_out(tmp_path):
    def holes(rows):
        rows[3][1], rows[4][2], rows[5][4], rows[6][5], rows[7][3] = "n.d.", "<5", "NA", "", ""
        return rows

    assert len(load(write(tmp_path / "t.csv", change=holes)).labels) == 96  # a name is no feature


def test_one_bad_row_costs_that_row_and_many_are_refused(tmp_path):
    def spoil(count):
        def apply(rows):
            for row in rows[:count]:
                row[1] = "forty"
            return rows

        return apply

    with pytest.warns(UserWarning, match="1 not a number; the first: row 2, column 'Age': 'forty'"):
        assert len(load(write(tmp_path / "t.csv", change=spoil(1))).labels) == 99
    with pytest.raises(hn.DataError, match=r"row 2, column 'Age': 'forty' is not a number \(3 of 100 rows"):
        load(write(tmp_path / "t.csv", change=spoil(3)))


@pytest.mark.parametrize("cell", ["inf", "1e999"])
def test_an_infinite_value_is_no_number(tmp_path, cell):
    def spoil(rows):
        rows[9][2] = cell
        return rows

    with pytest.warns(UserWarning, match="row 11, column 'bmi'"):
        assert np.isfinite(load(write(tmp_path / "t.csv", change=spoil)).public).all()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(hn.DataError, match=r"nowhere\.csv"):
        load(tmp_path / "nowhere.csv")
    with pytest.raises(hn.DataError, match="no column 'Sick'"):
        load(write(tmp_path / "t.csv", header=("", "Age", "bmi", "name", "ill", "y")))
    with pytest.raises(hn.DataError, match="no numeric column"):
        load(write(tmp_path / "t.csv", change=lambda rows: [[row[0], "a", "b", *row[3:]] for row in rows]))
    with pytest.raises(hn.DataError, match=r"t\.csv"):
        load(write(tmp_path / "t.csv", change=lambda rows: []))
    with pytest.raises(hn.DataError, match="no row has a value"):
        load(write(tmp_path / "t.csv", change=lambda rows: [[*row[:4], "NA", row[5]] for row in rows]))
