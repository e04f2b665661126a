"""The index in memory: what exists, merged from the snapshot and the facts since.

Applying a fact twice, late or out of order gives the same index: a deletion beats
a save of the same version, and deletions, restorations and moves go by generation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from brainstore.address import Alias, Fact, Name, full_name, parse_reference
from brainstore.errors import BadReference, Corrupt
from brainstore.records import AliasRow, Snapshot, now

Row = dict[str, Any]


@dataclass
class Index:
    """`rows` maps (name, version) of every live version to its row, {} where not yet read."""

    rows: dict[tuple[Name, int], Row] = field(default_factory=dict)
    aliases: dict[tuple[Name, Alias], AliasRow] = field(default_factory=dict)
    tombstones: dict[tuple[Name, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot) -> Index:
        """Return the index that the snapshot holds.

        Raises:
            Corrupt: a key in it is no model's full name.
        """
        return cls(
            rows={_split(key): row for key, row in snapshot.models.items()},
            aliases={
                (_name(name), _alias(alias)): row
                for name, aliases in snapshot.aliases.items()
                for alias, row in aliases.items()
            },
            tombstones={_split(key): value for key, value in snapshot.tombstones.items()},
        )

    def snapshot(self) -> Snapshot:
        """Return the record of this index, to be stored."""
        aliases: dict[str, dict[str, AliasRow]] = {}
        for (name, alias), row in self.aliases.items():
            aliases.setdefault(name, {})[alias] = row
        return Snapshot(
            folded_at=now(),
            models={full_name(*key): self.rows[key] for key in self.versions()},
            aliases=aliases,
            tombstones={full_name(*key): value for key, value in self.tombstones.items()},
        )

    def apply(self, fact: Fact, row: Row) -> None:
        """Take in one fact; `row` describes the version of a save or a restoration."""
        if fact.kind == "move":
            self._move(fact)
            return
        key = (fact.name, fact.version)
        known = self.tombstones.get(key, 0)
        if fact.kind == "save":
            if known % 2 == 0 and not self.rows.get(key):
                self.rows[key] = row
        elif fact.generation > known:
            self.tombstones[key] = fact.generation
            if fact.kind == "delete":
                self.rows.pop(key, None)
            else:
                self.rows[key] = row

    def _move(self, fact: Fact) -> None:
        assert fact.alias is not None
        known = self.aliases.get((fact.name, fact.alias))
        if known is None or fact.generation > known.generation:
            row = AliasRow(version=fact.version or None, generation=fact.generation)
            self.aliases[fact.name, fact.alias] = row

    def needs_row(self, fact: Fact) -> bool:
        """True when the body of the fact's entry would tell something new."""
        if fact.kind not in ("save", "restore"):
            return False
        key = (fact.name, fact.version)
        if fact.kind == "save":
            return not self.rows.get(key) and self.tombstones.get(key, 0) % 2 == 0
        return fact.generation > self.tombstones.get(key, 0)

    def versions(self, name: str | None = None) -> list[tuple[Name, int]]:
        """Return (name, version) of every live version, in that order."""
        return sorted(key for key in self.rows if name is None or key[0] == name)

    def names(self) -> list[Name]:
        return sorted({name for name, _ in self.rows})

    def aliases_of(self, name: str) -> dict[str, int]:
        """Return the set aliases of a model, without `latest`."""
        found = {
            str(alias): row.version
            for (owner, alias), row in self.aliases.items()
            if owner == name and row.version is not None
        }
        return dict(sorted(found.items()))


def _split(key: str) -> tuple[Name, int]:
    try:
        reference = parse_reference(key)
    except BadReference as error:
        raise Corrupt(f"registry.json: {error}. Run: brainstore fsck --repair") from error
    if reference.version is None or key != full_name(reference.name, reference.version):
        raise Corrupt(f"registry.json: {key!r} is no full name. Run: brainstore fsck --repair")
    return reference.name, reference.version


def _name(text: str) -> Name:
    try:
        return Name(text)
    except BadReference as error:
        raise Corrupt(f"registry.json: {error}. Run: brainstore fsck --repair") from error


def _alias(text: str) -> Alias:
    try:
        return Alias(text)
    except BadReference as error:
        raise Corrupt(f"registry.json: {error}. Run: brainstore fsck --repair") from error


def merge(index: Index, facts: Iterable[tuple[Fact, Row]]) -> Index:
    """Return `index` after every fact in `facts`."""
    for fact, row in facts:
        index.apply(fact, row)
    return index
