"""S3 when replies get lost, servers stall or refuse, and objects are large."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from conftest import S3Place
from faulty_proxy import (
    Exchange,
    FaultyProxy,
    answer_instead,
    faulty_proxy,
    go_down,
    lose_reply,
    lose_reply_then,
    lose_request,
    reply_with,
)
from store_contract import LATER, Pieces, begin_upload

from brainstore.address import Alias, Fact, Name, new_ulid
from brainstore.errors import (
    AlreadyExists,
    Conflict,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)
from brainstore.storage import open_store, s3_upload
from brainstore.storage.base import ABSENT, ANYTHING, Expect, Store
from brainstore.storage.s3 import S3Store
from brainstore.storage.s3_upload import PART_BYTES, part_size, split

MIB = 1 << 20


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pause(attempt: int) -> None:
        await asyncio.sleep(0.01 * attempt)

    monkeypatch.setattr("brainstore.storage.s3._pause", pause)


@pytest.fixture
def store(s3_place: S3Place) -> Iterator[S3Store]:
    store = open_store(s3_place.url, s3_place.storage_options)
    yield store
    store.close()


@pytest.fixture
def proxy(s3_place: S3Place) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_place.storage_options["endpoint_url"]) as proxy:
        yield proxy


@pytest.fixture
def behind(s3_place: S3Place, proxy: FaultyProxy) -> Iterator[S3Store]:
    """The same place as `store`, through the proxy."""
    options = {**s3_place.with_one_attempt, "endpoint_url": proxy.endpoint_url}
    store = open_store(s3_place.url, options)
    yield store
    store.close()


LOST = {
    "lost reply": lose_reply,
    "lost request": lose_request,
    "500 though done": reply_with(500, "InternalError", forwarded=True),
    "503": reply_with(503, "SlowDown", forwarded=False),
    "200 with an error": reply_with(200, "InternalError", forwarded=True),
    "409 though done": reply_with(409, "ConditionalRequestConflict", forwarded=True),
    "409": reply_with(409, "ConditionalRequestConflict", forwarded=False),
    "412 though done": reply_with(412, "PreconditionFailed", forwarded=True),
}


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_create_whose_reply_is_lost_succeeds(
    store: Store, behind: Store, proxy: FaultyProxy, fault: object
) -> None:
    proxy.faults = [fault]
    token = behind.put(LATER, b"ours", expect=ABSENT)
    assert store.get(LATER).body == b"ours"
    assert store.get(LATER).token == token
    assert not proxy.faults


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_swap_whose_reply_is_lost_succeeds(
    store: Store, behind: Store, proxy: FaultyProxy, fault: object
) -> None:
    before = store.put(LATER, b"before")
    proxy.faults = [fault]
    token = behind.put(LATER, b"ours", expect=before)
    assert store.get(LATER).body == b"ours"
    assert store.get(LATER).token == token
    assert not proxy.faults


def test_a_lost_create_that_another_writer_replaced_is_not_reported_as_ours(
    store: Store, behind: Store, proxy: FaultyProxy
) -> None:
    proxy.faults = [lose_reply_then(lambda: store.put(LATER, b"theirs"))]
    with pytest.raises(AlreadyExists):
        behind.put(LATER, b"ours", expect=ABSENT)
    assert store.get(LATER).body == b"theirs"


def test_a_lost_swap_that_another_writer_replaced_is_a_conflict(
    store: Store, behind: Store, proxy: FaultyProxy
) -> None:
    before = store.put(LATER, b"before")
    proxy.faults = [lose_reply_then(lambda: store.put(LATER, b"theirs"))]
    with pytest.raises(Conflict):
        behind.put(LATER, b"ours", expect=before)
    assert store.get(LATER).body == b"theirs"


def test_a_lost_swap_whose_object_was_removed_creates_nothing(
    store: Store, behind: Store, proxy: FaultyProxy
) -> None:
    before = store.put(LATER, b"before")
    proxy.faults = [lose_reply_then(lambda: store.delete(LATER))]
    with pytest.raises(Conflict, match="gone"):
        behind.put(LATER, b"ours", expect=before)
    assert store.get(LATER) is None


def test_a_swap_answered_with_404_is_a_conflict(
    store: Store, behind: Store, proxy: FaultyProxy
) -> None:
    before = store.put(LATER, b"before")
    store.delete(LATER)
    proxy.faults = [reply_with(404, "NoSuchKey", forwarded=False)]
    with pytest.raises(Conflict, match="gone"):
        behind.put(LATER, b"ours", expect=before)


@pytest.mark.parametrize("is_swap", [False, True])
def test_an_outcome_that_cannot_be_read_back_is_unknown(
    store: Store, behind: Store, proxy: FaultyProxy, is_swap: bool
) -> None:
    expect = store.put(LATER, b"before") if is_swap else ABSENT
    proxy.faults = [go_down]
    with pytest.raises(StoreUnavailable, match="unknown") as caught:
        behind.put(LATER, b"ours", expect=expect)
    assert caught.value.outcome_unknown
    assert store.get(LATER).body == b"ours"


@pytest.mark.parametrize("is_swap", [False, True])
@pytest.mark.parametrize(
    ("status", "code"),
    [(409, "ConditionalRequestConflict"), (412, "PreconditionFailed"), (404, "NoSuchUpload")],
)
def test_a_refusal_that_may_hide_our_success_is_unknown_when_it_cannot_be_read_back(
    store: Store, behind: Store, proxy: FaultyProxy, is_swap: bool, status: int, code: str
) -> None:
    expect = store.put(LATER, b"before") if is_swap else ABSENT

    def refuse_and_go_down(exchange: Exchange) -> None:
        reply_with(status, code, forwarded=True)(exchange)
        proxy.is_down = True

    proxy.faults = [refuse_and_go_down]
    with pytest.raises(StoreUnavailable, match=r"connection failed.*unknown") as caught:
        behind.put(LATER, b"ours", expect=expect)
    assert caught.value.outcome_unknown
    assert store.get(LATER).body == b"ours"


def test_a_conditional_write_goes_out_once_before_it_is_read_back(
    behind: Store, proxy: FaultyProxy
) -> None:
    behind.put("gc/state.json", b"a connection is open by now", expect=ABSENT)
    proxy.seen.clear()
    proxy.faults = [lose_reply]
    behind.put(LATER, b"ours", expect=ABSENT)
    assert [seen.split()[0] for seen in proxy.seen] == ["PUT", "GET"]


def test_a_denial_after_a_broken_connection_does_not_hide_that_ours_was_written(
    store: Store, behind: Store, proxy: FaultyProxy
) -> None:
    denied = reply_with(403, "AccessDenied", forwarded=False)
    proxy.faults = [lose_reply, *[denied] * 8]
    behind.put(LATER, b"ours", expect=ABSENT)
    assert store.get(LATER).body == b"ours"


@pytest.mark.parametrize("reply", [(501, "NotImplemented"), (400, "If-None-Match is unknown")])
def test_a_server_without_conditions_is_refused(
    behind: Store, store: Store, proxy: FaultyProxy, reply: tuple[int, str]
) -> None:
    proxy.faults = [reply_with(*reply, forwarded=False)]
    with pytest.raises(Unsupported, match="conditional writes"):
        behind.put(LATER, b"ours", expect=ABSENT)
    assert store.get(LATER) is None


def test_denied_writes_are_read_only(behind: Store, proxy: FaultyProxy) -> None:
    proxy.faults = [reply_with(403, "AccessDenied", forwarded=False)]
    with pytest.raises(ReadOnly, match="may not write"):
        behind.put(LATER, b"ours", expect=ABSENT)


def test_a_denial_after_a_lost_reply_does_not_claim_that_nothing_was_written(
    behind: Store, proxy: FaultyProxy
) -> None:
    denied = reply_with(403, "AccessDenied", forwarded=False)
    proxy.faults = [lose_request, *[denied] * 8]
    with pytest.raises(StoreUnavailable, match="unknown") as caught:
        behind.put(LATER, b"ours", expect=ABSENT)
    assert caught.value.outcome_unknown


@pytest.mark.parametrize("expect", [ANYTHING, ABSENT])
def test_a_large_body_goes_in_parts_and_comes_back_equal(store: S3Store, expect: object) -> None:
    block = os.urandom(MIB)
    body = Pieces(tuple(bytes([n]) + block for n in range(40)))
    token = store.put("blobs/00/large", body, expect=expect)
    assert store.requests["UploadPart"] == 6
    assert store.get("blobs/00/large").body == b"".join(body.parts)
    assert store.stat("blobs/00/large").size_bytes == body.size_bytes
    assert store.get("blobs/00/large").token == token


def test_a_large_create_keeps_other_bytes(store: S3Store) -> None:
    body = Pieces((bytes(MIB),) * 17)
    first = store.put("blobs/00/large", body, expect=ABSENT)
    assert store.put("blobs/00/large", body, expect=ABSENT) == first
    with pytest.raises(AlreadyExists):
        store.put("blobs/00/large", Pieces((b"\1" * MIB,) * 17), expect=ABSENT)
    assert store.get("blobs/00/large").body == bytes(17 * MIB)
    assert _unfinished(store) == []


@pytest.mark.parametrize(
    "fault",
    [
        lose_reply,
        lose_request,
        reply_with(200, "InternalError", forwarded=True),
        reply_with(404, "NoSuchUpload", forwarded=True),
        reply_with(404, "NoSuchUpload", forwarded=False),
    ],
    ids=["lost reply", "lost request", "200 with an error", "no upload though done", "no upload"],
)
def test_a_large_create_whose_reply_is_lost_succeeds(
    store: S3Store, behind: S3Store, proxy: FaultyProxy, fault: object
) -> None:
    proxy.faults = [fault]
    body = Pieces((os.urandom(17 * MIB),))
    token = behind.put("blobs/00/large", body, expect=ABSENT)
    assert store.get("blobs/00/large").token == token
    assert not proxy.faults


def test_an_interrupted_upload_leaves_nothing(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()

    def slow(body: object, part_bytes: int) -> Iterator[bytes]:
        yield bytes(part_bytes)
        started.set()
        time.sleep(1)
        yield bytes(part_bytes)

    monkeypatch.setattr("brainstore.storage.s3_upload.split", slow)
    main = threading.get_ident()

    def press_ctrl_c() -> None:
        started.wait()
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=press_ctrl_c)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        store.put("blobs/00/large", Pieces((bytes(20 * MIB),)), expect=ABSENT)
    thread.join()
    assert store.get("blobs/00/large") is None
    assert _unfinished(store) == []
    assert store.requests["AbortMultipartUpload"] == 1


@pytest.fixture
def raw_store(store: S3Store, s3_place: S3Place) -> S3Store:
    store.raw_fs = fsspec.filesystem("s3", **s3_place.storage_options)
    return store


def test_an_upload_that_was_completed_before_it_is_discarded_stays(raw_store: S3Store) -> None:
    target = begin_upload(raw_store, "blobs/00/b", b"whole")
    [leftover] = raw_store.leftovers()
    assert leftover.key == f"blobs/00/b?uploadId={target['UploadId']}"
    part = {"PartNumber": 1, "ETag": hashlib.md5(b"whole").hexdigest()}
    raw_store.raw_fs.call_s3(
        "complete_multipart_upload", MultipartUpload={"Parts": [part]}, **target
    )
    raw_store.discard(leftover)
    assert raw_store.get("blobs/00/b").body == b"whole"


def test_uploads_of_others_in_the_bucket_are_none_of_ours(
    raw_store: S3Store, s3_place: S3Place
) -> None:
    beside = open_store(s3_place.url + "-beside", s3_place.storage_options)
    beside.raw_fs = raw_store.raw_fs
    begin_upload(beside, "blobs/00/b", b"half")
    # A zoo may share its folder, which may be all of the bucket.
    begin_upload(raw_store, "films/b", b"half")
    assert list(raw_store.leftovers()) == []
    assert [each.key.partition("?")[0] for each in beside.leftovers()] == ["blobs/00/b"]
    beside.close()


def test_pages_of_unfinished_uploads_are_joined(
    raw_store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        begin_upload(raw_store, f"blobs/00/{number}", b"half")
    client = raw_store._clients.ordinary
    ask = client.list_multipart_uploads
    monkeypatch.setattr(
        client, "list_multipart_uploads", lambda **arguments: ask(MaxUploads=2, **arguments)
    )
    found = [each.key.partition("?")[0] for each in raw_store.leftovers()]
    assert sorted(found) == [f"blobs/00/{number}" for number in range(5)]


def test_a_write_whose_leftover_is_discarded_begins_again(store: S3Store) -> None:
    discarded: list[str] = []

    class Body:
        size_bytes = 20 * MIB

        def __iter__(self) -> Iterator[memoryview]:
            yield memoryview(bytes(10 * MIB))
            for leftover in [] if discarded else store.leftovers():
                store.discard(leftover)
                discarded.append(leftover.key)
            yield memoryview(bytes(10 * MIB))

    store.put("blobs/00/large", Body(), expect=ABSENT)
    assert len(discarded) == 1
    assert store.stat("blobs/00/large").size_bytes == 20 * MIB
    assert list(store.leftovers()) == []


def _unfinished(store: S3Store) -> list[str]:
    uploads = store._clients.run(
        store._clients.ordinary.list_multipart_uploads(Bucket=store.bucket, Prefix=store._prefix)
    )
    return [upload["Key"] for upload in uploads.get("Uploads", ())]


def test_parts_grow_when_ten_thousand_are_too_few() -> None:
    assert part_size(40 * MIB) == PART_BYTES
    assert part_size(80_000 * MIB) == PART_BYTES
    assert part_size(80_001 * MIB) == 2 * PART_BYTES
    assert -(-(5 << 40) // part_size(5 << 40)) <= 10_000


def test_parts_are_of_one_size_and_keep_every_byte() -> None:
    body = Pieces((b"", b"abc", b"defghijkl", b"m", b""))
    assert list(split(body, 4)) == [b"abcd", b"efgh", b"ijkl", b"m"]


@pytest.mark.parametrize("expect", [ANYTHING, ABSENT], ids=["put", "create"])
def test_the_page_of_a_proxy_is_no_reply(
    behind: S3Store, proxy: FaultyProxy, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind.put(LATER, b"1")
    monkeypatch.setattr(proxy, "next_fault", lambda _: answer_instead)
    for call in (
        lambda: behind.get(LATER),
        lambda: behind.stat(LATER),
        lambda: list(behind.list("")),
        lambda: behind.delete(LATER),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    with pytest.raises(StoreUnavailable) as caught:
        behind.put("journal/new", b"1", expect=expect)
    assert caught.value.outcome_unknown


def test_the_page_of_a_proxy_is_not_taken_for_success(
    store: S3Store, behind: S3Store, proxy: FaultyProxy
) -> None:
    proxy.faults = [answer_instead]
    behind.put(LATER, b"1", expect=ABSENT)
    assert store.get(LATER).body == b"1"


def test_a_missing_key_costs_one_request(store: S3Store) -> None:
    assert store.get("registry.json") is None
    assert dict(store.requests) == {"GetObject": 1}


def test_pages_are_joined(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"journal/{n:02}.json" for n in range(7)]
    for key in keys:
        store.put(key, b"1")
    assert [found.key for found in store.list("journal/")] == keys
    first_page = S3Store._list_page

    async def short_pages(self: S3Store, prefix: str, marker: dict[str, str]) -> object:
        return await first_page(self, prefix, {**marker, "MaxKeys": 2})

    monkeypatch.setattr(S3Store, "_list_page", short_pages)
    before = store.requests["ListObjectsV2"]
    assert [found.key for found in store.list("journal/")] == keys
    assert store.requests["ListObjectsV2"] - before == 4


def test_a_listing_of_many_pages_has_every_key_as_it_was_stored(s3_place: S3Place) -> None:
    store, other = (
        open_store(url, s3_place.storage_options) for url in (s3_place.url, f"{s3_place.url}2")
    )
    names = [Name(name) for name in ("a", "a/b", "a-b", "a.b", "a_b", "team/x.y/z_1-2")]
    keys = [
        Fact(new_ulid(), "move", names[n % 6], n + 1, n + 1, Alias("prod.x-1")).key
        for n in range(1200)
    ]
    # The keys of a zoo have "+" and "~" in them; others may lie in the bucket, too.
    strange = [f"files/{c}x" for c in "=%&#:@;,$é'(!*"] + ["files/a b", "files/%2B+"]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda key: store.put(key, key.encode()), keys + strange))
    other.put("journal/x", b"1")
    assert [found.key for found in store.list("journal/")] == sorted(keys)
    assert [found.key for found in store.list("files/")] == sorted(strange)
    assert [found.key for found in other.list("")] == ["journal/x"]
    for key in [*strange, *keys[:6]]:
        found = store.get(key)
        assert found.body == key.encode()
        store.put(key, b"swapped", expect=found.token)
        assert store.stat(key).size_bytes == 7
        store.delete(key)
        assert store.get(key) is None
    store.close()
    other.close()


def test_four_parts_at_most_are_in_memory(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, flying, most = s3_upload.send_body, 0, 0

    async def watched(*arguments: object) -> object:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        try:
            return await real(*arguments)
        finally:
            flying -= 1

    monkeypatch.setattr(s3_upload, "send_body", watched)
    store.put("blobs/00/large", Pieces((bytes(MIB),) * 64), expect=ABSENT)
    assert store.requests["UploadPart"] == 8
    assert 1 < most <= 4
