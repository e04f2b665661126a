"""Every kind of store against the contract, and how `open_store` chooses one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from aiobotocore.session import AioSession
from conftest import S3Place
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from store_contract import StoreContract, begin_upload

from brainstore.errors import BadParams, BadReference, Unsupported
from brainstore.storage import open_store
from brainstore.storage.base import ABSENT, Store
from brainstore.storage.generic import GenericStore
from brainstore.storage.local import LocalStore
from brainstore.storage.memory import MemoryStore
from brainstore.storage.s3 import S3Store


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return MemoryStore(f"memory://{tmp_path}")

    def reopen(self, store: Store) -> Store:
        return open_store(store.url)

    def raw_get(self, store: MemoryStore, key: str) -> bytes | None:
        return store._shelf.objects[key][0]

    def raw_set(self, store: MemoryStore, key: str, body: bytes) -> None:
        store._shelf.objects[key] = (body, time.time())

    def leave_behind(self, store: MemoryStore, key: str, body: bytes) -> None:
        pytest.skip("what a process holds in memory ends with it")


class TestLocal(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "deep" / "zoo")

    def reopen(self, store: Store) -> Store:
        return open_store(store.url)

    def raw_get(self, store: LocalStore, key: str) -> bytes | None:
        return (store.root / key).read_bytes()

    def raw_set(self, store: LocalStore, key: str, body: bytes) -> None:
        (store.root / key).parent.mkdir(parents=True, exist_ok=True)
        (store.root / key).write_bytes(body)

    def leave_behind(self, store: LocalStore, key: str, body: bytes) -> None:
        folder = (store.root / key).parent
        self.raw_set(
            store, str(folder.relative_to(store.root) / f".tmp-{len(key)}-{key[-1]}"), body
        )


class _Generic(StoreContract):
    def reopen(self, store: GenericStore) -> Store:
        pytest.skip("nobody else may open what has a single writer")

    def raw_get(self, store: GenericStore, key: str) -> bytes | None:
        return store._fs.cat_file(f"{store._root}/{key}")

    def raw_set(self, store: GenericStore, key: str, body: bytes) -> None:
        path = f"{store._root}/{key}"
        store._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        store._fs.pipe_file(path, body)

    def leave_behind(self, store: GenericStore, key: str, body: bytes) -> None:
        self.raw_set(store, f"{key.rpartition('/')[0]}/.tmp-{key[-1]}".lstrip("/"), body)


class TestGenericOnDisk(_Generic):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return GenericStore(LocalFileSystem(), str(tmp_path / "zoo"), single_writer=True)


class TestGenericInFolder(_Generic):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        fs = DirFileSystem(path=str(tmp_path), fs=LocalFileSystem())
        return open_store((fs, "zoo"), single_writer=True)


class TestGenericInMemory(_Generic):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return GenericStore(MemoryFileSystem(), str(tmp_path), single_writer=True)


# Making a session reads megabytes of JSON; the tests share one.
_SESSION = AioSession()


@contextmanager
def _opened(place: S3Place) -> Iterator[Store]:
    options = {**place.storage_options, "session": _SESSION}
    store = open_store(place.url, options)
    store.raw_fs = fsspec.filesystem("s3", **options)
    yield store
    store.close()


class _S3(StoreContract):
    third_unfinished = "damaged/c"  # records go in one request

    def reopen(self, store: S3Store) -> Store:
        return open_store((store.raw_fs, store.url))

    def raw_get(self, store: S3Store, key: str) -> bytes | None:
        return store.raw_fs.cat_file(f"{store.url}/{key}")

    def raw_set(self, store: S3Store, key: str, body: bytes) -> None:
        store.raw_fs.pipe_file(f"{store.url}/{key}", body)

    def leave_behind(self, store: S3Store, key: str, body: bytes) -> None:
        begin_upload(store, key, body)


class TestSeaweed(_S3):
    @pytest.fixture
    def store(self, s3_place: S3Place) -> Iterator[Store]:
        with _opened(s3_place) as store:
            yield store


class TestMoto(_S3):
    races = False
    dates_leftovers = False

    @pytest.fixture
    def store(self, moto_place: S3Place) -> Iterator[Store]:
        with _opened(moto_place) as store:
            yield store


def test_a_path_or_file_url_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    opened = [open_store(where) for where in ("zoo", tmp_path / "zoo", f"file://{tmp_path}/zoo")]
    assert {store.root for store in opened} == {tmp_path / "zoo"}
    assert open_store("~/zoo").url == "/home/somebody/zoo"
    assert isinstance(open_store((LocalFileSystem(), str(tmp_path))), LocalStore)
    assert not list(tmp_path.iterdir())


def test_a_store_is_given_back() -> None:
    store = MemoryStore()
    assert open_store(store) is store


def test_memory_urls_of_one_name_are_one_store() -> None:
    open_store("memory://same").put("k", b"1")
    assert open_store("memory://same/").get("k").body == b"1"
    assert open_store("memory://other").get("k") is None
    assert MemoryStore().get("k") is None


def test_a_bucket_needs_a_name() -> None:
    with pytest.raises(BadReference, match="s3://bucket"):
        open_store("s3:///prefix")


def test_unknown_urls_and_options_are_refused() -> None:
    with pytest.raises(BadParams, match="nosuch"):
        open_store("nosuch://place")
    with pytest.raises(BadParams, match="expected a path"):
        open_store("")
    with pytest.raises(BadParams, match="no_such_option"):
        open_store("s3://bucket", {"no_such_option": 1})


def test_s3_without_s3fs_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("brainstore.storage.s3")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(Unsupported, match="brainstore\\[s3\\]"):
        open_store("s3://bucket")


def test_an_s3_filesystem_object_keeps_its_options() -> None:
    fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url="http://127.0.0.1:1")
    store = open_store((fs, "bucket/some/zoo"))
    assert isinstance(store, S3Store)
    assert store.url == "s3://bucket/some/zoo"
    assert store._clients._ordinary_fs.endpoint_url == "http://127.0.0.1:1"


def test_other_filesystems_are_read_but_not_shared(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"1")
    store = open_store((DirFileSystem(path=str(tmp_path), fs=LocalFileSystem()), ""))
    assert store.get("k").body == b"1"
    for expect in (ABSENT, store.get("k").token):
        with pytest.raises(Unsupported, match=r"DirFileSystem .*single_writer"):
            store.put("k", b"2", expect=expect)
    with pytest.raises(Unsupported, match="single_writer"):
        store.delete("k")
    assert (tmp_path / "k").read_bytes() == b"1"


def test_opening_a_folder_imports_neither_fsspec_nor_numpy(tmp_path: Path) -> None:
    program = f"""
import sys
from brainstore.storage import open_store
open_store({str(tmp_path)!r}).put("k", b"1")
print([name for name in ("fsspec", "numpy", "asyncio", "s3fs", "botocore") if name in sys.modules])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert ran.stdout.strip() == "[]"
