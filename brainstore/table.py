"""The index as rows: what `table`, `best` and `brainstore ls` show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from brainstore import notebook
from brainstore.address import LATEST, Name
from brainstore.errors import BadParams
from brainstore.index import Index, Row
from brainstore.meta import may_be, unmarked

__all__ = ["Row", "best_row", "field", "html", "matching", "rows_of"]

# What a row has besides the fields of BrainMeta; see `Manifest.row`.
_FIGURES = {
    "digest": str, "by": str, "size_bytes": int, "new_bytes": int, "parents": list,
    "experts": list, "station": str | None,
}  # fmt: skip
_HTML_COLUMNS = ("name", "version", "aliases", "brain_type", "training_steps", "metrics", "notes")


def rows_of(index: Index, name: Name | None = None) -> list[Row]:
    """Return a row for each live version: its metadata, digest, sizes and aliases.

    A field with a value that no save writes is left out: anybody may have put it there.
    """
    newest = dict(index.versions())
    rows = []
    for key in index.versions(name):
        owner, number = key
        aliases = [alias for alias, at in index.aliases_of(owner).items() if at == number]
        if newest[owner] == number:
            aliases.insert(0, LATEST)
        own = {"name": str(owner), "version": number, "aliases": aliases}
        row = {k: v for k, v in unmarked(index.rows[key]).items() if _is_sound(k, v)}
        rows.append({**own, "station": None, **row, **own})
    return rows


def _is_sound(name: str, value: Any) -> bool:
    return isinstance(value, _FIGURES.get(name, object)) and may_be(name, value)


def field(row: Row, path: str) -> Any:
    """Return a value of a row by its dotted path, such as metrics.return; None if absent."""
    value: Any = row
    while path:
        if not isinstance(value, Mapping):
            return None
        if path in value:
            return value[path]
        head, _, path = path.partition(".")
        value = value.get(head)
    return value


def matching(
    rows: Iterable[Row], where: Mapping[str, Any] | Callable[[Row], bool] | None
) -> list[Row]:
    """Return the rows that have these values, or for which the function is true."""
    if where is None:
        return list(rows)
    if callable(where):
        return [row for row in rows if where(row)]
    if not isinstance(where, Mapping):
        raise BadParams(f"where: expected a dict or a function, found {type(where).__name__}")
    return [row for row in rows if all(_has(row, path, value) for path, value in where.items())]


def _has(row: Row, path: str, value: Any) -> bool:
    found = field(row, path)
    return value in found if isinstance(found, list) else found == value


def best_row(rows: Iterable[Row], metric: str, mode: str) -> Row | None:
    """Return the row with the best value of a metric; NaN is never best."""
    if mode not in ("max", "min"):
        raise BadParams(f"mode: expected 'max' or 'min', found {mode!r}")
    sign = 1 if mode == "max" else -1
    rated = [(sign * value, row) for row in rows if (value := metric_of(row, metric)) is not None]
    return max(rated, key=lambda pair: pair[0])[1] if rated else None


def metric_of(row: Row, metric: str) -> float | None:
    """Return the metric of a row, or None if it is absent or NaN."""
    value = row.get("metrics", {}).get(metric)
    return None if value is None or math.isnan(value) else float(value)


def html(title: str, rows: Sequence[Row]) -> str:
    """Return the rows as an HTML table, for notebooks."""
    cells = ([row.get(column, "") for column in _HTML_COLUMNS] for row in rows)
    return notebook.table(title, _HTML_COLUMNS, cells)
