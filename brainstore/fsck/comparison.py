"""Pointers and index, held against the records of the versions."""

from __future__ import annotations

from collections.abc import Iterator

from brainstore.address import LATEST, Alias, Name, pointer_key
from brainstore.fsck.findings import Finding
from brainstore.fsck.survey import Key, Survey
from brainstore.index import Index, Row
from brainstore.records import AliasRow


def pointer_findings(seen: Survey) -> Iterator[Finding]:
    """Yield pointers that name what is not there, or is something else."""
    for (name, alias), pointer in sorted(seen.pointers.items(), key=lambda item: item[0]):
        key = (name, pointer.version or 0)
        if pointer.version is None or key in seen.damaged:
            continue
        version = seen.versions.get(key)
        if version is None or version.digest is None:
            text = (
                f"names {name}:{pointer.version}, which {'is deleted' if version else 'never was'}"
            )
        elif version.digest != pointer.digest:
            text = f"names another manifest than that of {name}:{pointer.version}"
        else:
            continue
        mend = (
            "brainstore fsck --repair" if alias == LATEST else f"brainstore alias {name}:… {alias}"
        )
        yield Finding("pointer", pointer_key(name, alias), f"{text}. Mend it: {mend}")


def latest_findings(seen: Survey, under_way: set[Key]) -> Iterator[Finding]:
    """Yield where `latest` is missing, or behind; versions `under_way` are not counted."""
    taken: dict[Name, list[Key]] = {}
    for key, version in seen.versions.items():
        if not version.is_fence and key not in under_way:
            taken.setdefault(key[0], []).append(key)
    for name, keys in sorted(taken.items()):
        pointer = seen.pointers.get((name, Alias(LATEST)))
        live = max((number for _, number in keys if seen.versions[name, number].digest), default=0)
        newest = max(number for _, number in keys)
        where = pointer_key(name, Alias(LATEST))
        if pointer is None:
            if (name, Alias(LATEST)) not in seen.damaged_pointers:
                yield Finding("latest", where, "is missing. Run: brainstore fsck --repair")
        elif (pointer.version or 0) < live or pointer.newest < newest:
            text = f"names version {pointer.version or 'none'} and knows {pointer.newest} as the "
            text += f"newest, but {live or 'none'} is the highest live one and {newest} was taken"
            yield Finding("latest", where, f"{text}. Run: brainstore fsck --repair")


def index_findings(
    seen: Survey, index: Index, name: Name | None, under_way: set[Key]
) -> Iterator[Finding]:
    """Yield what the index lacks, has too much, or tells otherwise than the records."""
    expected = seen.index()
    told = {*index.rows, *index.tombstones, *expected.rows, *expected.tombstones} - seen.damaged
    for key in sorted(key for key in told if name in (None, key[0])):
        text = _row_problem(key, expected, index, under_way)
        fence = key in seen.versions and seen.versions[key].is_fence
        tombstone = index.tombstones.get(key, 0)
        if not text and not fence and tombstone != expected.tombstones.get(key, 0):
            text = "its deletion is told otherwise in the index"
        if text:
            yield Finding("index", f"{key[0]}:{key[1]}", f"{text}. Run: brainstore fsck --repair")
    for place, row in sorted(expected.aliases.items()):
        known = index.aliases.get(place)
        if known != row and (known or row.version):
            text = f"the alias names {_told(row)}, and {_told(known)} in the index. "
            text += "Run: brainstore fsck --repair"
            yield Finding("index", f"{place[0]}:{place[1]}", text)
    for place in sorted(set(index.aliases) - set(expected.aliases) - seen.damaged_pointers):
        if name in (None, place[0]):
            text = "the index knows an alias that has no pointer. Run: brainstore fsck --repair"
            yield Finding("index", f"{place[0]}:{place[1]}", text)


def _told(row: AliasRow | None) -> str:
    if row is None:
        return "nothing"
    return f"version {row.version or 'none'} since its move {row.generation}"


def _row_problem(key: Key, expected: Index, index: Index, under_way: set[Key]) -> str:
    right, found = expected.rows.get(key), index.rows.get(key)
    if right is None:
        return "is in the index, and is deleted or never was" if found is not None else ""
    if found is None:
        return "" if key in under_way else "is not in the index, so nobody sees it listed"
    if differing := _differing(right, found):
        return f"the index tells another {', '.join(differing)}"
    return ""


def _differing(right: Row, found: Row) -> list[str]:
    # Another brainstore may keep more or fewer fields in a row; that is no damage.
    common = {"digest", *(right.keys() & found.keys())}
    return sorted(field for field in common if right.get(field) != found.get(field))
