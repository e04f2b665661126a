"""Verbs that carry versions elsewhere: export, import, push, pull, sync."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brainstore.cli import render
from brainstore.cli.app import Call, verb
from brainstore.cli.codes import CONFLICT, CORRUPT

if TYPE_CHECKING:
    from brainstore.manager import BrainManager
    from brainstore.sync import Outcome, Step, SyncReport


@verb("export")
@click.argument("places", metavar="[REF] DIR", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Every version of every model.")
def export(call: Call, places: tuple[str, ...], everything: bool) -> None:
    """Write versions as plain folders into DIR.

    Safetensors and JSON, as anything can read.
    """
    if len(places) != (1 if everything else 2):
        raise click.UsageError("expected REF and DIR, or --all and DIR")
    if everything:
        folders = call.open().export_all(places[0])
    else:
        zoo, ref = call.open_for(places[0])
        folders = [zoo.export(ref, places[1])]
    if call.as_json:
        render.print_json(folders)
    else:
        for folder in folders:
            click.echo(folder)


@verb("import")
@click.argument("path", type=click.Path(exists=True))
@click.argument("name", required=False)
def import_(call: Call, path: str, name: str | None) -> None:
    """Save a folder that export wrote, or a tensor file.

    A folder brings its own names; a .safetensors or .npz needs a NAME.
    """
    is_folder = Path(path).is_dir()
    if is_folder == bool(name):
        raise click.UsageError(
            "a folder brings its own names; drop NAME" if is_folder else "a file needs a NAME"
        )
    zoo = call.open()
    full_names = [zoo.import_file(path, name)] if name else zoo.import_zoo(path)
    if call.as_json:
        render.print_json(full_names)
    else:
        for full_name in full_names:
            click.echo(full_name)


_ALL = ("copied", "present", "moved", "deleted", "skipped", "conflict", "failed")
_TO_DO = {"copied": "to copy", "moved": "to move", "deleted": "to delete"}
_ALIASES = click.option("--aliases", is_flag=True, help="Move the aliases of the target as well.")
_DELETE = click.option("--delete", is_flag=True, help="Delete at the target what is deleted here.")
_DRY_RUN = click.option("-n", "--dry-run", is_flag=True, help="Only say what would be copied.")


@verb("push")
@click.argument("dst")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@_ALIASES
@_DELETE
@_DRY_RUN
def push(call: Call, dst: str, refs: tuple[str, ...], **options: bool) -> None:
    """Copy versions, or all, to the zoo DST."""
    _sync(call, call.open(), call.open(dst), refs, options)


@verb("pull")
@click.argument("src")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@click.option("--to", metavar="ZOO", help="The zoo that receives them, as --zoo does.")
@_ALIASES
@_DELETE
@_DRY_RUN
def pull(call: Call, src: str, refs: tuple[str, ...], to: str | None, **options: bool) -> None:
    """Copy versions, or all, from the zoo SRC."""
    _sync(call, call.open(src), call.open(to), refs, options)


@verb("sync")
@click.argument("src")
@click.argument("dst")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@_ALIASES
@_DELETE
@_DRY_RUN
def sync(call: Call, src: str, dst: str, refs: tuple[str, ...], **options: bool) -> None:
    """Copy versions, or all, from SRC to DST."""
    _sync(call, call.open(src), call.open(dst), refs, options)


def _sync(
    call: Call,
    source: BrainManager,
    target: BrainManager,
    refs: Sequence[str],
    options: dict[str, bool],
) -> None:
    with _progress_bar() as progress:
        report = source.push(target, refs, progress=progress, **options)
    if call.as_json:
        render.print_json(_plain(report, source.zoo.url, target.zoo.url))
    else:
        _print_report(report)
    if report.failed or report.conflicts:
        click.get_current_context().exit(CORRUPT if report.failed else CONFLICT)


@contextmanager
def _progress_bar() -> Iterator[Callable[[Step], None] | None]:
    """Give what draws each step on a terminal, or None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
    console = Console(stderr=True)
    with Progress(*columns, TransferSpeedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("looking", total=None)

        def draw(step: Step) -> None:
            text = f"{step.done_versions} of {step.total_versions} versions"
            bar.update(task, description=text, completed=step.done_bytes, total=step.total_bytes)

        yield draw


def _plain(report: SyncReport, source: str, target: str) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "dry_run": report.dry_run,
        "planned_bytes": report.planned_bytes,
        "sent_bytes": report.sent_bytes,
        "quality_reports": report.quality_reports,
        "outcomes": report.outcomes,
    }


def _print_report(report: SyncReport) -> None:
    """Print a line for all that changed, then a summary; trouble goes to stderr."""
    for each in report.outcomes:
        if each.status != "present":
            word = _TO_DO.get(each.status, each.status) if report.dry_run else each.status
            is_trouble = each.status in ("conflict", "failed")
            click.echo(render.visible(f"{word} {_told(each)}"), err=is_trouble)
    counts = Counter[str](each.status for each in report.outcomes)
    words = [(status, _TO_DO.get(status, status) if report.dry_run else status) for status in _ALL]
    parts = [f"{counts[status]:,} {word}" for status, word in words if counts[status]]
    if report.quality_reports:
        parts.append(render.counted(report.quality_reports, "report"))
    if report.dry_run:
        told = f"{render.size(report.planned_bytes)} to send; nothing was done"
    else:
        told = f"{render.size(report.sent_bytes)} sent"
    click.echo(f"{', '.join(parts) or 'nothing to copy'}; {told}")


def _told(outcome: Outcome) -> str:
    ref = f"{outcome.name}:{outcome.version}"
    if outcome.status == "moved":
        return f"{outcome.detail} to {ref if outcome.version else 'nothing'}"
    return ref + (f", {outcome.detail}" if outcome.detail else "")
