"""What reviews found: each of these once lost something without a word."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from brainstore import BadParams, BrainManager, Corrupt, NotFound, Unsupported
from brainstore.address import Alias, Name, blob_key
from brainstore.cache import Cache
from brainstore.fsck import fsck
from brainstore.groups import _Views
from brainstore.pointers import Pointers
from brainstore.records import Leaf, Piece
from brainstore.storage.memory import MemoryStore
from brainstore.tensors import Tensor, encode


def params(value: float, size: int = 4) -> dict[str, np.ndarray]:
    return {"w": np.full(size, value, np.float32)}


@pytest.fixture
def zoo(tmp_path: Path) -> BrainManager:
    return BrainManager(tmp_path / "zoo")


class RemoteStore(MemoryStore):
    """A store in memory that counts as far away."""

    is_remote = True


def test_a_blob_that_fsck_moved_aside_is_stored_again_by_a_running_process(
    zoo: BrainManager,
) -> None:
    zoo.save("a", params(1))
    [digest] = zoo.manifest("a").blobs
    path = zoo.zoo.store.path(blob_key(digest))
    assert path is not None
    path.chmod(0o644)
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    fsck(BrainManager(zoo.storage_dir).zoo, repair=True)
    assert not path.exists()
    zoo.save("a", params(1))
    assert zoo.load("a:2", as_numpy=True)[0]["w"].tolist() == [1, 1, 1, 1]


def test_a_file_that_changes_while_it_is_saved_is_refused(
    zoo: BrainManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    notes.write_bytes(b"before")
    put = zoo.zoo.blobs.put

    def late(*arguments: Any, **keywords: Any) -> int:
        notes.write_bytes(b"after!")
        return put(*arguments, **keywords)

    monkeypatch.setattr(zoo.zoo.blobs, "put", late)
    with pytest.raises(BadParams, match="changed while it was saved"):
        zoo.save("a", params(1), files={"notes": notes})
    assert zoo.list_models() == []
    monkeypatch.undo()
    zoo.save("a", params(1), files={"notes": notes})
    assert zoo.file("a", "notes") == b"after!"


def test_a_file_that_is_removed_while_it_is_saved_is_named(
    zoo: BrainManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    with pytest.raises(BadParams, match=r"'n': .*notes cannot be read: No such file"):
        zoo.save("a", params(1), files={"n": notes})
    notes.write_bytes(b"here")
    put = zoo.zoo.blobs.put

    def late(*arguments: Any, **keywords: Any) -> int:
        notes.unlink(missing_ok=True)
        return put(*arguments, **keywords)

    monkeypatch.setattr(zoo.zoo.blobs, "put", late)
    with pytest.raises(BadParams, match="notes cannot be read: No such file"):
        zoo.save("a", params(1), files={"n": notes})
    assert zoo.list_models() == []


def test_an_array_that_changes_while_it_is_saved_is_refused(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = params(1, 2**19)
    put = zoo.zoo.blobs.put

    def late(*arguments: Any, **keywords: Any) -> int:
        tree["w"][7] = 2
        return put(*arguments, **keywords)

    monkeypatch.setattr(zoo.zoo.blobs, "put", late)
    with pytest.raises(BadParams, match="changed while it was saved"):
        zoo.save("a", tree)
    assert [entry.key for entry in zoo.zoo.store.list("blobs/")] == []


def interrupt(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, meanwhile: Callable[[], object]
) -> None:
    """Do something else just before the first call of a method."""
    real = getattr(owner, name)
    calls = iter([meanwhile])

    def call(*arguments: Any, **keywords: Any) -> Any:
        next(calls, lambda: None)()
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, call)


def test_a_forced_deletion_leaves_an_alias_that_moved_on(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in range(3):
        zoo.save("a", params(value), aliases=["prod"] if value == 0 else [])
    other = BrainManager(zoo.storage_dir)
    pointers = zoo.zoo.registry.pointers
    interrupt(monkeypatch, pointers, "move_alias", lambda: other.alias("a:3", "prod"))
    zoo.delete("a:1", force=True)
    assert zoo.aliases("a") == {"latest": 3, "prod": 3}


def test_a_refused_deletion_leaves_latest_at_the_highest_version(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in range(4):
        zoo.save("a", params(value))
    other = BrainManager(zoo.storage_dir)
    from brainstore import deletion

    real = deletion._aliases_naming
    calls = iter([list, lambda: (other.delete("a:4"), [Alias("prod")])[1]])
    monkeypatch.setattr(
        deletion, "_aliases_naming", lambda *given: next(calls, lambda: real(*given))()
    )
    with pytest.raises(Exception, match="it is back"):
        zoo.delete("a:3")
    assert zoo.list_models() == ["a_v1", "a_v2", "a_v3"]
    assert zoo.get_latest("a") == "a_v3"


def test_a_pointer_that_is_forgotten_meanwhile_is_no_key_error(zoo: BrainManager) -> None:
    zoo.save("a", params(1))
    pointers = zoo.zoo.registry.pointers
    pointer = Pointers.pointer

    class Forgetful(Pointers):
        def pointer(self, name: Name, alias: Alias) -> Any:
            found = pointer(self, name, alias)
            self.forget_latest(name)
            return found

    pointers.forget_latest(Name("a"))
    pointers.__class__ = Forgetful
    found = pointers.latest(Name("a"))
    assert found is not None
    assert found[0].version == 1


def test_latest_follows_a_pull_into_a_process_that_saw_it_deleted(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.save("a", params(1))
    zoo.save("a", params(2))
    target = BrainManager(tmp_path / "target")
    target.pull(zoo, ["a:2"])
    BrainManager(target.storage_dir).delete("a:2")
    target.pull(zoo, ["a:1"])
    assert target.list_models() == ["a_v1"]
    assert target.get_latest("a") == "a_v1"


def test_more_large_arrays_than_open_files_are_allowed_by_default_can_be_loaded(
    zoo: BrainManager,
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 400:
        pytest.skip("the hard limit of open files is too low here")
    zoo.save("a", {f"w{n}": np.full(2**18, n, np.float32) for n in range(150)})
    code = f"""
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
from brainstore import BrainManager
tree, _ = BrainManager({str(zoo.storage_dir)!r}).load("a", as_numpy=True)
assert len(tree) == 150 and tree["w149"][5] == 149
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_without_descriptors_says_so(zoo: BrainManager) -> None:
    zoo.save("a", {f"w{n}": np.full(2**18, n, np.float32) for n in range(80)})
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
from brainstore import BrainManager, StoreUnavailable
if __import__("sys").version_info >= (3, 13):
    raise SystemExit  # a map keeps no descriptor there
try:
    BrainManager({str(zoo.storage_dir)!r}).load("a", as_numpy=True)
except StoreUnavailable as error:
    assert "ulimit -n" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unusable_cache_does_not_stop_an_undelete_halfway(tmp_path: Path) -> None:
    store = RemoteStore("memory://unusable-cache")
    BrainManager(store, cache=Cache(tmp_path / "good")).save("a", params(1))
    (tmp_path / "file").write_text("in the way")
    zoo = BrainManager(store, cache=Cache(tmp_path / "file" / "cache"))
    zoo.delete("a:1")
    zoo.undelete("a:1")
    assert zoo.list_models() == ["a_v1"]


def test_an_undelete_of_another_digest_is_refused(zoo: BrainManager) -> None:
    zoo.save("a", params(1))
    zoo.delete("a:1")
    with pytest.raises(NotFound, match="is another"):
        zoo.undelete("a:1@blake3:" + "0" * 64)
    assert zoo.list_models() == []


def test_a_version_of_another_zoo_that_is_cached_cannot_be_a_parent_here(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = BrainManager(RemoteStore("memory://first"), cache=cache)
    first.save("a", params(1))
    first.load("a", as_numpy=True)
    pinned = f"a:1@{first.resolve('a').digest}"
    second = BrainManager(RemoteStore("memory://second"), cache=cache)
    second.save("b", params(2))
    with pytest.raises(NotFound):
        second.save("b", params(3), parents=[pinned])
    with pytest.raises(NotFound):
        second.alias(pinned, "prod")
    assert [entry.key for entry in second.zoo.store.list("models/a/")] == []


def test_an_unreadable_cache_size_does_not_fail_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = BrainManager(RemoteStore("memory://cache-size"), cache=Cache(tmp_path))
    zoo.save("a", params(1))
    monkeypatch.setenv("BRAINSTORE_CACHE_MAX", "lots")
    assert zoo.load("a", as_numpy=True)[0]["w"][0] == 1


def test_what_this_machine_saved_is_what_it_sees_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = BrainManager(RemoteStore("memory://mirror"), cache=Cache(tmp_path))
    zoo.save("a", params(1))
    zoo.load("a", as_numpy=True)
    for value in range(2, 5):
        zoo.save("a", params(value))
    zoo.zoo.registry.journal.fold()
    mirrored = zoo.zoo.cache.zoo_folder(zoo.zoo.store.identity) / "journal"
    assert [path.name for path in mirrored.glob("*~save~*")] == []
    monkeypatch.setenv("BRAINSTORE_OFFLINE", "1")
    assert zoo.resolve("a").version == 4


def test_pieces_that_overlap_are_refused() -> None:
    half = encode(Tensor.of(np.ones((2, 4), np.float32)))
    body = memoryview(b"".join(half))
    piece = Piece(index=((0, 2), (0, 4)), blob=half.digest, entry="tensor")
    other = msgspec.structs.replace(piece, index=((2, 4), (0, 4)))
    leaf = Leaf(path="w", dtype="float32", shape=(4, 4), digest=half.digest, pieces=(piece, other))
    views = _Views({half.digest: body})
    assert views.arrays([leaf])[0].tolist() == np.ones((4, 4)).tolist()
    for pieces in ((piece, piece), (piece,)):
        with pytest.raises(Corrupt, match="pieces"):
            views.arrays([msgspec.structs.replace(leaf, pieces=pieces)])
    with pytest.raises(Corrupt, match="pieces"):
        views.arrays([msgspec.structs.replace(leaf, shape=(2**50, 4))])


def test_a_damaged_record_above_an_old_intent_does_not_stop_folding(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainstore import intents
    from brainstore.address import manifest_key, new_ulid
    from brainstore.records import Target

    zoo.save("a", params(1))
    zoo.save("a", params(2))
    target = Target(name=Name("a"), version=1)
    intents.put_intent(zoo.zoo.registry, new_ulid(), [target], [])
    zoo.zoo.store.put(manifest_key(Name("a"), 2), b"{")
    monkeypatch.setattr(intents.finish_abandoned, "__defaults__", (-1.0, None))
    zoo.save("b", params(3))
    assert [entry.key for entry in zoo.zoo.store.list("journal/")] == []


def test_a_source_checkpoint_in_a_zoo_that_cannot_be_reached_is_only_text(
    zoo: BrainManager,
) -> None:
    zoo.save("a", params(1), source_checkpoint="nosuch://bucket/x::a:1")
    assert zoo.manifest("a").parents == ()


def test_one_alias_given_as_text_is_one_alias(zoo: BrainManager) -> None:
    zoo.save("a", params(1), aliases="prod")
    assert zoo.aliases("a") == {"latest": 1, "prod": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        {"aliases": 5},
        {"parents": [3]},
        {"files": ["x"]},
        {"files": 5},
        {"frozen_experts": ["x"]},
        {"frozen_experts": {"nope": "a:1"}},
        {"input_dim": -1},
        {"groups": [1]},
    ],
)
def test_arguments_of_the_wrong_form_are_bad_params(
    zoo: BrainManager, arguments: dict[str, Any]
) -> None:
    zoo.save("a", params(1))
    with pytest.raises(BadParams, match=next(iter(arguments))):
        zoo.save("a", params(2), **arguments)
    assert zoo.list_models() == ["a_v1"]


def test_a_file_that_was_saved_is_no_reference(
    zoo: BrainManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("p.npz", w=np.ones(2, np.float32))
    zoo.save("p.npz", params(1))
    zoo.import_file("p.npz", "other")
    assert zoo.manifest("other").parents == ()


def test_a_zoo_of_a_newer_format_is_not_changed(zoo: BrainManager) -> None:
    zoo.save("a", params(1))
    marker = zoo.storage_dir / "brainstore.json"
    marker.write_text(marker.read_text().replace('"format": 1', '"format": 2'))
    later = BrainManager(zoo.storage_dir)
    for change in (lambda: later.save("a", params(2)), lambda: later.delete("a:1")):
        with pytest.raises(Unsupported, match="Upgrade"):
            change()
    assert later.list_models() == ["a_v1"]


def test_an_index_of_a_newer_format_is_not_rebuilt(zoo: BrainManager) -> None:
    zoo.save("a", params(1))
    registry = zoo.storage_dir / "registry.json"
    newer = registry.read_text().replace('"format": 1', '"format": 2')
    registry.write_text(newer)
    kinds = {finding.kind for finding in fsck(zoo.zoo, repair=True)}
    assert kinds == {"newer"}
    assert registry.read_text() == newer


def test_an_interrupted_publication_is_told_with_its_cure(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.save("a", params(1))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo.zoo.registry.pointers, "advance_latest", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        zoo.save("a", params(2))
    assert "a:2 is committed" in caught.value.__notes__[0]
    assert "fsck --repair" in caught.value.__notes__[0]


def test_a_warning_points_at_the_line_that_saved(zoo: BrainManager) -> None:
    with pytest.warns(UserWarning, match="64-bit") as caught:
        zoo.save("a", {"w": np.ones(2)})
    assert caught[0].filename == __file__


def test_a_zoo_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(BadParams, match="is a file"):
        BrainManager(tmp_path / "x")


def test_a_cache_may_be_given_as_a_folder(tmp_path: Path) -> None:
    zoo = BrainManager(RemoteStore("memory://cache-folder"), cache=tmp_path)
    zoo.save("a", params(1))
    zoo.load("a", as_numpy=True)
    assert len(Cache(tmp_path).ls()) == 2
