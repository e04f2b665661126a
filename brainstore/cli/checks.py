"""What `doctor` looks at. Nothing here raises: what fails becomes a check that says so."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from brainstore import __version__, marker, settings
from brainstore.cli import render
from brainstore.cli.codes import OTHER
from brainstore.cli.diagnosis import BAD, NOTE, OK, Check, safely
from brainstore.cli.trials import Trials
from brainstore.errors import NoZoo

if TYPE_CHECKING:
    from brainstore.cli.app import Call
    from brainstore.zoo import Zoo

_OLDEST_PYTHON = (3, 11)
_USER_EXTRAS = ("s3", "flax")
_REQUIREMENT = re.compile(
    r"(?P<package>[\w.-]+)\s*(?:>=(?P<oldest>[\d.]+))?.*?(?:extra == \"(?P<extra>\w+)\")?"
)


def checks(call: Call, *, quick: bool = False, probe: bool = False) -> list[Check]:
    """Return what was found, of this machine first.

    Args:
        quick: do not measure speed.
        probe: try whether the store decides conditional writes, also where that was seen.
    """
    steps: dict[str, Callable[[], Iterator[Check]]] = {
        "python": _python,
        "packages": _packages,
        "offline": _offline,
        "cache": _cache,
        "zoo": lambda: _zoo(call, quick, probe),
    }
    return [check for what, step in steps.items() for check in safely(what, step)]


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


def _zoo(call: Call, quick: bool, probe: bool) -> Iterator[Check]:
    zoo = call.open().zoo
    yield Check(OK, "zoo", f"{zoo.url}, {'remote' if zoo.store.is_remote else 'on this machine'}")
    started = time.perf_counter()
    found = None
    try:
        found = marker.require(zoo.store)
    except NoZoo:
        fix = f"brainstore --zoo {call.zoo_url} init"
        yield Check(NOTE, "format", "reachable, and there is no zoo there yet", fix)
    if found is not None:
        spent_ms = 1000 * (time.perf_counter() - started)
        yield Check(OK, "reachable", f"in {spent_ms:.0f} ms")
        since = render.when(found.created_at)
        yield Check(OK, "format", f"{found.format}, zoo {found.zoo_id} since {since} UTC")
    yield from Trials(zoo.store, found, quick=quick, probe=probe).run()
    if found is not None:
        yield from safely("index", lambda: _index(zoo))


def _index(zoo: Zoo) -> Iterator[Check]:
    versions = zoo.index(rows=False).versions()
    models = render.counted(len({name for name, _ in versions}), "model")
    yield Check(OK, "index", f"{models}, {render.counted(len(versions), 'version')}")
