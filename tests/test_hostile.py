"""What somebody who can write to a zoo must not be able to do to those who use it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from zoos import WrappedStore, finish, opened, params

from brainstore.address import Name, blob_key, manifest_key, new_ulid
from brainstore.blobs import RANGES_AT_ONCE
from brainstore.cache import Cache
from brainstore.errors import Corrupt, NotFound, StoreUnavailable
from brainstore.fsck import fsck
from brainstore.intents import finish_abandoned
from brainstore.records import Intent, Target, now
from brainstore.storage.memory import MemoryStore
from brainstore.storage.mirror import MirroredStore


class RemoteStore(MemoryStore):
    """A store in memory that counts as far away, and takes any text as a key, like a bucket."""

    is_remote = True


ESCAPES = [
    "intents/../../../../planted.json",
    "intents/./../../../../planted.json",
    "../../planted.json",
    "intents/..\\..\\planted.json",
    "intents/.listing.json",
    "/planted.json",
]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("key", ESCAPES)
def test_a_key_of_a_bucket_writes_and_removes_nothing_outside_of_its_mirror(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = RemoteStore()
    store = MirroredStore(inner, tmp_path / "a" / "b" / "mirror")
    (tmp_path / "planted.json").write_text("mine")
    inner.put(key, b"theirs")
    before = files_below(tmp_path)
    assert store.get(key).body == b"theirs"
    store.delete(key)
    store.put(key, b"theirs")
    assert files_below(tmp_path) == before
    assert (tmp_path / "planted.json").read_text() == "mine"
    monkeypatch.setenv("BRAINSTORE_OFFLINE", "1")
    with pytest.raises(StoreUnavailable, match="cache lacks"):
        store.get(key)


def test_an_intent_under_a_key_of_nobody_is_neither_read_nor_followed(tmp_path: Path) -> None:
    inner = RemoteStore()
    with opened(inner, cache=Cache(tmp_path / "cache")) as zoo:
        zoo.save("ppo", params(1))
        finish(zoo)
        inner.put("intents/../../../../planted.json", b"theirs")
        kinds = {(each.kind, each.where) for each in fsck(zoo.zoo)}
        assert ("stray", "intents/../../../../planted.json") in kinds
        assert finish_abandoned(zoo.zoo.registry, older_than_s=-1) == []
    assert not list(tmp_path.rglob("planted.json"))


def test_an_intent_that_tells_another_write_id_than_its_key_removes_nothing(
    tmp_path: Path,
) -> None:
    inner = RemoteStore()
    with opened(inner, cache=Cache(tmp_path / "cache")) as zoo:
        zoo.save("ppo", params(1))
        finish(zoo)
        manifest: Any = zoo.manifest("ppo:1")
        target = Target(name=Name("ppo"), version=1)
        for write_id in (manifest.write_id, "../registry"):
            intent = Intent(
                write_id=write_id, created_at=now(), by="", targets=(target,), digests=()
            )
            inner.put(f"intents/{new_ulid()}.json", intent.encode())
        before = {stat.key for stat in inner.list("")}
        assert finish_abandoned(zoo.zoo.registry, older_than_s=-1) == []
        assert {stat.key for stat in inner.list("")} == before


def test_a_blob_that_claims_to_be_enormous_costs_a_few_requests(tmp_path: Path) -> None:
    store = WrappedStore(RemoteStore())
    with opened(store, cache=Cache(tmp_path)) as zoo:
        zoo.save("ppo", {"w": np.ones(2**18, np.float32)})
        manifest: Any = zoo.manifest("ppo:1")
        [digest] = manifest.blobs
        hostile = msgspec.structs.replace(manifest, version=2, blobs={digest: 2**44 - 4096})
        store.inner.put(manifest_key(Name("ppo"), 2), hostile.encode())
        store.calls.clear()
        with pytest.raises((Corrupt, StoreUnavailable)):
            zoo.load("ppo:2", as_numpy=True)
        assert len(store.calls) <= 1 + RANGES_AT_ONCE
    assert not list((tmp_path / "blobs").rglob(".tmp-*"))


def test_what_is_no_ordinary_file_is_not_there(tmp_path: Path) -> None:
    with opened(tmp_path / "zoo") as zoo:
        zoo.save("ppo", params(1))
        [digest] = zoo.manifest("ppo").blobs
        paths = [zoo.zoo.store.path(key) for key in (blob_key(digest), "registry.json")]
        for path in paths:
            path.unlink()
            os.mkfifo(path)
        # Reading one would never end.
        with pytest.raises(NotFound, match="is missing"):
            zoo.load("ppo")
        with pytest.raises(Corrupt, match="is missing"):
            zoo.list_models()
        kinds = {finding.kind for finding in fsck(zoo.zoo)}
        assert {"index", "blob-missing"} <= kinds
