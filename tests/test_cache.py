"""The cache of a remote zoo: verified, shared, capped, and there when the network is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoos import Call, Proceed, WrappedStore, opened, params, same

from brainstore import BadParams, BrainManager, Corrupt, NotFound, StoreUnavailable
from brainstore.address import Digest, blob_key
from brainstore.cache import ABANDONED_S, Cache
from brainstore.settings import cache_folder, cache_max_bytes, parse_size
from brainstore.storage.memory import MemoryStore

MIB = 1 << 20


def filled(body: bytes) -> Callable[[int], None]:
    def fill(descriptor: int) -> None:
        os.pwrite(descriptor, body, 0)

    return fill


def add(cache: Cache, body: bytes, used_at: float | None = None) -> Digest:
    digest = Digest.of(body)
    os.close(cache.add(digest, len(body), filled(body)))
    if used_at is not None:
        os.utime(cache._path(digest), (used_at, used_at))
    return digest


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10_000)


class Far:
    """A zoo in memory that counts as remote, and managers of it that share a cache."""

    def __init__(self, folder: Path) -> None:
        self.store = WrappedStore(MemoryStore(), is_remote=True)
        self.store.url = f"memory://far/{folder.name}"
        self.cache = Cache(folder / "cache")
        self.managers: list[BrainManager] = []

    def open(self, cache: Cache | None = None) -> BrainManager:
        manager = BrainManager(self.store, cache=cache or self.cache)
        self.managers.append(manager)
        return manager

    def path(self, digest: Digest) -> Path:
        return self.cache.folder / blob_key(digest)

    def damage(self, digest: Digest, at: int = -1) -> None:
        """Flip one bit of the blob in the cache, as a bad disk would."""
        path = self.path(digest)
        body = bytearray(path.read_bytes())
        body[at] ^= 1
        path.unlink()
        path.write_bytes(body)

    def fetches(self) -> list[str]:
        return [call.key for call in self.store.calls if call.method == "get_range"]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    far = Far(tmp_path)
    yield far
    for manager in far.managers:
        manager.close()


def test_what_is_added_is_found_and_cannot_be_written(cache: Cache) -> None:
    digest = add(cache, b"hello")
    assert cache.read(digest) == b"hello"
    path = cache._path(digest)
    assert path.stat().st_mode & 0o777 == 0o444
    assert [(found.digest, found.size_bytes) for found in cache.ls()] == [(digest, 5)]
    assert cache.read(Digest.of(b"other")) is None
    assert cache.open(Digest.of(b"other")) is None


def test_bytes_of_another_digest_are_not_kept(cache: Cache) -> None:
    with pytest.raises(Corrupt, match="hashes to"):
        cache.add(Digest.of(b"hello"), 5, filled(b"jello"))
    with pytest.raises(Corrupt):
        cache.add(Digest.of(b"hello"), 6, filled(b"hello"))
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreUnavailable("down"), OSError("full")])
def test_a_fill_that_fails_leaves_nothing(cache: Cache, error: Any) -> None:
    def fill(descriptor: int) -> None:
        os.pwrite(descriptor, b"he", 0)
        raise error

    with pytest.raises((KeyboardInterrupt, StoreUnavailable)):
        cache.add(Digest.of(b"hello"), 5, fill)
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def test_the_least_recently_used_go_first(cache: Cache) -> None:
    a, b, c = (add(cache, letter * 3000, used_at) for letter, used_at in
               ((b"a", 300.0), (b"b", 100.0), (b"c", 200.0)))  # fmt: skip
    assert [found.digest for found in cache.ls()] == [b, c, a]
    os.close(cache.open(b))  # used now
    assert [found.digest for found in cache.ls()] == [c, a, b]
    d = add(cache, b"d" * 3000, 4_000_000_000.0)
    assert [found.digest for found in cache.ls()] == [a, b, d]
    assert [found.digest for found in cache.prune(3000)] == [a, b]
    assert [found.digest for found in cache.prune(0)] == [d]
    assert c not in [found.digest for found in cache.ls()]


def test_the_cache_stays_below_its_cap(cache: Cache) -> None:
    for number in range(50):
        add(cache, b"%d" % number * 700)
        held = sum(found.size_bytes for found in cache.ls())
        assert held <= cache.max_bytes * 1.02 + 1400


def test_a_blob_larger_than_the_cache_is_still_handed_out(cache: Cache) -> None:
    body = b"x" * 20_000
    descriptor = cache.add(Digest.of(body), len(body), filled(body))
    assert os.pread(descriptor, 30_000, 0) == body
    os.close(descriptor)
    assert cache.ls() == []


def test_a_pruned_file_stays_readable_for_who_has_mapped_it(far: Far) -> None:
    zoo = far.open()
    zoo.save("ppo", {"w": np.arange(MIB, dtype=np.float32)})
    tree, _ = zoo.load("ppo", as_numpy=True)
    jax_tree, _ = zoo.load("ppo")
    far.cache.prune(0)
    assert far.cache.ls() == []
    assert np.array_equal(tree["w"], np.arange(MIB, dtype=np.float32))
    assert float(jax_tree["w"][-1]) == MIB - 1
    assert same(zoo.load("ppo", as_numpy=True)[0], tree)


def test_leftovers_of_killed_downloads_go_after_a_day(cache: Cache) -> None:
    digest = add(cache, b"hello")
    young, old = (cache._path(digest).with_name(f".tmp-{age}") for age in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"part")
    past = old.stat().st_mtime - ABANDONED_S - 60
    os.utime(old, (past, past))
    assert [found.digest for found in cache.ls()] == [digest]
    cache.prune()
    assert young.exists()
    assert not old.exists()


def test_verify_finds_and_drops_what_is_damaged(far: Far) -> None:
    good, bad = add(far.cache, b"good" * 100), add(far.cache, b"bad" * 100)
    far.damage(bad)
    assert [found.digest for found in far.cache.verify()] == [bad]
    assert [found.digest for found in far.cache.ls()] == [good]


def test_a_damaged_pack_is_noticed_by_the_next_load_and_fetched_again(far: Far) -> None:
    zoo = far.open()
    zoo.save("ppo", params(1))
    zoo.load("ppo", as_numpy=True)
    (digest,) = zoo.manifest("ppo").blobs
    size = far.path(digest).stat().st_size
    for at in (0, 8, size // 2, size - 1):
        far.damage(digest, at)
        far.store.calls.clear()
        assert same(zoo.load("ppo", as_numpy=True)[0], params(1))
        assert far.fetches() == [blob_key(digest)]
    far.path(digest).unlink()
    far.path(digest).write_bytes(b"short")
    assert same(zoo.load("ppo", as_numpy=True)[0], params(1))


def test_a_damaged_manifest_is_noticed_and_read_again(far: Far) -> None:
    zoo = far.open()
    zoo.save("ppo", params(1))
    zoo.load("ppo", as_numpy=True)
    far.damage(zoo.resolve("ppo").digest)
    assert same(zoo.load("ppo", as_numpy=True)[0], params(1))


def test_a_damaged_large_blob_is_noticed_when_asked_to_verify(far: Far) -> None:
    tree = {"w": np.ones(5 * MIB, np.float32)}
    zoo = far.open()
    zoo.save("ppo", tree)
    zoo.load("ppo", as_numpy=True)
    (digest,) = zoo.manifest("ppo").blobs
    far.damage(digest)
    far.store.calls.clear()
    assert same(zoo.load("ppo", as_numpy=True, verify=True)[0], tree)
    assert set(far.fetches()) == {blob_key(digest)}


def test_a_blob_damaged_in_the_zoo_is_corrupt_and_not_kept(far: Far) -> None:
    zoo = far.open()
    zoo.save("ppo", params(1))
    (digest,) = zoo.manifest("ppo").blobs
    body = far.store.inner.get(blob_key(digest)).body
    far.store.inner.put(blob_key(digest), body[:-1] + b"?")
    with pytest.raises(Corrupt, match=r"ppo:1.*fsck"):
        zoo.load("ppo", as_numpy=True)
    assert not far.path(digest).exists()


def test_many_that_fetch_the_same_blob_at_once_all_get_it(far: Far) -> None:
    tree = {"w": np.arange(3 * MIB, dtype=np.float32), **params(1)}
    far.open().save("ppo", tree)
    managers = [far.open() for _ in range(6)]
    line = threading.Barrier(6)

    def load(zoo: BrainManager) -> bool:
        line.wait()
        return same(zoo.load("ppo", as_numpy=True)[0], tree)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(load, managers))
    assert not list(far.cache.folder.glob("blobs/*/.tmp-*"))


def test_a_small_cache_under_many_loads_serves_them_all(far: Far, tmp_path: Path) -> None:
    zoo = far.open()
    for seed in range(5):
        zoo.save("ppo", {"w": np.full(MIB // 2, seed, np.float32)})
    tiny = far.open(Cache(tmp_path / "tiny", 3 * MIB))
    with ThreadPoolExecutor(4) as threads:
        loads = list(threads.map(lambda n: tiny.load("ppo", n % 5 + 1, as_numpy=True), range(40)))
    assert all(tree["w"][0] == n % 5 for n, (tree, _) in enumerate(loads))


FETCH = """
import os, signal, sys
from pathlib import Path
from brainstore.address import Digest
from brainstore.cache import Cache
body = b"x" * 100_000
def fill(descriptor):
    os.pwrite(descriptor, body[:50_000], 0)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os.pwrite(descriptor, body[50_000:], 50_000)
cache = Cache(Path(sys.argv[1]))
for _ in range(int(sys.argv[3])):
    os.close(cache.add(Digest.of(body), len(body), fill))
    assert cache.read(Digest.of(body)) in (body, None)
    cache.prune(0)
"""


def fetch(cache: Cache, how: str, count: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", FETCH, str(cache.folder), how, str(count)])


def test_kill_9_in_the_middle_of_a_download_leaves_nothing_visible(cache: Cache) -> None:
    assert fetch(cache, "kill").wait() == -signal.SIGKILL
    assert list(cache.folder.glob("blobs/*/.tmp-*"))
    assert cache.ls() == []
    body = b"x" * 100_000
    assert cache.open(Digest.of(body)) is None
    digest = add(Cache(cache.folder), body)
    assert cache.read(digest) == body


def test_processes_that_fetch_and_prune_at_once_never_see_half_a_blob(cache: Cache) -> None:
    processes = [fetch(cache, "work", 150) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


# Without a network


@pytest.fixture
def offline(far: Far, monkeypatch: pytest.MonkeyPatch) -> Far:
    """A zoo whose ppo:1 and :2 were loaded, whose ppo:3 was not; then the network went."""
    with opened(far.store, cache=far.cache) as zoo:
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed))
        zoo.alias("ppo:1", "prod")
        zoo.save("other", params(7))
    zoo = far.open(Cache(far.cache.folder))
    zoo.load("ppo:1", as_numpy=True)
    zoo.load("ppo:prod", as_numpy=True)
    zoo.load("ppo:2", as_numpy=True)
    zoo.load("other", as_numpy=True)
    zoo.table()
    monkeypatch.setenv("BRAINSTORE_OFFLINE", "1")
    far.store.calls.clear()

    def nobody(call: Call, proceed: Proceed) -> Any:
        raise AssertionError(f"{call} while offline")

    far.store.around = nobody
    return far


def test_offline_serves_what_was_loaded(offline: Far) -> None:
    zoo = offline.open(Cache(offline.cache.folder))
    assert same(zoo.load("ppo:2", as_numpy=True)[0], params(2))
    assert same(zoo.load("ppo:prod", as_numpy=True)[0], params(1))
    assert same(zoo.load("other", as_numpy=True)[0], params(7))
    assert zoo.list_models() == ["other_v1", "ppo_v1", "ppo_v2", "ppo_v3"]
    assert len(zoo.table()) == 4
    assert zoo.get_latest("other") == "other_v1"


def test_offline_lists_what_this_machine_has_written_since_it_listed(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = far.open()
    zoo.list_models()
    saved = [zoo.save("ppo", params(seed)) for seed in (4, 5)]
    newest = zoo.alias("ppo", "best").version
    zoo.close()
    listing = zoo.zoo.cache.zoo_folder(zoo.zoo.store.identity) / "journal" / ".listing.json"
    for body in (listing.read_bytes(), b"", b"[{"):
        listing.write_bytes(body)
        monkeypatch.setenv("BRAINSTORE_OFFLINE", "1")
        again = far.open(Cache(far.cache.folder))
        assert set(saved) <= set(again.list_models())
        assert again.zoo.index(rows=False).aliases_of("ppo")["best"] == newest
        assert again.get_latest("ppo") == saved[-1]
        monkeypatch.delenv("BRAINSTORE_OFFLINE")


def test_offline_names_what_it_lacks(offline: Far) -> None:
    zoo = offline.open(Cache(offline.cache.folder))
    with pytest.raises(StoreUnavailable, match=r"ppo:3: BRAINSTORE_OFFLINE .* the cache lacks"):
        zoo.load("ppo:3")
    with pytest.raises(StoreUnavailable, match="BRAINSTORE_OFFLINE is set"):
        zoo.save("ppo", params(4))
    with pytest.raises(StoreUnavailable, match="BRAINSTORE_OFFLINE is set"):
        zoo.alias("ppo:1", "best")
    offline.cache.prune(0)
    with pytest.raises(StoreUnavailable, match=r"ppo:2.*lacks 1 of 1 blobs .*bytes"):
        zoo.load("ppo:2")


def test_offline_of_what_was_never_seen_says_so(offline: Far, tmp_path: Path) -> None:
    zoo = offline.open(Cache(tmp_path / "empty"))
    for call in (lambda: zoo.load("ppo"), zoo.list_models, lambda: zoo.load("ppo:1")):
        with pytest.raises(StoreUnavailable, match="BRAINSTORE_OFFLINE"):
            call()


@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
def test_offline_can_be_switched_off(offline: Far, monkeypatch: Any, value: str) -> None:
    monkeypatch.setenv("BRAINSTORE_OFFLINE", value)
    offline.store.around = None
    assert offline.open().load("ppo:3", as_numpy=True)[1].version == 3


# Settings, and a cache that cannot be written


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("20GB", 20 * 10**9),
        ("20 gb", 20 * 10**9),
        ("512MiB", 512 * MIB),
        ("1.5k", 1500),
        ("2Ti", 2 * 2**40),
        ("0", 0),
        (" 7B ", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(
    monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    assert parse_size(text) == size
    monkeypatch.setenv("BRAINSTORE_CACHE_MAX", text)
    assert cache_max_bytes() == size
    assert Cache(Path("unused")).max_bytes == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1.GB", "5 PB", "1e9", "GB", "٣GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadParams, match="expected a number of bytes"):
        parse_size(text)


def test_the_environment_says_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    assert Cache().folder == tmp_path / "here"
    monkeypatch.setenv("BRAINSTORE_CACHE", "~/there")
    assert cache_folder() == Path.home() / "there"
    monkeypatch.delenv("BRAINSTORE_CACHE")
    assert cache_folder().name == "brainstore"


def test_a_cache_that_cannot_be_written_is_named_with_a_way_out(far: Far, tmp_path: Path) -> None:
    far.open().save("ppo", params(1))
    (tmp_path / "file").write_text("in the way")
    zoo = far.open(Cache(tmp_path / "file"))
    with pytest.raises(StoreUnavailable, match=r"cache .*/file.*BRAINSTORE_CACHE"):
        zoo.load("ppo", as_numpy=True)
    # A save needs no cache.
    assert zoo.save("ppo", params(2)) == "ppo_v2"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_of_somebody_else_is_named_with_a_way_out(far: Far, tmp_path: Path) -> None:
    from brainstore import ReadOnly

    far.open().save("ppo", params(1))
    (tmp_path / "theirs").mkdir(mode=0o555)
    with pytest.raises(ReadOnly, match="BRAINSTORE_CACHE"):
        far.open(Cache(tmp_path / "theirs")).load("ppo", as_numpy=True)


def test_a_blob_that_is_gone_from_the_store_is_told_with_its_version(far: Far) -> None:
    zoo = far.open()
    zoo.save("ppo", params(1))
    (digest,) = zoo.manifest("ppo").blobs
    far.store.delete(blob_key(digest))
    with pytest.raises(NotFound, match=rf"blob {digest.short}… of ppo:1 is missing from .* fsck"):
        zoo.load("ppo", as_numpy=True)
