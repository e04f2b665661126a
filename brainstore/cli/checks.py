"""What `doctor` looks at. Nothing here raises: what fails becomes a check that says so."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from brainstore import __version__, settings
from brainstore.cli import render
from brainstore.cli.app import code_of, lines_of
from brainstore.cli.codes import OTHER
from brainstore.errors import BrainstoreError, NoZoo

if TYPE_CHECKING:
    from brainstore.cli.app import Call

OK, NOTE, BAD = "ok", "note", "problem"
_OLDEST_PYTHON = (3, 11)
_USER_EXTRAS = ("s3", "flax")
_REQUIREMENT = re.compile(
    r"(?P<package>[\w.-]+)\s*(?:>=(?P<oldest>[\d.]+))?.*?(?:extra == \"(?P<extra>\w+)\")?"
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `code` is what doctor exits with because of it."""

    state: str
    what: str
    text: str
    fix: str = ""
    code: int = 0


def checks(call: Call) -> list[Check]:
    """Return what was found, of this machine first."""
    steps: dict[str, Callable[[], Iterator[Check]]] = {
        "python": _python,
        "packages": _packages,
        "offline": _offline,
        "cache": _cache,
        "zoo": lambda: _zoo(call),
    }
    return [check for what, step in steps.items() for check in _safely(what, step)]


def _safely(what: str, step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from step()
    except (BrainstoreError, OSError, ModuleNotFoundError) as error:
        line, *notes = lines_of(error)
        text = line.removeprefix("error: ")
        yield Check(BAD, what, text, " ".join(notes), code_of(error))


def _python() -> Iterator[Check]:
    text = f"{platform.python_version()} at {sys.executable}, brainstore {__version__}"
    if sys.version_info < _OLDEST_PYTHON:
        yield Check(BAD, "python", text, "install Python 3.11 or newer", OTHER)
    else:
        yield Check(OK, "python", text)


def _packages() -> Iterator[Check]:
    for requirement in metadata.requires("brainstore") or []:
        match = _REQUIREMENT.fullmatch(requirement)
        if match and (match["extra"] is None or match["extra"] in _USER_EXTRAS):
            yield _package(match["package"], match["oldest"] or "0", match["extra"])


def _package(package: str, oldest: str, extra: str | None) -> Check:
    wanted = f"brainstore[{extra}]" if extra else package
    fix = f"pip install -U '{wanted}'"
    problem, code = (NOTE, 0) if extra else (BAD, OTHER)
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        text = f"not installed; needed for {extra}" if extra else "not installed"
        return Check(problem, package, text, fix, code)
    if _numbers(found) < _numbers(oldest):
        return Check(problem, package, f"{found} is older than {oldest}", fix, code)
    return Check(OK, package, found)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _offline() -> Iterator[Check]:
    if settings.is_offline():
        yield Check(
            NOTE,
            "offline",
            "BRAINSTORE_OFFLINE is set: remote zoos are served from the cache alone",
            "unset BRAINSTORE_OFFLINE",
        )
    else:
        yield Check(OK, "offline", "no")


def _cache() -> Iterator[Check]:
    from brainstore.cache import Cache

    cache = Cache()
    blobs = cache.ls()
    held = render.size(sum(blob.size_bytes for blob in blobs))
    text = (
        f"{cache.folder}, {render.counted(len(blobs), 'blob')}, {held} of at most "
        f"{render.size(cache.max_bytes)}"
    )
    existing = next(p for p in (cache.folder, *cache.folder.absolute().parents) if p.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        yield Check(OK, "cache", text)
    else:
        fix = "name a folder that can be written: export BRAINSTORE_CACHE=…"
        yield Check(BAD, "cache", f"{existing} cannot be written", fix, OTHER)


def _zoo(call: Call) -> Iterator[Check]:
    from brainstore import marker

    zoo = call.open().zoo
    yield Check(OK, "zoo", f"{zoo.url}, {'remote' if zoo.store.is_remote else 'on this machine'}")
    started = time.perf_counter()
    try:
        found = marker.require(zoo.store)
    except NoZoo:
        fix = f"brainstore --zoo {call.zoo_url} init"
        yield Check(NOTE, "format", "reachable, and there is no zoo there yet", fix)
        return
    spent_ms = 1000 * (time.perf_counter() - started)
    yield Check(OK, "reachable", f"in {spent_ms:.0f} ms")
    since = render.when(found.created_at)
    yield Check(OK, "format", f"{found.format}, zoo {found.zoo_id} since {since} UTC")
    yield Check(OK, "store", ", ".join(f"{key} {value}" for key, value in found.store.items()))
    versions = zoo.index(rows=False).versions()
    models = render.counted(len({name for name, _ in versions}), "model")
    yield Check(OK, "index", f"{models}, {render.counted(len(versions), 'version')}")
