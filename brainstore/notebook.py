"""HTML tables, as notebooks show what a cell returns."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of plain values under a title. All text is escaped."""
    head = _row("th", headers) if headers else ""
    body = "".join(_row("td", row) for row in rows)
    return f"<b>{html.escape(title)}</b><table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_cell(each)}</{tag}>" for each in cells) + "</tr>"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {_short(each)}" for key, each in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    return html.escape(_short(value))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
