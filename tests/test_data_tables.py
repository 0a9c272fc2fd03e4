"""Text tables in the dialects that spreadsheets, laboratories and pandas write."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hesplit_native as hn
from hesplit_native.data.tables import Fault, is_censored, is_missing, notations, number, read_table, settle

COLUMNS = ("id", "Name", "Größe", "value")
ROWS = [(str(i), f"n{i}", f"g{i}", str(10 * i)) for i in range(1, 60)]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def text(rows=ROWS, header=COLUMNS, sep=",", end="\n"):
    return end.join(sep.join(row) for row in [header, *rows]) + end


# Encodings


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]
)
def test_encodings(tmp_path, encoding):
    table = read_table(write(tmp_path / "t.csv", text(), encoding), COLUMNS)
    assert table.header == COLUMNS
    assert table.rows == tuple(ROWS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04" + bytes(100), "workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(100), "workbook"),
        (b"id,Name\n\0\x01\x02\0", "no text"),
        (b"id,Name\n\x81\x8d\n", "no text"),  # not in Windows-1252
        (b"", "has no column"),
        (b"\n\n\n", "has no column"),
        (b"sep=;", "has no column"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, data, words):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(hn.DataError, match=r"t\.csv") as caught:
        read_table(path, COLUMNS)
    assert words in str(caught.value)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for lead in (b"", b"id;Name;value\n"):
        path.write_bytes(lead + data)
        try:
            table = read_table(path, ("id", "value"))
        except hn.DataError:
            continue
        assert all(len(row) == len(table.header) for row in table.rows)


# Dialects


@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(tmp_path, sep, end):
    table = read_table(write(tmp_path / "t.csv", text(sep=sep, end=end)), COLUMNS)
    assert table.rows == tuple(ROWS)
    assert table.lines[:2] == (2, 3)
    assert not table.faults


@pytest.mark.parametrize(
    ("lead", "sep"),
    [("sep=|\n", "|"), ('"sep=;"\n', ";"), ("Export of 3, 4 and 5; by hand\n\n# 2020\n", ";"), ("\n\n", ",")],
)
def test_lines_above_the_header(tmp_path, lead, sep):
    assert read_table(write(tmp_path / "t.csv", lead + text(sep=sep)), COLUMNS).rows == tuple(ROWS)


def test_the_other_delimiters_within_quotes(tmp_path):
    header = ("id", '"Name, first; last | all"', '"Größe\n(cm)"', "value")
    rows = [(i, f'"{name}, or; so"', f'"{size}\n""x"""', value) for i, name, size, value in ROWS]
    for sep in (";", ",", "\t", "|"):
        table = read_table(
            write(tmp_path / "t.csv", text(rows, header, sep)), ("Name, first; last | all", "Größe\n(cm)", "value")
        )
        assert table.rows[0] == ("1", "n1, or; so", 'g1\n"x"', "10")
        assert len(table.rows) == len(ROWS)
        assert table.lines[:2] == (3, 5)


@pytest.mark.parametrize("form", ["  {} ", '"{}"', '" {} "', '"{}"  ', "\u00a0{}"])
def test_spaces_and_quotes_around_cells(tmp_path, form):
    rows = [tuple(form.format(cell) for cell in row) for row in ROWS]
    header = tuple(form.format(cell) for cell in COLUMNS)
    assert read_table(write(tmp_path / "t.csv", text(rows, header, ";")), COLUMNS).rows == tuple(ROWS)


def test_trailing_delimiters_blank_rows_and_the_index_of_pandas(tmp_path):
    header = ("", *COLUMNS, "", "")
    rows = [(str(i), *row, "", "", "")[: 6 + i % 3] for i, row in enumerate(ROWS)]
    rows.insert(5, ("",) * 7)
    rows.insert(7, (" ",))
    table = read_table(write(tmp_path / "t.csv", text(rows, header)), COLUMNS)
    assert [row[1:5] for row in table.rows] == list(ROWS)
    assert not table.faults


# Headers


@pytest.mark.parametrize("header", ["ID,name,GRÖSSE,Value", "id,NAME,Größe,VALUE", "I D,Na-me,Größe ,_value"])
def test_headers_that_differ_in_case_spaces_and_hyphens(tmp_path, header):
    table = read_table(write(tmp_path / "t.csv", text(header=header.split(","))), COLUMNS)
    assert table.column("value")[:2] == ["10", "20"]
    assert table.column("Größe")[0] == "g1"


def test_the_exact_header_wins(tmp_path):
    path = write(tmp_path / "t.csv", "ldl,LDL,L-DL\n1,2,3\n")
    assert read_table(path, ("LDL",)).column("LDL") == ["2"]
    with pytest.raises(hn.DataError, match="'Ldl' is more than once"):
        read_table(path, ("Ldl",))
    with pytest.raises(hn.DataError, match="'HDL' is not in the header"):
        read_table(path, ("HDL",))


# Bad rows


@pytest.mark.parametrize(
    "line",
    ["1,2,3", "1,2,3,4,5", '1,"2"x,3,4', '1,"2,3,4', '1,2,"3,4\n9"x', "id,Name,Größe,value", "total: 59 rows"],
)
def test_a_bad_row_costs_itself_only(tmp_path, line):
    lines = text().splitlines()
    lines.insert(31, line)
    table = read_table(write(tmp_path / "t.csv", "\n".join(lines)), COLUMNS)
    assert table.rows == tuple(ROWS)
    # A quote over two lines may leave two unusable ones.
    assert 1 <= len(table.faults) <= 1 + line.count("\n")
    assert table.faults[0].words.startswith("row 32: ")


def test_many_broken_quotes_do_not_take_long(tmp_path):
    path = write(tmp_path / "t.csv", text() + '1,"2,3,4\n' * 200_000)
    table = read_table(path, COLUMNS)
    assert len(table.faults) > 0.02 * 200_000
    with pytest.raises(hn.DataError, match="row 61: "):
        settle(path, table.faults, len(table.rows) + len(table.faults))


def test_exceptions_are_counted_and_more_are_refused(tmp_path):
    faults = [Fault("rare", "row 1: x"), Fault("common", "row 2: y"), Fault("common", "row 3: z")]
    assert settle(tmp_path, faults, 150) == {"common": 2, "rare": 1}
    with pytest.raises(hn.DataError, match=r"row 2: y \(3 of 149 rows"):
        settle(tmp_path, faults, 149)
    assert settle(tmp_path, [], 0) == {}


# Cells


@pytest.mark.parametrize(
    "cell", ["", "NA", "n.d.", "N. D.", "#N/A", "#NV", "NaN", "<NA>", "-", "–", "null", "#DIV/0!", "k. A."]
)
def test_missing(cell):
    assert is_missing(cell)


@pytest.mark.parametrize("cell", ["0", "m", "<0.2", "no", "1.5", "Nadia"])
def test_not_missing(cell):
    assert not is_missing(cell)


@pytest.mark.parametrize(("cell", "yes"), [("<0.2", True), ("> 10", True), ("≤5", True), ("<LOD", True), ("5", False)])
def test_censored(cell, yes):
    assert is_censored(cell) == yes


def column(*cells):
    notation = notations({"x": cells})["x"]
    return [number(cell, notation) for cell in cells]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["4.5", "5", ".5", "1e2", "-3.25", "+7."], [4.5, 5, 0.5, 100, -3.25, 7]),
        (["4,5", "5", ",5", "1,5e2", "\u22123,25"], [4.5, 5, 0.5, 150, -3.25]),
        (["1.234,5", "1.234", "12.345.678"], [1234.5, 1234, 12345678]),
        (["1,234.5", "1,234", "12,345,678"], [1234.5, 1234, 12345678]),
        (["1 234,5", "1\u00a0234", "1\u202f234"], [1234.5, 1234, 1234]),
        (["1'234.5", "1’234"], [1234.5, 1234]),
        (["0.234", "1,234"], [0.234, 1234]),
        (["0,234", "1.234"], [0.234, 1234]),
        (["1.234", "180"], [1.234, 180]),  # a point is decimal unless the column says otherwise
        (["1,234", "180"], [None, 180]),  # a comma may be either
        (["4.5", "4.6", "4,7", "1,234"], [4.5, 4.6, None, None]),  # two hands: neither reading of 1,234 is sure
        (["4,5", "4,6", "4.7", "1.234"], [4.5, 4.6, None, None]),
        (["1_80", "12 34", "1,2,3", "0x10", "1,23,456", "abc", "5 mg", "4.5.6", "1.", "--1", "e5", "٣"],
         [None, None, None, None, None, None, None, None, 1.0, None, None, None]),
        (["inf", "-Infinity", "1e999"], [np.inf, -np.inf, np.inf]),
    ],
)  # fmt: skip
def test_numbers_are_read_as_their_column_writes_them(cells, values):
    assert column(*cells) == values


def test_the_table_tells_what_a_column_does_not():
    found = notations({"a": ["1,234"], "b": ["4,5"], "c": ["5"]})
    assert number("1,234", found["a"]) == 1.234
    found = notations({"a": ["1,234"], "b": ["4.5"]})
    assert number("1,234", found["a"]) == 1234
    found = notations({"a": ["1,234"], "b": ["4.5"], "c": ["4,5"]})
    assert number("1,234", found["a"]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_both_notations_of_any_numbers(values):
    point = [f"{value:,.2f}" for value in values]
    comma = [cell.translate(str.maketrans(",.", ".,")) for cell in point]
    expected = [round(value, 2) for value in values]
    np.testing.assert_allclose(column(*point), expected, rtol=1e-9, atol=0.0051)
    np.testing.assert_allclose(column(*comma), expected, rtol=1e-9, atol=0.0051)
