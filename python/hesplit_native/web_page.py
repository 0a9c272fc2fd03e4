"""HTML pages that need no other file, on screens of any width."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from hesplit_native.plots import pyplot

# Wide tables scroll in a box of their own.
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1300px;margin:2em auto;padding:0 1em;color:#222}
div{overflow-x:auto}table{border-collapse:collapse;margin:1em 0;font-size:13px}
th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}th{background:#f4f4f4}strong{color:#b3261e}img{max-width:100%;height:auto}"""


def page(title: str, parts: Iterable[str]) -> str:
    """The page of these parts, which are HTML, under its title."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<div><table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def picture(figure: Any, caption: str) -> str:
    """A figure of matplotlib, which is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot().close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
