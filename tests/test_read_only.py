"""A folder or bucket that may only be read, and credentials that are revoked in mid-work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bad_disk import BadDisk
from command_line import ok, run
from conftest import S3Place
from faulty_proxy import Fault, From, faulty_proxy, reply_with
from zoos import finish, opened, params, read_raw, same

from brainstore import BrainManager, BrainstoreError
from brainstore.cache import Cache
from brainstore.errors import ReadOnly, StoreUnavailable
from brainstore.fsck import fsck
from brainstore.garbage import collect
from brainstore.storage.memory import MemoryStore

AT_ONCE: dict[str, Any] = {"dry_run": False, "older_than_s": 0.0, "expiry_s": 0.0}


@dataclass(frozen=True)
class Place:
    """A zoo with ppo:1, which prod names, ppo:2, which is deleted, and ppo:3; and garbage.

    `reader` may only read it.
    """

    url: str
    writer: BrainManager
    reader: BrainManager


def fill(zoo: BrainManager) -> None:
    for seed in (1, 2, 3):
        zoo.save("ppo", params(seed))
    zoo.alias("ppo:1", "prod")
    zoo.delete("ppo:2")
    finish(zoo)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    url = str(tmp_path / "zoo")
    with opened(url) as writer, opened(url) as reader:
        fill(writer)
        with BadDisk(Path(url), errno.EROFS, at=0).mounted():
            yield Place(url, writer, reader)


@pytest.fixture
def bucket(
    s3_by_environment: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    place = s3_by_environment
    options = {**place.storage_options, "key": place.storage_options["key"] + "-reader"}
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    with opened(place.url) as writer, opened(place.url, storage_options=options) as reader:
        fill(writer)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
        yield Place(place.url, writer, reader)


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


CHANGES: dict[str, Callable[[BrainManager], object]] = {
    "save": lambda zoo: zoo.save("ppo", params(4)),
    "alias": lambda zoo: zoo.alias("ppo:3", "prod"),
    "unalias": lambda zoo: zoo.unalias("ppo", "prod"),
    "delete": lambda zoo: zoo.delete("ppo:3"),
    "undelete": lambda zoo: zoo.undelete("ppo:2"),
    "collect": lambda zoo: collect(zoo.zoo, **AT_ONCE),
}


def test_nothing_that_may_only_be_read_is_changed(place: Place) -> None:
    store = place.writer.zoo.store
    before = {stat.key: store.get(stat.key).body for stat in store.list("")}
    for work, change in CHANGES.items():
        with pytest.raises(ReadOnly) as caught:
            change(place.reader)
        assert place.url in str(caught.value), work
        if work == "save":
            assert "nothing was committed" in caught.value.__notes__[0]
    with opened(MemoryStore()) as other:
        other.save("ppo/new", params(5))
        with pytest.raises(ReadOnly):
            other.push(place.reader)
    finish(place.reader)
    assert {stat.key: store.get(stat.key).body for stat in store.list("")} == before


def test_what_may_only_be_read_is_read(place: Place) -> None:
    zoo = place.reader
    assert zoo.list_models() == ["ppo_v1", "ppo_v3"]
    assert same(zoo.load("ppo:prod", as_numpy=True)[0], params(1))
    assert same(zoo.load("ppo", as_numpy=True, verify=True)[0], params(3))
    assert zoo.get_latest("ppo") == "ppo_v3"
    assert [row["version"] for row in zoo.table()] == [1, 3]
    assert zoo.aliases("ppo") == {"prod": 1, "latest": 3}
    assert len(zoo.history("ppo")) > 3
    assert zoo.diff("ppo:1", "ppo:3")
    assert [finding for finding in fsck(zoo.zoo) if not finding.is_harmless] == []
    planned = collect(zoo.zoo, older_than_s=0)
    assert len(planned.blobs) == 1
    assert {reason.where for reason in zoo.why(planned.blobs[0].digest).reasons} == {"ppo:2"}
    assert "2 blobs stay" in ok("--zoo", place.url, "gc", "--older-than", "0s")
    assert "1 model, 2 versions" in run("--zoo", place.url, "doctor").stdout


@pytest.mark.s3
def test_a_bucket_that_may_only_be_read_is_not_repaired(bucket: Place) -> None:
    bucket.writer.zoo.store.delete("registry.json")
    with pytest.raises(ReadOnly, match="may not write"):
        fsck(bucket.reader.zoo, repair=True)
    assert bucket.writer.zoo.store.get("registry.json") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_read_and_not_written(tmp_path: Path) -> None:
    url = tmp_path / "zoo"
    with opened(url) as zoo:
        fill(zoo)
    folders = [url, *(path for path in url.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        with opened(url) as zoo:
            assert same(zoo.load("ppo", as_numpy=True)[0], params(3))
            for change in CHANGES.values():
                with pytest.raises(ReadOnly, match="Permission denied"):
                    change(zoo)
    finally:
        for path in folders:
            path.chmod(0o755)


# Credentials that are revoked while a save is under way, and given back later

REVOKED = {
    "AccessDenied": 403,
    "InvalidAccessKeyId": 403,
    "ExpiredToken": 400,
    "SignatureDoesNotMatch": 403,
}


def revoked(code: str) -> Fault:
    return reply_with(REVOKED[code], code, forwarded=False)


def saved_with_revoked(place: S3Place, first: int, cache: Path) -> str | Exception:
    """Save while the `first` request and all after it are denied; return what came of it."""
    with faulty_proxy(place.storage_options["endpoint_url"]) as proxy:
        options = {**place.storage_options, "endpoint_url": proxy.endpoint_url}
        proxy.weather = From(first, revoked(list(REVOKED)[first % len(REVOKED)]))
        with BrainManager(place.url, storage_options=options, cache=Cache(cache)) as zoo:
            try:
                return zoo.save(cache.name, params(first + 100))
            except BrainstoreError as error:
                return error


@pytest.mark.s3
@pytest.mark.parametrize(
    "firsts",
    [(0, 2, 4, 5, 7), pytest.param(tuple(range(16)), marks=pytest.mark.soak)],
    ids=["some", "all"],
)
def test_credentials_revoked_in_a_save_are_told_and_leave_nothing_that_a_collection_does_not_remove(
    s3_place: S3Place, tmp_path: Path, firsts: tuple[int, ...], tally: Callable[..., None]
) -> None:
    names = [f"ppo{first}" for first in firsts]
    with BrainManager(
        s3_place.url, storage_options=s3_place.storage_options, cache=Cache(tmp_path / "cache")
    ) as zoo:
        zoo.init()
        with ThreadPoolExecutor(4) as threads:
            came = list(
                threads.map(
                    lambda first: saved_with_revoked(s3_place, first, tmp_path / f"ppo{first}"),
                    firsts,
                )
            )
        store = zoo.zoo.store
        live = {name for name, _ in read_raw(store).live}
        said = [assert_true(result, name in live) for result, name in zip(came, names, strict=True)]
        assert said[0] == "nothing was committed"
        tally(
            "credentials revoked from any request of a save on",
            cases=len(said) - said.count("returned"),
            lost=0,
            unknown=said.count("not known"),
        )
        collect(zoo.zoo, **AT_ONCE)
        found = read_raw(store)
        named = {digest for record in found.live.values() for digest in record["blobs"]}
        assert {"blake3:" + s.key.rpartition("/")[2] for s in store.list("blobs/")} == named
        assert list(store.list("intents/")) == []
        assert found.problems == []
        assert [finding for finding in fsck(zoo.zoo) if not finding.is_harmless] == []
        for name in names:
            zoo.save(name, params(1))
            assert same(zoo.load(name, as_numpy=True)[0], params(1))


def assert_true(came: str | Exception, is_there: bool) -> str:
    """What a save returned or said is so; return that in words."""
    if isinstance(came, str):
        assert is_there
        return "returned"
    assert isinstance(came, ReadOnly | StoreUnavailable)
    assert any(code in str(came) for code in REVOKED), came
    note = "".join(came.__notes__)
    for said, expected in {"is committed": True, "nothing was committed": False}.items():
        if said in note:
            assert is_there == expected, (came, note)
            return said
    assert "not known" in note
    return "not known"
