"""The verb migrate: a checkpoint of another framework as the next version of a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
import msgspec

from brainstore.cli import render
from brainstore.cli.app import Call, verb
from brainstore.errors import NotFound

if TYPE_CHECKING:
    from brainstore.manager import BrainManager
    from brainstore.migrate import Migration, Report

_SHOWN_ASIDE = 8


@verb("migrate")
@click.argument("old", metavar="FILE|REF")
@click.option("--name", required=True, metavar="NAME", help="The model that it becomes.")
@click.option(
    "--map", "mapping", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
    help="A .toml file that says which layer becomes which; see docs/migration.md.",
)  # fmt: skip
@click.option(
    "--target", metavar="REF",
    help="A version whose shapes the result must have, and which tells the layers without a map.",
)  # fmt: skip
@click.option("--as-is", is_flag=True, help="Keep all tensors under their own names, unconverted.")
@click.option("--brain-type", metavar="TEXT", help="Such as ppo, dial_encoder, world_model.")
@click.option("--input-dim", type=int, metavar="N", help="How many numbers go in.")
@click.option("--hidden-dim", type=int, metavar="N", help="How wide the hidden layers are.")
@click.option("--output-dim", type=int, metavar="N", help="How many numbers come out.")
@click.option("--training-steps", type=int, metavar="N", help="How long it was trained.")
@click.option("--notes", metavar="TEXT", help="Anything worth knowing.")
@click.option("--tag", "tags", metavar="TEXT", multiple=True, help="A tag; may be repeated.")
@click.option(
    "--alias", "aliases", metavar="ALIAS", multiple=True,
    help="A pointer, such as prod, to move to the new version; may be repeated.",
)  # fmt: skip
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be saved.")
def migrate(
    call: Call,
    old: str,
    name: str,
    mapping: str | None,
    target: str | None,
    as_is: bool,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    dry_run: bool,
    **fields: Any,
) -> None:
    """Save a checkpoint of PyTorch, converted to Flax.

    It becomes the next version of NAME. FILE is what torch.save wrote, a .safetensors, or
    Flax's .msgpack; a REF is a version that was kept as it is. Nothing in it is run, and
    nothing is saved unless everything fits.
    """
    zoo = call.open()
    found = _migration(call, zoo, old, mapping, target, as_is)
    meta = {key: value for key, value in fields.items() if value is not None}
    full_name = None
    if not dry_run:
        full_name = found.save(zoo, name, {**meta, "tags": list(tags)}, aliases=aliases)
    if call.as_json:
        render.print_json(_plain(found, name, full_name, zoo.zoo.url))
    else:
        _print_report(found.report)
        click.echo(full_name or f"would be saved as the next version of {name}; nothing was done")


def _migration(
    call: Call, zoo: BrainManager, old: str, mapping: str | None, target: str | None, as_is: bool
) -> Migration:
    from brainstore.migrate import migrate, migrate_version, shapes_of

    shapes = None
    if target is not None:
        owner, ref = call.open_for(target)
        shapes = shapes_of(owner, ref)
    if os.path.exists(old):
        return migrate(old, mapping=mapping, target=shapes, as_is=as_is)
    if as_is:
        raise click.UsageError(f"{old}: there is no such file to keep as it is")
    owner, ref = call.open_for(old)
    try:
        return migrate_version(owner, ref, mapping=mapping, target=shapes)
    except NotFound as error:
        problem = f"{old}: there is no such file, nor such a version: {error}"
        raise type(error)(problem) from error


def _plain(found: Migration, name: str, full_name: str | None, zoo: str) -> dict[str, Any]:
    return {
        "full_name": full_name,
        "name": name,
        "version": int(full_name.rpartition("_v")[2]) if full_name else None,
        "zoo": zoo,
        "dry_run": full_name is None,
        "dims": found.dims,
        "report": msgspec.to_builtins(found.report),
    }


def _print_report(report: Report) -> None:
    """Print a line for each layer, then what was left out, then counts."""
    rows = [
        [" ".join(layer.torch), layer.rule, layer.flax or "-", _leaves(layer.leaves)]
        for layer in report.layers
        if layer.torch
    ]
    if rows:
        render.print_table(["TORCH", "RULE", "FLAX", "LEAVES"], rows)
    for what, names in (("dropped", report.dropped), ("left out", report.aside)):
        if names:
            more = f" and {len(names) - _SHOWN_ASIDE} more" if len(names) > _SHOWN_ASIDE else ""
            click.echo(f"{what}: {', '.join(names[:_SHOWN_ASIDE])}{more}")
    click.echo(
        f"{render.counted(report.tensors_read, 'tensor')} → "
        f"{render.counted(report.leaves_made, 'leaf')}, {report.parameters:,} parameters, "
        f"by {_HOW.get(report.how, report.how)}"
    )


_HOW = {
    "map": "the map",
    "target": "the target's shapes",
    "map and target": "the map and the target's shapes",
    "names": "names and shapes alone",
    "as is": "their own names, as is",
    "flax": "Flax's own names",
}


def _leaves(leaves: list[Any]) -> str:
    return " ".join(
        f"{leaf.path.rpartition('/')[2]}[{','.join(map(str, leaf.shape))}]" for leaf in leaves
    )
