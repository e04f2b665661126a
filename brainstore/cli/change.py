"""Verbs that change: init, save, alias, unalias, rollback, rm, undelete."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from brainstore.address import LATEST
from brainstore.cli import render
from brainstore.cli.app import Call, pairs, plain_value, read_table, verb
from brainstore.cli.codes import OTHER

if TYPE_CHECKING:
    from brainstore.manager import BrainManager
    from brainstore.versions import Version


@verb("init")
def init(call: Call) -> None:
    """Make the place a zoo, if writers can share it.

    The store is tried first: one that ignores conditional writes is refused.
    """
    zoo = call.open()
    marker = zoo.init()
    if call.as_json:
        render.print_json({"zoo": zoo.zoo.url, **_fields(marker)})
    else:
        click.echo(f"{zoo.zoo.url} is a zoo since {render.when(marker.created_at)} UTC")


def _fields(marker: Any) -> dict[str, Any]:
    return {"zoo_id": marker.zoo_id, "created_at": marker.created_at, "store": marker.store}


@verb("save")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--meta", "meta_file", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
    help="A .json or .toml file with fields of BrainMeta; the options below win over it.",
)  # fmt: skip
@click.option("--brain-type", metavar="TEXT", help="Such as ppo, dial, world_model.")
@click.option("--input-dim", type=int, metavar="N", help="How many numbers go in.")
@click.option("--hidden-dim", type=int, metavar="N", help="How wide the hidden layers are.")
@click.option("--output-dim", type=int, metavar="N", help="How many numbers come out.")
@click.option("--training-steps", type=int, metavar="N", help="How long it was trained.")
@click.option("--notes", metavar="TEXT", help="Anything worth knowing.")
@click.option(
    "--metric", "metrics", metavar="NAME=NUMBER", multiple=True, callback=pairs,
    help="A result, such as return=7.2; may be repeated.",
)  # fmt: skip
@click.option(
    "--config", metavar="KEY=VALUE", multiple=True, callback=pairs,
    help="A setting of the training; the value is read as JSON if it is any. May be repeated.",
)  # fmt: skip
@click.option("--tag", "tags", metavar="TEXT", multiple=True, help="A tag; may be repeated.")
@click.option(
    "--parent", "parents", metavar="REF[=RELATION]", multiple=True,
    help="What this was made from, and how, such as ppo_swarm:1=fine_tuned; may be repeated.",
)  # fmt: skip
@click.option(
    "--expert", "experts", metavar="PATH=REF", multiple=True, callback=pairs,
    help="A part of the params that is a frozen expert; may be repeated.",
)  # fmt: skip
@click.option("--station", metavar="TEXT", help="Which station of the factory made it.")
@click.option(
    "--report", "report_file", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
    help="A .json or .toml file with a quality report, committed with it.",
)  # fmt: skip
@click.option(
    "--alias", "aliases", metavar="ALIAS", multiple=True,
    help="A pointer, such as prod, to move to the new version; may be repeated.",
)  # fmt: skip
@click.option(
    "--file", "files", metavar="NAME=PATH", multiple=True, callback=pairs,
    help="A small file to keep with it; may be repeated.",
)  # fmt: skip
def save(
    call: Call,
    name: str,
    file: str,
    meta_file: str | None,
    metrics: list[tuple[str, str]],
    config: list[tuple[str, str]],
    tags: tuple[str, ...],
    parents: tuple[str, ...],
    experts: list[tuple[str, str]],
    station: str | None,
    report_file: str | None,
    aliases: tuple[str, ...],
    files: list[tuple[str, str]],
    **fields: Any,
) -> None:
    """Save a tensor file as the next version of NAME.

    FILE is a .safetensors or a .npz.
    """
    from brainstore.meta import BrainMeta

    zoo = call.open()
    meta = read_table(meta_file, "--meta") if meta_file else {}
    meta |= {key: value for key, value in fields.items() if value is not None}
    meta = vars(BrainMeta.of(meta))
    meta["metrics"] |= {key: _number(key, x) for key, x in metrics}
    meta["config"] |= {key: plain_value(x) for key, x in config}
    meta["tags"] += tags
    full_name = zoo.import_file(
        file,
        name,
        meta,
        parents=dict(map(_parent, parents)),
        frozen_experts=dict(experts),
        station=station,
        report=read_table(report_file, "--report") if report_file else None,
        aliases=aliases,
        files=dict(files),
    )
    if call.as_json:
        version = int(full_name.rpartition("_v")[2])
        render.print_json(
            {"full_name": full_name, "name": name, "version": version, "zoo": zoo.zoo.url}
        )
    else:
        click.echo(full_name)


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"--metric {key}={text}: expected a number") from None


def _parent(text: str) -> tuple[str, str | None]:
    ref, separator, relation = text.rpartition("=")
    return (ref, relation) if separator else (text, None)


@verb("alias")
@click.argument("ref")
@click.argument("alias", metavar="ALIAS")
@click.option(
    "--expect", "expected", type=int, metavar="N",
    help="Only if the alias names version N by now; 0: only if it names none.",
)  # fmt: skip
@click.option("--why", default="", metavar="TEXT", help="A reason, for the log.")
@click.option("--force", is_flag=True, help="Even if the zoo's policy guards the alias.")
def alias(call: Call, ref: str, alias: str, expected: int | None, why: str, force: bool) -> None:
    """Make ALIAS, such as prod, name the version REF."""
    zoo, ref = call.open_for(ref)
    moved(call, zoo.alias(ref, alias, expected, why=why, force=force), alias)


@verb("rollback")
@click.argument("name")
@click.argument("alias", metavar="ALIAS")
@click.option("--force", is_flag=True, help="Even if the policy guards it and never let it there.")
def rollback(call: Call, name: str, alias: str, force: bool) -> None:
    """Move ALIAS of NAME back to where it was."""
    moved(call, call.open().rollback(name, alias, force=force), alias)


def moved(call: Call, version: Version, alias: str) -> None:
    """Print where an alias is now."""
    if call.as_json:
        render.print_json({"alias": alias, **_version(version)})
    else:
        click.echo(f"{version.name}:{alias} is {version}")


def _version(version: Version) -> dict[str, Any]:
    return {
        "full_name": version.full_name,
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
    }


@verb("unalias")
@click.argument("name")
@click.argument("alias", metavar="ALIAS")
def unalias(call: Call, name: str, alias: str) -> None:
    """Remove ALIAS of NAME. The log keeps where it pointed."""
    call.open().unalias(name, alias)
    if call.as_json:
        render.print_json({"alias": alias, "name": name, "version": None})
    else:
        click.echo(f"{name}:{alias} is gone")


@verb("rm")
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Even if an alias or a frozen expert needs it.")
@click.option("--why", default="", metavar="TEXT", help="A reason, for the log.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Needed where nobody can answer.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be deleted.")
def rm(call: Call, refs: tuple[str, ...], force: bool, why: str, yes: bool, dry_run: bool) -> None:
    """Delete versions, until undelete.

    They can come back until their blobs are collected. All are looked up first: if one
    does not exist, none is deleted.
    """
    chosen = {(zoo.zoo.url, version): zoo for zoo, version in (_found(call, ref) for ref in refs)}
    if not dry_run and not yes:
        _confirm([version for _, version in chosen])
    done = []
    try:
        for (_, version), zoo in chosen.items():
            done.append(
                _would_delete(zoo, version) if dry_run else _delete(zoo, version, why, force)
            )
            if not call.as_json:
                click.echo(_told(done[-1]))
    finally:
        if call.as_json:
            render.print_json(done)


def _delete(zoo: BrainManager, version: Version, why: str, force: bool) -> dict[str, Any]:
    # By its digest: what was confirmed is deleted, or nothing.
    zoo.delete(f"{version}@{version.digest}", why=why, force=force)
    return {**_version(version), "deleted": True, "needed_by": []}


def _would_delete(zoo: BrainManager, version: Version) -> dict[str, Any]:
    named = [
        f"{version.name}:{alias}"
        for alias, number in zoo.aliases(version.name).items()
        if number == version.version and alias != LATEST
    ]
    return {**_version(version), "deleted": False, "needed_by": named}


def _told(done: dict[str, Any]) -> str:
    ref = f"{done['name']}:{done['version']}"
    if done["deleted"]:
        return f"deleted {ref}"
    needed = ", ".join(done["needed_by"])
    return f"would delete {ref}" + (f", which needs --force: {needed} names it" if needed else "")


def _found(call: Call, ref: str) -> tuple[BrainManager, Version]:
    zoo, ref = call.open_for(ref)
    return zoo, zoo.zoo.registry.resolve(zoo.zoo.own_reference(ref))


def _confirm(versions: list[Version]) -> None:
    if not _is_asked():
        raise click.UsageError("nobody can be asked here; add --yes, or look with --dry-run")
    if not click.confirm(f"Delete {', '.join(map(str, versions))}?", err=True):
        click.echo("nothing was deleted", err=True)
        click.get_current_context().exit(OTHER)


def _is_asked() -> bool:
    return sys.stdin.isatty()


@verb("undelete")
@click.argument("ref")
def undelete(call: Call, ref: str) -> None:
    """Bring a deleted version back, byte for byte.

    REF has its number, such as ppo_swarm:3.
    """
    zoo, ref = call.open_for(ref)
    version = zoo.undelete(ref)
    if call.as_json:
        render.print_json(_version(version))
    else:
        click.echo(f"{version} is back")
