"""What keeps a blob."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from collecting import collected, put_intent, three_versions

from brainstore import BrainManager, NotFound
from brainstore.address import Digest, blob_key
from brainstore.errors import BadReference
from brainstore.storage.memory import MemoryStore

DAY_S = 86400.0


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def zoo(store: MemoryStore) -> Iterator[BrainManager]:
    with three_versions(store) as manager:
        yield manager


def test_why_tells_what_names_a_blob(zoo: BrainManager) -> None:
    leaf = zoo.manifest("ppo:1").groups["params"].leaves[0]
    (blob,) = zoo.manifest("ppo:1").blobs
    for asked in (blob, blob[:15], blob.hex[:8], leaf.digest):
        found = zoo.why(asked)
        assert found.digest == blob
        assert {(each.by, each.where) for each in found.reasons} == {("version", "ppo:1")}
        assert found.size_bytes
        assert "stays" in found.verdict
    assert {each.what for each in zoo.why(blob).reasons} == {
        "params: dense/bias",
        "params: dense/kernel",
    }


def test_why_tells_of_deleted_versions_and_of_saves_under_way(zoo: BrainManager) -> None:
    (garbage,) = (each.digest for each in collected(zoo, dry_run=True).blobs)
    assert {each.by for each in zoo.why(garbage).reasons} == {"deleted"}
    put_intent(zoo, [garbage])
    assert {each.by for each in zoo.why(garbage).reasons} == {"deleted", "intent"}


def test_why_tells_that_nothing_names_a_blob(zoo: BrainManager, store: MemoryStore) -> None:
    stray = Digest.of(b"stray")
    store.put(blob_key(stray), b"stray")
    assert "once it is a day old" in zoo.why(stray).verdict
    store._shelf.objects[blob_key(stray)] = b"stray", time.time() - 2 * DAY_S
    assert "brainstore gc --yes" in zoo.why(stray).verdict
    assert zoo.why(stray).reasons == ()


def test_why_tells_that_a_blob_is_missing(zoo: BrainManager, store: MemoryStore) -> None:
    (blob,) = zoo.manifest("ppo:1").blobs
    store.delete(blob_key(blob))
    found = zoo.why(blob)
    assert found.size_bytes is None
    assert "missing" in found.verdict


def test_why_refuses_what_is_no_digest_or_not_there(zoo: BrainManager) -> None:
    with pytest.raises(BadReference):
        zoo.why("ppo:1")
    with pytest.raises(NotFound, match="no blob and no leaf"):
        zoo.why("0" * 16)
