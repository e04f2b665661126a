"""What every store must do. A test class inherits `StoreContract` and says how to make one.

`raw_get` and `raw_set` go round the store under test, so that a mistake it makes both
when writing and when reading is seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from brainstore.errors import AlreadyExists, BadReference, Conflict, Corrupt, NotFound
from brainstore.storage.base import ABSENT, ANYTHING, Stat, Store, Token

LATER = "models/ppo/refs/latest.json"


@dataclass(frozen=True)
class Pieces:
    """A body in pieces, each of the given bytes."""

    parts: tuple[bytes, ...]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[memoryview]:
        return map(memoryview, self.parts)


def run_at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Return what `work(0)`, `work(1)`, … return, started at the same moment."""
    line = threading.Barrier(count)

    def run(number: int) -> object:
        line.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def try_put(store: Store, key: str, body: bytes, expect: object) -> bool:
    try:
        store.put(key, body, expect=expect)
    except (AlreadyExists, Conflict):
        return False
    return True


def increment(store: Store, key: str) -> None:
    """Add one to the number at `key` by compare-and-swap."""
    while True:
        found = store.get(key)
        if found is None:
            if try_put(store, key, b"1 by %d" % threading.get_ident(), ABSENT):
                return
        else:
            number = int(found.body.split()[0])
            body = b"%d by %d" % (number + 1, threading.get_ident())
            if try_put(store, key, body, found.token):
                return


def begin_upload(store: Any, key: str, body: bytes) -> dict[str, str]:
    """Send one part of an object to an `S3Store`, and no more; return what completes it."""
    target = {"Bucket": store.bucket, "Key": store._prefix + key}
    bucket = store.raw_fs
    upload = bucket.call_s3("create_multipart_upload", **target)
    target["UploadId"] = upload["UploadId"]
    bucket.call_s3("upload_part", PartNumber=1, Body=body, **target)
    return target


class StoreContract:
    """Inherit, give `store`, `raw_get` and `raw_set`."""

    races = True
    dates_leftovers = True
    third_unfinished = "registry.json"
    workers, increments = 5, 10

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    def reopen(self, store: Store) -> Store:
        """Return a second store of the same place."""
        raise NotImplementedError

    def raw_get(self, store: Store, key: str) -> bytes | None:
        raise NotImplementedError

    def raw_set(self, store: Store, key: str, body: bytes) -> None:
        raise NotImplementedError

    def leave_behind(self, store: Store, key: str, body: bytes) -> None:
        """Leave what a writer of `key` leaves that is killed before it has finished."""
        raise NotImplementedError

    def test_get_returns_what_was_stored_by_others(self, store: Store) -> None:
        self.raw_set(store, "gc/state.json", b"hello")
        found = store.get("gc/state.json")
        assert found is not None
        assert found.body == b"hello"

    def test_put_stores_what_others_read(self, store: Store) -> None:
        token = store.put("gc/state.json", b"hello")
        assert self.raw_get(store, "gc/state.json") == b"hello"
        assert store.get("gc/state.json").token == token

    def test_what_is_not_there_is_none(self, store: Store) -> None:
        assert store.get("registry.json") is None
        assert store.stat("registry.json") is None
        assert store.settle("registry.json") is None
        assert store.get("models/nobody/refs/latest.json") is None
        assert list(store.list("models/")) == []
        store.delete("models/nobody/refs/latest.json")

    def test_a_range_of_nothing_is_not_found(self, store: Store) -> None:
        for start, stop in [(0, 5), (0, 0)]:
            with pytest.raises(NotFound, match="blobs/00/none"):
                store.get_range("blobs/00/none", start, stop)

    def test_a_range_is_exact(self, store: Store) -> None:
        self.raw_set(store, "blobs/00/b", bytes(range(100)))
        assert store.get_range("blobs/00/b", 0, 100) == bytes(range(100))
        assert store.get_range("blobs/00/b", 7, 9) == b"\x07\x08"
        assert store.get_range("blobs/00/b", 99, 100) == b"\x63"
        assert store.get_range("blobs/00/b", 5, 5) == b""

    @pytest.mark.parametrize(("start", "stop"), [(0, 101), (99, 101), (100, 101), (101, 101)])
    def test_a_range_past_the_end_is_corrupt(self, store: Store, start: int, stop: int) -> None:
        self.raw_set(store, "blobs/00/b", bytes(range(100)))
        with pytest.raises(Corrupt, match="blobs/00/b"):
            store.get_range("blobs/00/b", start, stop)

    def test_put_overwrites(self, store: Store) -> None:
        first = store.put("gc/state.json", b"a longer body")
        second = store.put("gc/state.json", b"short", expect=ANYTHING)
        assert first != second
        assert self.raw_get(store, "gc/state.json") == b"short"

    @pytest.mark.parametrize("expect", [ANYTHING, ABSENT])
    def test_a_body_in_pieces_is_stored_whole(self, store: Store, expect: object) -> None:
        body = Pieces((b"", b"one", b"", b"two" * 1000, b"x"))
        token = store.put("blobs/00/b", body, expect=expect)
        assert self.raw_get(store, "blobs/00/b") == b"one" + b"two" * 1000 + b"x"
        assert store.get("blobs/00/b").token == token

    @pytest.mark.parametrize("body", [b"", Pieces(()), Pieces((b"",))])
    def test_an_empty_body_is_a_body(self, store: Store, body: object) -> None:
        store.put("blobs/00/empty", body, expect=ABSENT)
        assert store.get("blobs/00/empty").body == b""
        assert store.stat("blobs/00/empty").size_bytes == 0

    def test_create_keeps_other_bytes(self, store: Store) -> None:
        self.raw_set(store, "models/m/v1/manifest.json", b"theirs")
        for body in (b"oursX!", b"ours, longer", b"", Pieces((b"the", b"irs!"))):
            with pytest.raises(AlreadyExists, match="manifest"):
                store.put("models/m/v1/manifest.json", body, expect=ABSENT)
        assert self.raw_get(store, "models/m/v1/manifest.json") == b"theirs"

    def test_create_of_the_same_bytes_counts_as_ours(self, store: Store) -> None:
        first = store.put("blobs/00/b", b"same", expect=ABSENT)
        assert store.put("blobs/00/b", b"same", expect=ABSENT) == first
        assert store.put("blobs/00/b", Pieces((b"sa", b"me")), expect=ABSENT) == first

    def test_swap_replaces_the_state_it_names(self, store: Store) -> None:
        token = store.put(LATER, b"one", expect=ABSENT)
        token = store.put(LATER, b"two", expect=token)
        token = store.put(LATER, Pieces((b"th", b"ree")), expect=token)
        assert self.raw_get(store, LATER) == b"three"
        assert store.get(LATER).token == token

    def test_a_stale_swap_changes_nothing(self, store: Store) -> None:
        stale = store.put(LATER, b"one")
        store.put(LATER, b"two", expect=stale)
        with pytest.raises(Conflict, match="latest"):
            store.put(LATER, b"three", expect=stale)
        assert self.raw_get(store, LATER) == b"two"

    def test_a_swap_of_a_missing_object_creates_nothing(self, store: Store) -> None:
        gone = store.put(LATER, b"one")
        store.delete(LATER)
        with pytest.raises(Conflict, match="gone"):
            store.put(LATER, b"two", expect=gone)
        with pytest.raises(Conflict, match="gone"):
            store.put("models/nobody/refs/latest.json", b"two", expect=gone)
        assert store.get(LATER) is None
        assert store.get("models/nobody/refs/latest.json") is None

    def test_a_token_comes_from_get_as_well(self, store: Store) -> None:
        self.raw_set(store, LATER, b"theirs")
        store.put(LATER, b"ours", expect=store.get(LATER).token)
        assert self.raw_get(store, LATER) == b"ours"

    def test_stat_tells_size_and_age(self, store: Store) -> None:
        self.raw_set(store, "blobs/00/b", b"12345")
        for found in (store.stat("blobs/00/b"), store.settle("blobs/00/b")):
            assert (found.key, found.size_bytes) == ("blobs/00/b", 5)
            assert abs(found.modified_at - time.time()) < 600

    def test_a_folder_is_no_object(self, store: Store) -> None:
        self.raw_set(store, "blobs/00/b", b"12345")
        assert store.stat("blobs/00") is None
        assert store.get("blobs/00") is None

    def test_list_yields_all_below_the_prefix_in_order(self, store: Store) -> None:
        keys = ["m/a-b/1", "m/a.b/1", "m/a/1", "m/a/2/3", "m/a0/1", "m/b", "m2/a", "registry.json"]
        for key in reversed(keys):
            self.raw_set(store, key, key.encode())
        assert [found.key for found in store.list("")] == keys
        assert [found.key for found in store.list("m/")] == keys[:6]
        assert [found.key for found in store.list("m/a/")] == keys[2:4]
        assert list(store.list("none/")) == []
        assert {found.size_bytes for found in store.list("m/a/")} == {5, 7}

    def test_deleted_is_gone(self, store: Store) -> None:
        store.put("blobs/00/b", b"1", expect=ABSENT)
        store.delete("blobs/00/b")
        assert store.get("blobs/00/b") is None
        assert list(store.list("")) == []
        store.delete("blobs/00/b")
        store.put("blobs/00/b", b"2", expect=ABSENT)
        assert self.raw_get(store, "blobs/00/b") == b"2"

    def test_nothing_but_the_objects_is_listed(self, store: Store) -> None:
        token = store.put(LATER, b"one", expect=ABSENT)
        store.put(LATER, b"two", expect=token)
        store.put(LATER, b"three")
        try_put(store, LATER, b"four", ABSENT)
        try_put(store, LATER, b"five", token)
        assert [found.key for found in store.list("")] == [LATER]

    def test_a_finished_write_leaves_nothing_behind(self, store: Store) -> None:
        token = store.put(LATER, b"one", expect=ABSENT)
        store.put(LATER, b"two", expect=token)
        store.put("blobs/00/b", Pieces((b"1", b"2")), expect=ABSENT)
        assert list(store.leftovers()) == []

    def test_what_an_unfinished_write_left_is_seen_and_discarded(self, store: Store) -> None:
        self.raw_set(store, "blobs/00/b", b"whole")
        for key in ("blobs/00/b", "blobs/00/c", self.third_unfinished):
            self.leave_behind(store, key, b"half")
        assert [found.key for found in store.list("")] == ["blobs/00/b"]
        found = list(store.leftovers())
        assert len({leftover.key for leftover in found}) == 3
        assert {leftover.size_bytes for leftover in found} <= {0, 4}
        if self.dates_leftovers:
            assert all(abs(leftover.modified_at - time.time()) < 600 for leftover in found)
        store.discard(found[0])
        assert sorted(each.key for each in store.leftovers()) == sorted(x.key for x in found[1:])
        for leftover in found:
            store.discard(leftover)
        assert list(store.leftovers()) == []
        assert self.raw_get(store, "blobs/00/b") == b"whole"

    @pytest.mark.parametrize(
        "key",
        ["blobs/00/b", "blobs/00/b?uploadId=", "", "blobs", "../.tmp-1", ".tmp-x/b"],
    )
    def test_what_is_no_leftover_is_not_discarded(self, store: Store, key: str) -> None:
        self.raw_set(store, "blobs/00/b", b"1")
        with pytest.raises((BadReference, NotFound)):
            store.discard(Stat(key, 1, 0.0))
        assert self.raw_get(store, "blobs/00/b") == b"1"

    def test_a_second_store_sees_it_at_once(self, store: Store) -> None:
        other = self.reopen(store)
        assert other.get(LATER) is None
        token = store.put(LATER, b"one", expect=ABSENT)
        assert other.get(LATER).body == b"one"
        assert [found.key for found in other.list("models/")] == [LATER]
        other.put(LATER, b"two", expect=token)
        assert store.get(LATER).body == b"two"
        assert store.stat(LATER).size_bytes == 3
        other.delete(LATER)
        assert store.get(LATER) is None
        assert list(store.list("")) == []
        other.close()

    def test_one_of_many_creates_wins(self, store: Store) -> None:
        self._require_races()
        won = run_at_once(8, lambda n: try_put(store, LATER, b"%d" % n, ABSENT))
        assert won.count(True) == 1
        assert self.raw_get(store, LATER) == b"%d" % won.index(True)

    def test_one_of_many_swaps_wins(self, store: Store) -> None:
        self._require_races()
        start: Token = store.put(LATER, b"start")
        won = run_at_once(8, lambda n: try_put(store, LATER, b"%d" % n, start))
        assert won.count(True) == 1
        assert self.raw_get(store, LATER) == b"%d" % won.index(True)

    def test_no_increment_is_lost(self, store: Store) -> None:
        self._require_races()
        run_at_once(
            self.workers, lambda _: [increment(store, LATER) for _ in range(self.increments)]
        )
        assert self.raw_get(store, LATER).split()[0] == b"%d" % (self.workers * self.increments)

    def test_readers_never_see_half_an_object(self, store: Store) -> None:
        self._require_races()
        bodies = [bytes([n]) * 50_000 for n in range(4)]
        store.put(LATER, bodies[0])

        def work(number: int) -> bool:
            if number < 2:
                for body in bodies:
                    store.put(LATER, body)
                return True
            return all(store.get(LATER).body in bodies for _ in range(8))

        assert all(run_at_once(4, work))

    def _require_races(self) -> None:
        if not self.races:
            pytest.skip("this server checks, then acts, without a lock")
