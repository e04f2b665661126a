"""Verbs that look: ls, show, log, diff."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from brainstore.cli import render
from brainstore.cli.app import Call, pairs, plain_value, verb

if TYPE_CHECKING:
    from brainstore.manager import BrainManager
    from brainstore.table import Row

DEFAULT_COLUMNS = "name,version,aliases,type,dims,steps,metric,age,new"
_FIELDS = {"type": "brain_type", "steps": "training_steps", "new": "new_bytes"}
_ON_RIGHT = ("VERSION", "STEPS", "AGE", "NEW", "SIZE_BYTES", "NEW_BYTES", "TRAINING_STEPS")
_CELLS: dict[str, Callable[[Row], str]] = {
    "type": lambda row: render.value(row.get("brain_type")),
    "dims": render.dims,
    "steps": lambda row: render.count(row.get("training_steps", 0)),
    "metric": lambda row: render.headline(row.get("metrics", {})),
    "age": lambda row: render.age(row.get("created_at")),
    "new": lambda row: render.size(row.get("new_bytes", 0)),
}


@verb("ls")
@click.argument("name", required=False)
@click.option(
    "--sort", metavar="FIELD", help="Order by a field; -FIELD puts the highest first. NaN is last."
)
@click.option(
    "--where", metavar="FIELD=VALUE", multiple=True, callback=pairs,
    help="Only versions with this value; may be repeated, and all must hold.",
)  # fmt: skip
@click.option(
    "--columns", metavar="A,B,C", default=DEFAULT_COLUMNS, show_default=True,
    help="What to show: these, or any field of --json, such as metrics.loss.",
)  # fmt: skip
def ls(
    call: Call, name: str | None, sort: str | None, where: list[tuple[str, str]], columns: str
) -> None:
    """List the versions of all models, or of NAME."""
    zoo = call.open()
    everything = zoo.table(name)
    if not everything:
        _require_something(zoo, name)
    shown = [column.strip() for column in columns.split(",")]
    if columns == DEFAULT_COLUMNS and any(row["station"] for row in everything):
        shown.append("station")
    _require_fields(everything, [*shown, *(path for path, _ in where), *([sort] if sort else [])])
    rows = _sorted([row for row in everything if _fits(row, where)], sort)
    if call.as_json:
        render.print_json(rows)
    elif rows:
        cells = [[_cell(row, column) for column in shown] for row in rows]
        headers = [column.upper() for column in shown]
        render.print_table(headers, cells, right=_ON_RIGHT)
    else:
        click.echo("no version fits" if everything else f"{zoo.zoo.url} is empty")


def _require_something(zoo: BrainManager, name: str | None) -> None:
    """Raise the error that says why nothing was found, unless the zoo is just empty."""
    from brainstore import marker

    marker.require(zoo.zoo.store)
    if name:
        zoo.resolve(name)


def _require_fields(rows: Sequence[Row], paths: Sequence[str]) -> None:
    known = {*_CELLS, *(key for row in rows for key in row)}
    for path in paths:
        if rows and path.lstrip("-").partition(".")[0] not in known:
            raise click.UsageError(f"no field {path!r}; there are {', '.join(sorted(known))}")


def _fits(row: Row, where: Sequence[tuple[str, str]]) -> bool:
    from brainstore.table import field

    for path, text in where:
        found = field(row, _FIELDS.get(path, path))
        values = found if isinstance(found, list) else [found]
        if text not in values and plain_value(text) not in values:
            return False
    return True


def _sorted(rows: list[Row], sort: str | None) -> list[Row]:
    from brainstore.table import field

    if not sort:
        return rows
    path = sort.removeprefix("-")
    path = _FIELDS.get(path, path)
    rated: list[tuple[tuple[int, Any, str], Row]] = []
    others: list[Row] = []
    for row in rows:
        found = field(row, path)
        if found is None or (isinstance(found, float) and math.isnan(found)):
            others.append(row)
        else:
            # Numbers before texts, so that a field of both can be sorted.
            is_number = isinstance(found, int | float)
            rated.append(((0, found, "") if is_number else (1, 0, str(found)), row))
    rated.sort(key=lambda pair: pair[0], reverse=sort.startswith("-"))
    return [row for _, row in rated] + others


def _cell(row: Row, column: str) -> str:
    from brainstore.table import field

    return _CELLS[column](row) if column in _CELLS else render.value(field(row, column))


@verb("show")
@click.argument("ref")
@click.option("--leaves", is_flag=True, help="List every leaf: its path, dtype and shape.")
def show(call: Call, ref: str, leaves: bool) -> None:
    """Show all about a version, and how to load it."""
    from brainstore.cli.portrait import portrait, print_portrait

    zoo, ref = call.open_for(ref)
    version, manifest, _ = zoo.zoo.find(ref)
    found = portrait(zoo, call, version, manifest, leaves=leaves)
    if call.as_json:
        render.print_json(found)
    else:
        print_portrait(found)


@verb("log")
@click.argument("name", required=False)
def log(call: Call, name: str | None) -> None:
    """Tell who did what, oldest first."""
    zoo = call.open()
    happenings = zoo.history(name)
    if not happenings:
        _require_something(zoo, name)
    if call.as_json:
        render.print_json(happenings)
    elif happenings:
        rows = [
            [render.when(x.at), x.by or "?", x.what, x.ref, x.grounds or render.NOTHING]
            for x in happenings
        ]
        render.print_table(["AT", "BY", "WHAT", "REF", "WHY"], rows)
    else:
        click.echo(f"nothing has happened in {zoo.zoo.url}")


@verb("diff")
@click.argument("old")
@click.argument("new")
def diff(call: Call, old: str, new: str) -> None:
    """Show what differs between two versions.

    Metadata first, then leaf by leaf.
    """
    found = call.open().diff(old, new)
    if call.as_json:
        render.print_json(found.to_dict())
    else:
        click.echo(render.visible(str(found)))
