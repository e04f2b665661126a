"""Values as text: tables that fit a terminal and stay stable in a pipe, sizes, ages, JSON."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

NOTHING = "-"
_HEADLINES = ("return", "success", "accuracy", "score", "reward", "loss")
_AGES = ((86400 * 365, "y"), (86400 * 30, "mo"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_LEAST_WIDTH = 8


def print_json(value: Any) -> None:
    """Print plain values and records as JSON; NaN and infinities, which it lacks, as null."""
    body = msgspec.json.encode(value, enc_hook=_plain)
    click.echo(msgspec.json.format(body, indent=2).decode())


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, float) else str(value)


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print aligned columns, two spaces apart.

    On a terminal the widest columns are cut until a line fits; in a pipe nothing is.

    Args:
        right: headers of the columns that are aligned to the right.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    if sys.stdout.isatty():
        _fit(widths, shutil.get_terminal_size().columns)
    on_right = [header in right for header in headers]
    click.secho(_line(headers, widths, on_right), bold=True)
    for row in rows:
        click.echo(_line(row, widths, on_right))


def _fit(widths: list[int], columns: int) -> None:
    while sum(widths) + 2 * (len(widths) - 1) > columns and max(widths) > _LEAST_WIDTH:
        widths[widths.index(max(widths))] -= 1


def _line(cells: Sequence[str], widths: Sequence[int], on_right: Sequence[bool]) -> str:
    shown = []
    for cell, width, right in zip(cells, widths, on_right, strict=True):
        text = cell if len(cell) <= width else cell[: width - 1] + "…"
        shown.append(text.rjust(width) if right else text.ljust(width))
    return "  ".join(shown).rstrip()


def print_fields(fields: Mapping[str, str | Sequence[str]]) -> None:
    """Print `key  value` lines; a list takes several lines, and nothing takes none."""
    width = max(map(len, fields)) if fields else 0
    for key, value in fields.items():
        for index, line in enumerate([value] if isinstance(value, str) else value):
            click.echo(f"  {key if index == 0 else '':{width}}  {visible(line)}".rstrip())


def visible(text: str) -> str:
    """Return text in which whatever would steer a terminal is an escape such as `\\x1b`.

    Line ends stay. Notes, names of people and reasons come from records, which anybody may
    have written.
    """
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() or x == "\n" else ascii(x)[1:-1] for x in text)


def size(size_bytes: float) -> str:
    """Return `18 kB` for a number of bytes."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    units = ["kB", "MB", "GB", "TB"]
    size_bytes /= 1000
    while size_bytes >= 999.5 and len(units) > 1:
        size_bytes /= 1000
        del units[0]
    return f"{size_bytes:.{1 if size_bytes < 9.95 else 0}f} {units[0]}"


def count(number: int) -> str:
    """Return `2.4M` for a large number."""
    value = float(number)
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or unit == "T":
            break
        value /= 1000
    return f"{value:.3g}{unit}"


def counted(number: int, noun: str) -> str:
    """Return `1 leaf`, or `2 leaves`."""
    irregular = {"leaf": "leaves", "entry": "entries", "copy": "copies"}
    return f"{number:,} {noun if number == 1 else irregular.get(noun, noun + 's')}"


def age(created_at: object, now: datetime | None = None) -> str:
    """Return `3 h` for a time as RFC 3339."""
    try:
        then = datetime.fromisoformat(str(created_at))
    except ValueError:
        return NOTHING
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    span, unit = next(((s, u) for s, u in _AGES if seconds >= s), (1, "s"))
    return f"{max(0, int(seconds // span))} {unit}"


def when(created_at: object) -> str:
    """Return `2026-11-23 22:33:35` for a time as RFC 3339."""
    return str(created_at)[:19].replace("T", " ")


def dims(row: Mapping[str, Any]) -> str:
    """Return `100→256→2`: input, hidden and output dimension."""
    sides = [row.get("input_dim"), row.get("output_dim")]
    if not any([*sides, row.get("hidden_dim")]):
        return NOTHING
    hidden = [str(row["hidden_dim"])] if row.get("hidden_dim") else []
    before, after = (str(side) if side else "?" for side in sides)
    return "→".join([before, *hidden, after])


def headline(metrics: Mapping[str, Any]) -> str:
    """Return `return=7.25`: the metric that people ask for first."""
    name = next((name for name in _HEADLINES if name in metrics), next(iter(metrics), None))
    return NOTHING if name is None else f"{name}={value(metrics[name])}"


def value(found: Any) -> str:
    """Return any plain value as a cell."""
    if found is None or found == "" or found == [] or found == {}:
        return NOTHING
    if isinstance(found, float):
        return f"{found:.4g}" if math.isfinite(found) else str(found)
    if isinstance(found, list):
        return ",".join(map(value, found))
    if isinstance(found, Mapping):
        return ",".join(f"{key}={value(each)}" for key, each in found.items())
    # A note of several lines must not break a table.
    return " ".join(str(found).split())
