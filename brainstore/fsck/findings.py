"""What a check can find, what each kind of finding means, and how far a check is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "marker", "newer", "gc", "intent", "permissions", "manifest", "blob-missing", "blob-size",
    "blob-damaged", "leaf", "pointer", "latest", "report", "policy", "index",
    "link", "orphan", "leftover", "intent-expired", "writable", "stray",
]  # fmt: skip

WRONG: dict[Kind, str] = {
    "marker": "the format marker is missing or cannot be read",
    "newer": "a record is of a format to come, and cannot be judged here",
    "gc": "the collector's state is missing or cannot be read, or a collection does not end",
    "intent": "an intent cannot be read; while it is here, nothing is collected",
    "permissions": "a file or folder may not be read, or a folder not be written, by us",
    "manifest": "the record of a version cannot be read, contradicts itself, or is another than "
    "index and pointers tell of",
    "blob-missing": "a blob that a live version needs is gone",
    "blob-size": "a blob has another size than the manifests that name it tell",
    "blob-damaged": "a blob has other bytes than its name says",
    "leaf": "a manifest tells another dtype or shape of a leaf than its blob has",
    "pointer": "an alias or `latest` cannot be read, or names what it must not",
    "latest": "`latest` is missing, or behind the versions that are there",
    "report": "a quality report cannot be read, or is about other content",
    "policy": "the policy cannot be read",
    "index": "snapshot and journal tell otherwise than the records",
    "link": "a symbolic link, which nothing follows, so what lies behind it is not there",
}
"""The kinds that are wrong: exit code 5, unless they were repaired."""

HARMLESS: dict[Kind, str] = {
    "orphan": "blobs that nothing names: of a save that died or is under way, or garbage",
    "leftover": "hidden files or uploads of writes that died or are under way",
    "intent-expired": "the intent of a save or sync that died long ago",
    "writable": "blobs in a folder that are not read-only",
    "stray": "a key that is nothing of brainstore's, or that a repair put aside",
}
"""The kinds that are not wrong: what a crash may leave, and what loses nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as in a zoo that nobody has touched; see `WRONG` and `HARMLESS`.

    `where` is a key of the zoo, or a version or alias; for a finding about many objects the
    first of them, or the folder that they lie in. `count` and `size_bytes` say how many
    objects it is about, and how large they are where that is known.
    """

    kind: Kind
    where: str
    text: str
    repaired: bool = False
    count: int = 1
    size_bytes: int = 0

    def __post_init__(self) -> None:
        # A name of a file may be bytes that are no text, and errors tell of files.
        for name in ("where", "text"):
            shown = getattr(self, name).encode(errors="backslashreplace").decode()
            object.__setattr__(self, name, shown)

    @property
    def is_harmless(self) -> bool:
        return self.kind in HARMLESS

    @property
    def is_damage(self) -> bool:
        """True for what is wrong, and was not repaired."""
        return not (self.repaired or self.is_harmless)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a check is: `done` of `total` records, blobs, or blobs fetched from elsewhere.

    Records are read again where something changed meanwhile or was repaired; they have no
    bytes to count.
    """

    what: Literal["records", "blobs", "fetched"]
    done: int
    total: int
    done_bytes: int = 0
    total_bytes: int = 0


Progress = Callable[[Step], None]


class Stopped(Exception):  # no error: nobody waits for this any more
    """Another thread has failed, or Ctrl-C was pressed."""


class Course:
    """A stretch of work, on which many threads go on. `progress` hears of each step."""

    def __init__(self, step: Step, progress: Progress | None = None) -> None:
        self._step = step
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make every thread that goes on end."""
        self._stopped.set()

    def go_on(self, done: int = 0, size_bytes: int = 0) -> None:
        """Take note of what was done.

        Raises:
            Stopped: there is nobody to go on for.
        """
        if self._stopped.is_set():
            raise Stopped
        with self._lock:
            before = self._step
            self._step = Step(
                before.what,
                before.done + done,
                before.total,
                before.done_bytes + size_bytes,
                before.total_bytes,
            )
            if self._progress is not None:
                self._progress(self._step)
