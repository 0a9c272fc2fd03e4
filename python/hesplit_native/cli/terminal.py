"""What terminals, logs and pipes can take: any encoding, and tables as wide as they are."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLAIN = str.maketrans(
    {"…": "...", "−": "-", "–": "-", "—": "-", "·": ".", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "±": "+-", "µ": "u", "‘": "'",
     "’": "'", "“": '"', "”": '"', "•": "*", "━": "-", "╸": "-", "╺": "-"}
)  # fmt: skip


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """For characters that a stream's encoding lacks: what people write instead, else an escape that names the character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("hesplit_native.plain", _plainly)


def accept_all_characters() -> None:
    """No character ends a command because the terminal, log or pipe has an encoding without it, or the name of a file has none."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        # In the C locale the errors are "surrogateescape", which is for names of files only.
        if reconfigure is not None and getattr(stream, "errors", None) in (None, "strict", "surrogateescape"):
            reconfigure(errors="hesplit_native.plain")


def one_line(text: str) -> str:
    """Text that others may have written, for one line of a terminal or log: control characters become escapes."""
    joined = " ".join(text.splitlines())
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in joined)


def print_columns(
    console: Console, columns: Sequence[tuple[str, Mapping[str, str]]], *, title: str, caption: str | None = None
) -> None:
    """A table with a row for each key of the columns' values; as many tables below each other as the width asks for."""
    start = 0
    while start < len(columns):
        end = start + 1
        while end < len(columns) and _fits(console, _table(columns[start : end + 1])):
            end += 1
        last = end == len(columns)
        part = _table(columns[start:end], title=None if start else title, caption=caption if last else None)
        console.print(part)
        start = end


def _table(
    columns: Sequence[tuple[str, Mapping[str, str]]], *, title: str | None = None, caption: str | None = None
) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("", overflow="fold")
    for name, _ in columns:
        table.add_column(name, justify="right", overflow="fold")
    for key in columns[0][1]:
        table.add_row(key, *(values[key] for _, values in columns))
    return table


def _fits(console: Console, table: Table) -> bool:
    """Whether no cell would have to be wrapped."""
    from rich.measure import Measurement

    wide = console.options.update(width=10_000, max_width=10_000)
    return Measurement.get(console, wide, table).maximum <= console.width


def discard_output(stream: TextIO) -> None:
    """Let what is still to be written, which nobody reads any more or no disk takes, go nowhere, silently."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
