"""Settings from the environment, read each time that they are used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from brainstore.errors import BadParams

DEFAULT_ZOO = "brains"
DEFAULT_CACHE_MAX = "32GiB"

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?|[kmgt]i)b?", re.IGNORECASE | re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw]?)", re.IGNORECASE | re.ASCII)


def zoo_url() -> str:
    """BRAINSTORE_ZOO: the zoo to use when none is named; `brains` in the current folder."""
    return os.environ.get("BRAINSTORE_ZOO") or DEFAULT_ZOO


def is_offline() -> bool:
    """BRAINSTORE_OFFLINE: serve remote zoos from the cache alone."""
    return os.environ.get("BRAINSTORE_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


def cache_folder() -> Path:
    """BRAINSTORE_CACHE: where blobs of remote zoos are kept on this machine."""
    if named := os.environ.get("BRAINSTORE_CACHE"):
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("brainstore", appauthor=False)


def cache_max_bytes() -> int:
    """BRAINSTORE_CACHE_MAX: how large the cache may grow, such as `20GB` or `512MiB`."""
    return parse_size(os.environ.get("BRAINSTORE_CACHE_MAX") or DEFAULT_CACHE_MAX)


def parse_size(text: str) -> int:
    """Return a number of bytes from `20GB`, `512MiB` or `1000`.

    Raises:
        BadParams: the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadParams(f"size {text!r}: expected a number of bytes such as 20GB, 512MiB or 1000")
    return int(float(match[1]) * (_UNITS | _BINARY)[match[2].lower()])


def parse_duration(text: str) -> float:
    """Return a number of seconds from `30d`, `12h`, `90m`, `2w` or `3600`.

    Raises:
        BadParams: the text is no duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise BadParams(f"duration {text!r}: expected a number and a unit, such as 30d, 12h, 90m")
    return float(match[1]) * _SECONDS[match[2].lower()]
