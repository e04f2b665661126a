"""Verbs that care for a zoo and this machine: cache, doctor, fsck, verify; completion, demo."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from brainstore.cli import render
from brainstore.cli.app import Call, verb, verbs
from brainstore.cli.codes import CORRUPT
from brainstore.errors import Unsupported

if TYPE_CHECKING:
    from brainstore.cache import Cached
    from brainstore.fsck import Finding, Step
    from brainstore.manager import BrainManager
    from brainstore.verification import Verification


@verbs.group("cache")
def cache() -> None:
    """Look after the copies of remote blobs kept here.

    Losing them loses nothing: what is needed is fetched again.
    """


@verb("ls", cache)
def cache_ls(call: Call) -> None:
    """List what the cache holds, least recently used first."""
    from datetime import UTC, datetime

    from brainstore.cache import Cache

    held = Cache()
    blobs = held.ls()
    total = sum(blob.size_bytes for blob in blobs)
    used = [datetime.fromtimestamp(blob.used_at, UTC).isoformat() for blob in blobs]
    if call.as_json:
        listed = [
            {"digest": blob.digest, "size_bytes": blob.size_bytes, "used_at": at}
            for blob, at in zip(blobs, used, strict=True)
        ]
        render.print_json(
            {
                "folder": held.folder,
                "size_bytes": total,
                "max_bytes": held.max_bytes,
                "blobs": listed,
            }
        )
        return
    if blobs:
        rows = [
            [blob.digest, render.size(blob.size_bytes), render.age(at)]
            for blob, at in zip(blobs, used, strict=True)
        ]
        render.print_table(["DIGEST", "SIZE", "USED"], rows, right=["SIZE", "USED"])
    click.echo(
        f"{held.folder}: {render.counted(len(blobs), 'blob')}, {render.size(total)} of at most "
        f"{render.size(held.max_bytes)}"
    )


@verb("prune", cache)
@click.option(
    "--max", "max_size", metavar="SIZE",
    help="Keep this much, such as 20GB; 0 keeps nothing. [default: BRAINSTORE_CACHE_MAX]",
)  # fmt: skip
def cache_prune(call: Call, max_size: str | None) -> None:
    """Remove the least recently used blobs beyond a size."""
    from brainstore.cache import Cache
    from brainstore.settings import parse_size

    _removed(call, Cache().prune(None if max_size is None else parse_size(max_size)), "removed")


@verb("verify", cache)
def cache_verify(call: Call) -> None:
    """Hash every blob again, and remove the damaged ones."""
    from brainstore.cache import Cache

    _removed(call, Cache().verify(), "damaged and removed")


def _removed(call: Call, blobs: list[Cached], word: str) -> None:
    total = sum(blob.size_bytes for blob in blobs)
    if call.as_json:
        digests = [blob.digest for blob in blobs]
        render.print_json({"removed": digests, "size_bytes": total})
    else:
        click.echo(f"{word}: {render.counted(len(blobs), 'blob')}, {render.size(total)}")


@verb("doctor")
@click.option("--quick", is_flag=True, help="Do not measure how fast the store is.")
@click.option(
    "--probe", is_flag=True,
    help="Try again whether the store decides between several writers.",
)  # fmt: skip
def doctor(call: Call, quick: bool, probe: bool) -> None:
    """Check this machine and the zoo, with ways to mend it.

    Writes a few objects below probe/ in the zoo, and removes them again.
    """
    from brainstore.cli.checks import checks

    found = checks(call, quick=quick, probe=probe)
    if call.as_json:
        render.print_json(found)
    else:
        for check in found:
            click.echo(render.visible(f"{check.state:7}  {check.what}: {check.text}"))
            if check.fix:
                click.echo(render.visible(f"{'':7}  -> {check.fix}"))
    code = max((check.code for check in found), default=0)
    click.get_current_context().exit(code)


@verb("fsck")
@click.argument("name", required=False)
@click.option("--quick", is_flag=True, help="Do not read blobs: look at records and sizes only.")
@click.option("--repair", is_flag=True, help="Mend what can be mended without losing anything.")
@click.option(
    "--from", "source", metavar="URL",
    help="With --repair: fetch what is missing or damaged from this zoo.",
)  # fmt: skip
def fsck(call: Call, name: str | None, quick: bool, repair: bool, source: str | None) -> None:
    """Check every record and blob, or those of NAME.

    Exits with 5 if something is wrong, and was not repaired. What a crash may leave is told
    as harmless.
    """
    from brainstore.fsck import fsck as check

    if source is not None and not repair:
        raise click.UsageError("--from is for --repair; without it nothing is fetched")
    zoo, other = call.open(), call.open(source).zoo if source is not None else None
    with _progress_bar() as progress:
        findings = check(
            zoo.zoo, name=name, quick=quick, repair=repair, source=other, progress=progress
        )
    _require_zoo(zoo, findings)
    if call.as_json:
        render.print_json([asdict(each) | {"harmless": each.is_harmless} for each in findings])
    else:
        for finding in findings:
            told = f"{_state(finding)} {finding.kind} {finding.where}: {finding.text}"
            click.echo(render.visible(told))
        click.echo(_verdict(findings))
    if any(finding.is_damage for finding in findings):
        click.get_current_context().exit(CORRUPT)


@contextmanager
def _progress_bar() -> Iterator[Callable[[Step], None] | None]:
    """Give what draws each step on a terminal, or None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("listing", total=None)

        def draw(step: Step) -> None:
            done, total = step.done, step.total
            text = f"{done:,} of {total:,} {_STEPS[step.what]}"
            if step.total_bytes:
                done, total = step.done_bytes, step.total_bytes
                text += f", {render.size(done)} of {render.size(total)}"
            bar.update(task, description=text, completed=done, total=total)

        yield draw


_STEPS = {"records": "records read", "blobs": "blobs hashed", "fetched": "blobs fetched"}


def _require_zoo(zoo: BrainManager, findings: Sequence[Finding]) -> None:
    """Raise NoZoo where there is nothing at all: a wrong place is no damage."""
    from brainstore import marker

    if [each.kind for each in findings] == ["marker"] and not any(zoo.zoo.store.list("")):
        marker.require(zoo.zoo.store)


def _state(finding: Finding) -> str:
    if finding.repaired:
        return "repaired"
    return "harmless" if finding.is_harmless else "damaged "


def _verdict(findings: Sequence[Finding]) -> str:
    counts = Counter(_state(finding).strip() for finding in findings)
    texts = [f"{number} {state}" for state, number in sorted(counts.items())]
    return ", ".join(texts) or "no damage found"


@verb("verify")
@click.argument("ref")
@click.option(
    "--network", metavar="MODULE:CLASS",
    help="Replay with this class, imported from here, not with the stored program.",
)  # fmt: skip
def verify(call: Call, ref: str, network: str | None) -> None:
    """Check a version's golden behaviour and frozen experts.

    Says how far off each output is, and what became of each expert; exits with 5 if one
    does not hold.
    """
    zoo, ref = call.open_for(ref)
    network_class = None if network is None else _imported(network)
    found = zoo.verify(ref, network_class)
    if call.as_json:
        render.print_json(_plain(found))
    else:
        click.echo(str(found))
    if not found.holds:
        click.get_current_context().exit(CORRUPT)


def _imported(name: str) -> Any:
    """Return what `module:Class` names; the module may lie in the current folder."""
    import importlib

    module, separator, attribute = name.partition(":")
    if not module or not separator or not attribute:
        raise click.UsageError(f"--network {name}: expected MODULE:CLASS, such as networks:MyActor")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--network {name}: {error}") from error
    finally:
        sys.path.remove("")


def _plain(found: Verification) -> dict[str, Any]:
    return {
        "name": found.version.name,
        "version": found.version.version,
        "digest": found.version.digest,
        "holds": found.holds,
        "played_with": found.played_with,
        "checks": found.checks,
    }


@verb("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(call: Call, shell: str) -> None:
    """Print what makes SHELL complete verbs.

    For bash: eval "$(brainstore completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(verbs, {}, "brainstore", "_BRAINSTORE_COMPLETE").source()
    if call.as_json:
        render.print_json({"shell": shell, "script": source})
    else:
        click.echo(source)


@verb("demo")
def demo(call: Call) -> None:
    """Train, save, improve and roll back a small swarm."""
    try:
        from brainstore.demo.story import run
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"the demo needs {error.name}, which is not installed. "
            "Run: pip install 'brainstore[demo]'"
        ) from error
    run(call.zoo)
