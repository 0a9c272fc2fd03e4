"""Text tables as spreadsheets, laboratories and pandas write them: encodings, delimiters, headers, decimal commas, bad rows.

Nothing is guessed where two readings are possible: a table is then refused in words. Rows that cannot be used are left out and
counted as long as they are exceptions; more of them mean that the table is not what it was taken for.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hesplit_native.errors import DataError

TOLERATED = 0.02  # share of rows that may be unusable

_DELIMITERS = (",", ";", "\t", "|")
_HEADER_WITHIN = 60  # lines: above the header may be titles
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What laboratories, spreadsheets, R and pandas write where there is no value; compared without case and spaces.
_MISSING = frozenset(
    (
        *(
            "",
            "-",
            "--",
            "---",
            "–",
            "—",
            ".",
            "?",
            "*",
            "na",
            "n/a",
            "n.a.",
            "nan",
            "<na>",
            "nat",
            "null",
            "none",
            "nil",
        ),
        *(
            "nd",
            "n.d.",
            "n/d",
            "n.b.",
            "k.a.",
            "n.v.",
            "missing",
            "unknown",
            "unbekannt",
            "notdone",
            "notmeasured",
            "pending",
        ),
        *(
            "#n/a",
            "#n/a!",
            "#na",
            "#nv",
            "#n/d",
            "#value!",
            "#wert!",
            "#div/0!",
            "#ref!",
            "#bezug!",
            "#name?",
            "#num!",
            "#zahl!",
        ),
        "#null!",
    )
)
_CENSORED = re.compile(r"[<>≤≥].*")
_SPACES = " \u00a0\u202f\u2009'’"


class _Record(NamedTuple):
    """The cells of a record, the lines (from 0) where it begins and the next one does, and what is wrong with it."""

    start: int
    after: int
    cells: tuple[str, ...]
    problem: str | None


class _Header(NamedTuple):
    """A header as it is with a delimiter, and the line (from 0) after it."""

    delimiter: str
    after: int
    cells: tuple[str, ...]


class Fault(NamedTuple):
    """A row that cannot be used: a reason to count by, and words that name its place and problem."""

    reason: str
    words: str


@dataclass(frozen=True)
class TextTable:
    """Rows of cells without surrounding spaces, all as long as `header`; `lines` has the line of the file each begins in."""

    path: Path
    header: tuple[str, ...]
    lines: tuple[int, ...]
    rows: tuple[tuple[str, ...], ...]
    faults: tuple[Fault, ...]

    def place(self, name: str) -> int:
        """Where a column is that is named as in the header, or differs in case, spaces, hyphens or underscores only.

        Raises
        ------
        DataError
            When there is none or more than one.
        """
        place = _places(self.header, (name,))[0]
        if place is None:
            raise DataError(f"{self.path} has no column {name!r}: {name!r} is not in the header {list(self.header)}")
        if place < 0:
            raise DataError(f"{self.path}: the column {name!r} is more than once in the header {list(self.header)}")
        return place

    def column(self, name: str) -> list[str]:
        """The cells of a column; names and errors as of `place`."""
        place = self.place(name)
        return [row[place] for row in self.rows]


def read_table(path: Path, columns: Sequence[str]) -> TextTable:
    """A table with at least these columns, in UTF-8, UTF-16, UTF-32 or Windows-1252.

    Delimiter (comma, semicolon, tab or bar) and header are those with which the columns are found, so titles above the header,
    delimiters and line breaks within quotes and Excel's ``sep=`` line do no harm. Blank rows are skipped; rows of another length
    and rows with broken quotes become faults, which cost no other row.

    Raises
    ------
    DataError
        When the file cannot be read as text or a column is missing.
    """
    lines = list(io.StringIO(_decode(path), newline=""))
    told = re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n")) if lines else None
    candidates = (told[1],) if told else _DELIMITERS
    first = 1 if told else 0
    headers = [_find_header(lines, first, delimiter, columns) for delimiter in candidates]
    delimiter, after, header = max(headers, key=lambda found: _fit(lines, found, columns))
    numbers, rows, faults = [], [], []
    width = len(header)
    while width and not header[width - 1]:
        width -= 1
    for record in _records(lines, after, delimiter, (width, len(header))):
        problem = "the header again" if record.problem is None and record.cells == header else record.problem
        if problem is not None:
            faults.append(Fault("malformed row", f"row {record.start + 1}: {problem}"))
            if len(faults) > TOLERATED * len(lines) + 1:
                break  # refused in any case; going through the file from every broken quote would take long
            continue
        numbers.append(record.start + 1)
        rows.append((*record.cells, *[""] * (len(header) - len(record.cells)))[: len(header)])
    table = TextTable(path, header, tuple(numbers), tuple(rows), tuple(faults))
    for name in columns:
        table.place(name)
    return table


def settle(path: Path, faults: Sequence[Fault], rows: int) -> Counter[str]:
    """How many of a table's rows are left out for which reason.

    Raises
    ------
    DataError
        When they are more than exceptions, with the commonest reason and the first place where it holds.
    """
    counts = Counter(fault.reason for fault in faults)
    if len(faults) > TOLERATED * rows:
        commonest = counts.most_common(1)[0][0]
        words = next(fault.words for fault in faults if fault.reason == commonest)
        raise DataError(
            f"{path}, {words} ({len(faults)} of {rows} rows cannot be used; at most {TOLERATED:.0%} would be left out)"
        )
    return counts


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return "".join(cell.split()).casefold() in _MISSING


def is_censored(cell: str) -> bool:
    """Whether a cell only says on which side of a limit the value lies, as ``<0.2`` does."""
    return _CENSORED.fullmatch(cell) is not None


# Numbers


class Notation(NamedTuple):
    """How a column writes numbers: its decimal mark, and whether the other mark may group thousands."""

    mark: str
    grouped: bool


def _pattern(mark: str, grouping: str) -> re.Pattern[str]:
    groups = rf"[1-9][0-9]{{0,2}}(?:(?P<g>[{re.escape(grouping)}])[0-9]{{3}}(?:(?P=g)[0-9]{{3}})*)"
    return re.compile(rf"[+-]?(?:(?:{groups}|[0-9]+)(?:[{mark}][0-9]*)?|[{mark}][0-9]+)(?:[eE][+-]?[0-9]+)?")


_PATTERNS = {
    Notation(mark, grouped): _pattern(mark, _SPACES + other * grouped)
    for mark, other in ((".", ","), (",", "."))
    for grouped in (False, True)
}
_POINT, _COMMA = Notation(".", True), Notation(",", True)


def notations(columns: Mapping[str, Sequence[str]]) -> dict[str, Notation]:
    """How each column writes its numbers.

    ``4,5`` and ``1.234,5`` tell of a decimal comma, ``4.5`` and ``1,234.5`` of a decimal point; ``1,234`` and ``1.234`` of nothing:
    they are read as the rest of the column is, or of the table. Where neither tells, a point is decimal and a comma not read at all.
    """
    told = {name: Counter(mark for cell in cells if (mark := _mark(cell))) for name, cells in columns.items()}
    everywhere = {mark for counts in told.values() for mark in counts}
    found = {}
    for name, counts in told.items():
        marks = set(counts) or everywhere
        if len(marks) == 1:
            found[name] = Notation(next(iter(marks)), True)
        else:
            found[name] = Notation("," if counts[","] > counts["."] else ".", False)
    return found


def _mark(cell: str) -> str | None:
    """The decimal mark that a cell proves."""
    cell = _plain(cell)
    point, comma = (_PATTERNS[notation].fullmatch(cell) is not None for notation in (_POINT, _COMMA))
    return None if point == comma else "." if point else ","


def number(cell: str, notation: Notation) -> float | None:
    """The number that a cell is in its column's notation, None when it is none."""
    cell = _plain(cell)
    if cell.lstrip("+-").lower() in ("inf", "infinity", "∞"):
        return float("-inf") if cell[0] == "-" else float("inf")
    if not _PATTERNS[notation].fullmatch(cell):
        return None
    other = "," if notation.mark == "." else "."
    return float(cell.translate({ord(c): None for c in _SPACES + other}).replace(notation.mark, "."))


def not_a_number(cell: str) -> str:
    """Why a cell is no number, in words."""
    plain = _plain(cell)
    if _PATTERNS[_POINT].fullmatch(plain) and _PATTERNS[_COMMA].fullmatch(plain):
        return f"{cell!r} could have a decimal mark or one of thousands, and nothing in its column tells which"
    if _mark(cell):
        return f"{cell!r} is not a number as the column writes them, with another decimal mark"
    return f"{cell!r} is not a number"


def _plain(cell: str) -> str:
    return cell.strip().replace("\u2212", "-")


# Text and rows


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read as a table: {error.strerror or error}") from error
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path} is a workbook or an archive, not a text table; save it as CSV")
    mark, encoding = next(((mark, name) for mark, name in _BOMS if data.startswith(mark)), (b"", ""))
    if not encoding and b"\0" in data:
        # Of UTF-16 without its mark, every other byte of Western text is zero.
        even, odd = data[::2].count(0), data[1::2].count(0)
        encoding = "utf-16-le" if odd > len(data) // 4 > even else "utf-16-be" if even > len(data) // 4 > odd else ""
    for name in (encoding,) if encoding else ("utf-8", "cp1252"):
        try:
            text = data[len(mark) :].decode(name)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise DataError(f"{path} cannot be read as a table: it is no text in UTF-8, UTF-16 or Windows-1252")


def _reader(lines: Iterator[str] | Sequence[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


def _records(lines: Sequence[str], at: int, delimiter: str, widths: tuple[int, int] | None) -> Iterator[_Record]:
    """Every record that is not blank.

    A quote that is not closed would swallow all that follows: after a bad record of several lines its second line is the next.
    """

    def feed() -> Iterator[str]:
        nonlocal at
        while at < len(lines):
            at += 1
            yield lines[at - 1]

    reader = _reader(feed(), delimiter)
    while at < len(lines):
        start = at
        problem: str | None = None
        cells: tuple[str, ...] = ()
        try:
            cells = tuple(cell.strip() for cell in next(reader))
        except StopIteration:
            return
        except csv.Error as error:
            repaired = _without_spaces_after_quotes(lines[start], delimiter)
            if repaired is None:
                problem = str(error)
            else:
                cells = tuple(cell.strip() for cell in repaired)
            at, reader = start + 1, _reader(feed(), delimiter)
        if problem is None and not any(cells):
            continue
        if problem is None and widths is not None:
            problem = _misfit(cells, *widths)
            if problem is not None and at > start + 1:
                at, reader = start + 1, _reader(feed(), delimiter)
        yield _Record(start, at, cells, problem)


def _without_spaces_after_quotes(line: str, delimiter: str) -> list[str] | None:
    try:
        return next(_reader([re.sub(rf'" +(?={re.escape(delimiter)}|\s*$)', '"', line)], delimiter), None)
    except csv.Error:
        return None


def _misfit(cells: tuple[str, ...], named: int, width: int) -> str | None:
    """What is wrong with a row's length: empty cells beyond the header's names may be there or not."""
    if len(cells) == width or (len(cells) >= named and not any(cells[named:])):
        return None
    return f"{len(cells)} fields, but the header has {width}"


def _find_header(lines: Sequence[str], first: int, delimiter: str, columns: Sequence[str]) -> _Header:
    """The first record that has all columns, or else the one with most of them."""
    best, most = _Header(delimiter, first, ()), -1
    for record in _records(lines[: first + _HEADER_WITHIN], first, delimiter, None):
        found = sum(place is not None for place in _places(record.cells, columns))
        if record.problem is None and found > most:
            best, most = _Header(delimiter, record.after, record.cells), found
    return best


def _fit(lines: Sequence[str], header: _Header, columns: Sequence[str]) -> tuple[int, int, int]:
    """How well a delimiter suits: columns found, rows as long as the header, and its length."""
    width = len(header.cells)
    found = sum(place is not None for place in _places(header.cells, columns))
    sample = _records(lines[: header.after + _HEADER_WITHIN], header.after, header.delimiter, (width, width))
    return found, sum(record.problem is None for record in sample), width


def _places(header: Sequence[str], columns: Sequence[str]) -> list[int | None]:
    """Where each column is, None where it is not and -1 where it is more than once."""
    folded = [_fold(cell) for cell in header]
    places: list[int | None] = []
    for column in columns:
        exact = [i for i, cell in enumerate(header) if cell == column.strip()]
        alike = exact or [i for i, cell in enumerate(folded) if cell == _fold(column) and cell]
        places.append(None if not alike else alike[0] if len(alike) == 1 else -1)
    return places


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]", "", unicodedata.normalize("NFKC", name)).casefold()
