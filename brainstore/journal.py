"""The journal of facts, the snapshot that they are folded into, and the index of both.

Order, when reading: the journal's keys first, the snapshot after. A fact that is
missing from the list was folded before, so the snapshot read later contains it.
Order, when folding: the snapshot is swapped first, its entries removed after, so
that every fact stands in one of the two at any time.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from brainstore import marker
from brainstore.address import (
    JOURNAL_PREFIX,
    SNAPSHOT_KEY,
    Digest,
    Fact,
    new_ulid,
    parse_fact_key,
)
from brainstore.errors import Conflict, Corrupt
from brainstore.index import Index, Row, merge
from brainstore.records import FactBody, Manifest, Snapshot, Tombstone
from brainstore.storage.base import ABSENT, Expect, Object, Store, Token

_log = logging.getLogger(__name__)

FOLD_ATTEMPTS = 16
LARGE_SHARE = 100
"""A fold waits until the journal holds 1/LARGE_SHARE of the snapshot."""

ROW_BYTES = 512
"""About what a row takes in the snapshot."""


def save_fact(manifest: Manifest, digest: Digest) -> tuple[Fact, FactBody]:
    """Return the fact that the version was saved, and its body."""
    fact = Fact(new_ulid(), "save", manifest.name, manifest.version)
    return fact, FactBody(row=manifest.row(digest), at=manifest.created_at, by=manifest.by)


def live_fact(
    record: Manifest | Tombstone, manifest: Manifest, digest: Digest
) -> tuple[Fact, FactBody]:
    """Return the fact that the version lives: that it was saved, or that it came back."""
    if isinstance(record, Manifest):
        return save_fact(manifest, digest)
    fact = Fact(new_ulid(), "restore", record.name, record.version, record.generation)
    return fact, FactBody(row=manifest.row(digest), at=record.at, by=record.by)


def deletion_fact(tombstone: Tombstone) -> tuple[Fact, FactBody]:
    """Return the fact that the version was deleted, and its body."""
    fact = Fact(new_ulid(), "delete", tombstone.name, tombstone.version, tombstone.generation)
    return fact, FactBody(at=tombstone.at, by=tombstone.by)


class Journal:
    """The index of a zoo, as its store keeps it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, fact: Fact, body: FactBody) -> None:
        """Store one fact. Safe to repeat, also under another key: facts are folded once."""
        self._store.put(fact.key, body.encode())

    def index(self, *, rows: bool = True) -> Index:
        """Return what exists now.

        Costs a listing of the journal and one read; with `rows` also a read for each
        version saved since the last fold.

        Raises:
            NoZoo: there is no zoo.
            Corrupt: the snapshot is missing or damaged.
        """
        while True:
            facts = self._facts()
            index = Index.of(self._snapshot()[0])
            bodies = self._bodies([f for f in facts if index.needs_row(f)]) if rows else {}
            if bodies is not None:
                return merge(index, ((fact, bodies.get(fact, {})) for fact in facts))
            # A fact vanished: somebody folded it, and the snapshot has it now.

    def create(self, index: Index) -> None:
        """Store the first snapshot, unless there is one."""
        self._store.put(SNAPSHOT_KEY, _encode(index), expect=ABSENT)

    def replace(self, index: Index, expect: Token | Expect) -> None:
        """Store a rebuilt snapshot in place of the state `expect`, or of none (ABSENT).

        That state is to be read before the rebuilding begins: what was folded since is
        not in `index`.

        Raises:
            Conflict, AlreadyExists: somebody folded meanwhile; rebuild again.
        """
        self._store.put(SNAPSHOT_KEY, _encode(index), expect=expect)

    def fold(self, at_least: int = 1) -> int:
        """Move the facts into the snapshot; return how many were moved.

        Does nothing, and does not read the snapshot, while there are fewer than
        `at_least`, or than make 1% of it. Safe to run anywhere, at any time, by many at
        once: a loser of the swap starts again, and leaves it to the others after a few
        rounds.
        """
        for attempt in range(FOLD_ATTEMPTS):
            facts = self._facts()
            if len(facts) < at_least or not self._is_worth_it(facts):
                return 0
            try:
                return self._fold(facts)
            except Conflict:
                time.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))
        _log.info("%s: others keep folding the journal; left to them", self._store.url)
        return 0

    def _is_worth_it(self, facts: list[Fact]) -> bool:
        # By size: to read it in order to count its rows would cost what is to be saved.
        found = self._store.stat(SNAPSHOT_KEY)
        return found is None or LARGE_SHARE * ROW_BYTES * len(facts) >= found.size_bytes

    def _fold(self, facts: list[Fact]) -> int:
        snapshot, token = self._snapshot()
        index = Index.of(snapshot)
        bodies = self._bodies([fact for fact in facts if index.needs_row(fact)])
        if bodies is None:
            raise Conflict("a fact was folded by somebody else")
        merge(index, ((fact, bodies.get(fact, {})) for fact in facts))
        self._store.put(SNAPSHOT_KEY, _encode(index), expect=token)
        self._each(self._store.delete, [fact.key for fact in facts])
        return len(facts)

    def _facts(self) -> list[Fact]:
        found = (parse_fact_key(entry.key) for entry in self._store.list(JOURNAL_PREFIX))
        return [fact for fact in found if fact is not None]

    def _snapshot(self) -> tuple[Snapshot, Token]:
        found = self._store.get(SNAPSHOT_KEY)
        if found is None:
            marker.require(self._store)
            raise Corrupt(
                f"{self._store.url}: {SNAPSHOT_KEY}, the index of the zoo, is missing. The models "
                "are not affected. Rebuild it: brainstore fsck --repair"
            )
        try:
            snapshot = Snapshot.decode(found.body, f"{self._store.url}/{SNAPSHOT_KEY}")
        except Corrupt:
            marker.refuse_original(found.body, self._store.url)
            raise
        return snapshot, found.token

    def _bodies(self, facts: Sequence[Fact]) -> dict[Fact, Row] | None:
        """Return the rows of these facts, or None when one of them has vanished."""
        found = self._each(self._store.get, [fact.key for fact in facts])
        if any(each is None for each in found):
            return None
        return {fact: _row(each, fact.key) for fact, each in zip(facts, found, strict=True) if each}

    def _each(self, call: Any, keys: list[str]) -> list[Any]:
        if len(keys) < 2:
            return [call(key) for key in keys]
        with ThreadPoolExecutor(self._store.parallelism) as pool:
            return list(pool.map(call, keys))


def _row(found: Object, key: str) -> Row:
    return FactBody.decode(found.body, key).row


def _encode(index: Index) -> bytes:
    # Readable, because people look at this file; one row a line keeps it short.
    return msgspec.json.format(index.snapshot().encode(), indent=1) + b"\n"
