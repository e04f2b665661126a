"""Verbs for what nothing names any more: gc, why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from brainstore.cli import render
from brainstore.cli.app import Call, verb

if TYPE_CHECKING:
    from brainstore.garbage import Collection, Why

SHOWN = 20
SHOWN_USES = 3


@verb("gc")
@click.option("-y", "--yes", is_flag=True, help="Do it. Without, only say what would be done.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done: the default.")
@click.option(
    "--keep-last", type=click.IntRange(min=1), metavar="N",
    help="Delete all but the last N versions of each model, unless an alias or expert needs them.",
)  # fmt: skip
@click.option(
    "--keep-alias", multiple=True, metavar="ALIAS",
    help="With --keep-last, keep also what ALIAS named before, for a rollback; may be repeated.",
)  # fmt: skip
@click.option(
    "--older-than", metavar="AGE",
    help="Grace period for blobs and deleted versions, such as 30d or 12h. [default: 1d] "
    "With --keep-last, versions saved within it stay.",
)  # fmt: skip
@click.option(
    "--take-over", is_flag=True,
    help="Go on with a collection whose process has been dead for an hour.",
)  # fmt: skip
def gc(
    call: Call,
    yes: bool,
    dry_run: bool,
    keep_last: int | None,
    keep_alias: tuple[str, ...],
    older_than: str | None,
    take_over: bool,
) -> None:
    """Remove blobs that nothing names. Shows the plan; --yes carries it out.

    Safe beside saves, loads and syncs. What was deleted can come back for the grace period.
    """
    from brainstore.settings import parse_duration

    if yes and dry_run:
        raise click.UsageError("--yes and --dry-run exclude each other")
    collection = call.open().gc(
        dry_run=not yes,
        keep_last=keep_last,
        keep_alias=keep_alias,
        older_than=None if older_than is None else parse_duration(older_than),
        take_over=take_over,
    )
    if call.as_json:
        render.print_json(_plain(collection))
    else:
        for line in _lines(collection, verbose=call.verbosity > 0):
            click.echo(render.visible(line))


def _plain(found: Collection) -> dict[str, object]:
    return {
        "dry_run": found.dry_run,
        "deleted": [_version(version) for version in found.deleted],
        "kept": [{**_version(version), "why": why} for version, why in found.kept],
        "blobs": found.blobs,
        "leftovers": [{"key": key, "size_bytes": size} for key, size in found.leftovers],
        "intents": found.intents,
        "size_bytes": found.size_bytes,
        "live_blobs": found.live_blobs,
        "live_bytes": found.live_bytes,
    }


def _version(version: object) -> dict[str, object]:
    return {name: getattr(version, name) for name in ("full_name", "name", "version", "digest")}


def _lines(found: Collection, *, verbose: bool) -> list[str]:
    would = "would be " if found.dry_run else ""
    lines = [f"{would}deleted: {version}" for version in found.deleted]
    lines += [f"kept: {version}, for {why}" for version, why in found.kept]
    shown = found.blobs if verbose else found.blobs[:SHOWN]
    lines += [f"{would}removed: {each.digest} {render.size(each.size_bytes)}" for each in shown]
    if len(shown) < len(found.blobs):
        lines.append(f"… and {len(found.blobs) - len(shown):,} more; -v shows all")
    lines += [f"{would}removed: {key}, half-written" for key, _ in found.leftovers]
    lines += [f"{would}given up: {key}, of work that died" for key in found.intents]
    lines.append(
        f"{render.counted(len(found.blobs), 'blob')} of garbage, {render.size(found.size_bytes)}"
        f"{' with leftovers' if found.leftovers else ''}, {would}removed; "
        f"{render.counted(found.live_blobs, 'blob')} stay, {render.size(found.live_bytes)}"
    )
    if found.dry_run and (found.blobs or found.deleted or found.leftovers or found.intents):
        lines.append("nothing was changed; to do it, add --yes")
    return lines


@verb("why")
@click.argument("digest")
def why(call: Call, digest: str) -> None:
    """Say what keeps the blob DIGEST.

    It may be the digest of a leaf, too. The first 8 digits will do.
    """
    found = call.open().why(digest)
    if call.as_json:
        render.print_json(found)
        return
    for line in _told(found):
        click.echo(render.visible(line))


def _told(found: Why) -> list[str]:
    size = "missing" if found.size_bytes is None else render.size(found.size_bytes)
    uses: dict[str, list[str]] = {}
    for reason in found.reasons:
        uses.setdefault(f"{reason.by} {reason.where}", []).append(reason.what)
    lines = [f"  {user}: {_some(whats)}" for user, whats in uses.items()]
    return [f"{found.digest}  {size}", *lines, found.verdict]


def _some(whats: list[str]) -> str:
    more = len(whats) - SHOWN_USES
    return ", ".join(whats[:SHOWN_USES]) + (f" and {more:,} more" if more > 0 else "")
