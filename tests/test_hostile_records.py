"""Records that somebody broke or forged: an error that says so, and a zoo as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ok, refused, run
from conftest import S3Place

from brainstore import BrainManager, BrainstoreError, Corrupt, NotFound, Unsupported
from brainstore.address import blob_key
from brainstore.fsck import fsck

FIRST, SECOND = "models/x/v1/manifest.json", "models/x/v2/manifest.json"
LATEST, PROD = "models/x/refs/latest.json", "models/x/refs/prod.json"

Change = Callable[[Any], None]


def params(value: float) -> dict[str, Any]:
    return {"enc": {"w": np.full((3, 2), value, np.float32)}}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    """A zoo on disk with x:1, which prod names, and x:2; the command line means it as well."""
    with opened(str(tmp_path / "zoo"), tmp_path, monkeypatch) as manager:
        yield manager


@pytest.fixture
def bucket(
    s3_by_environment: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BrainManager]:
    """The same in a bucket."""
    with opened(s3_by_environment.url, tmp_path, monkeypatch) as manager:
        yield manager


@contextmanager
def opened(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("BRAINSTORE_ZOO", url)
    with BrainManager(url) as writer:
        writer.save("x", params(1), metrics={"return": 1.0}, aliases=["prod"])
        writer.save("x", params(2), metrics={"return": 2.0})
        writer.zoo.registry.journal.fold()
    with BrainManager(url, cache=folder / "another cache") as reader:
        yield reader


def overwrite(zoo: BrainManager, key: str, change: Change | bytes | None) -> None:
    """Change the JSON under a key, put these bytes there, or remove it."""
    store = zoo.zoo.store
    if change is None:
        store.delete(key)
    elif isinstance(change, bytes):
        store.put(key, change)
    else:
        found = store.get(key)
        assert found is not None
        record = json.loads(found.body)
        change(record)
        store.put(key, json.dumps(record).encode())


def contents(zoo: BrainManager) -> dict[str, bytes]:
    """Everything in the zoo but what tells that somebody was at work."""
    store = zoo.zoo.store
    keys = [each.key for each in store.list("") if not each.key.startswith("intents/")]
    return {key: found.body for key in keys if (found := store.get(key))}


def setting(*path: Any, to: Any) -> Change:
    def change(record: Any) -> None:
        for step in path[:-1]:
            record = record[step]
        record[path[-1]] = to

    return change


LEAF = ("groups", "params", "leaves", 0)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (b"", 5),
        (b'{"kind":"manifest","format":1,"na', 5),
        (b"\xff\xfe\x00", 5),
        (b'{"a":' * 100_000, 5),
        (setting("format", to=2), 1),
        (setting("name", to="../../x"), 5),
        (setting("name", to="y"), 5),
        (setting("version", to=-1), 5),
        (setting("version", to=10**19), 5),
        (setting(*LEAF, "blob", to="blake3:../../../etc/passwd"), 5),
        (setting("meta", to=[]), 5),
        (setting("meta", "input_dim", to="wide"), 5),
        (setting("meta", "metrics", to={"return": "good"}), 5),
    ],
)
def test_a_manifest_that_is_none_is_refused_and_found(
    zoo: BrainManager, tmp_path: Path, change: Change | bytes, code: int
) -> None:
    check_manifest(zoo, change, Corrupt if code == 5 else Unsupported)
    refused(code, "show", "x:2")
    refused(code, "export", "x:2", tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (setting(*LEAF, "shape", to=[10**9]), Corrupt),
        (setting(*LEAF, "dtype", to="nope"), Corrupt),
        (setting(*LEAF, "entry", to="nope"), Corrupt),
        (setting("groups", "params", "structure", to={"a": "*", "b": "*"}), Corrupt),
        (setting("groups", "params", "structure", to=["os.system", "*"]), Corrupt),
        (setting("groups", to={}), NotFound),
        (setting("blobs", to={}), Corrupt),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_and_found(
    zoo: BrainManager, change: Change, error: type[BrainstoreError]
) -> None:
    check_manifest(zoo, change, error)


def check_manifest(zoo: BrainManager, change: Change | bytes, error: type[BrainstoreError]) -> None:
    overwrite(zoo, SECOND, change)
    before = contents(zoo)
    with pytest.raises(error):
        zoo.load("x:2", as_numpy=True)
    assert contents(zoo) == before
    follows = ("pointer", "index", "latest")
    assert [each for each in fsck(zoo.zoo) if each.kind not in follows]
    np.testing.assert_array_equal(zoo.load("x:1", as_numpy=True)[0]["enc"]["w"], 1)


def test_what_no_leaf_can_be_has_no_abstract_form(zoo: BrainManager) -> None:
    overwrite(zoo, SECOND, setting(*LEAF, "dtype", to="nope"))
    with pytest.raises(Corrupt, match="nope"):
        zoo.abstract("x:2")
    overwrite(zoo, SECOND, setting("groups", to={}))
    with pytest.raises(NotFound, match="params"):
        zoo.abstract("x:2")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (b'{"format":1,"name"', Corrupt),
        (setting("format", to=2), Unsupported),
        (setting("name", to="../x"), Corrupt),
        (setting("name", to="y"), Corrupt),
        (setting("ref", to="prod"), Corrupt),
        (setting("version", to=-1), Corrupt),
        (setting("digest", to="blake3:../../x"), Corrupt),
        (setting("newest", to=-5), Corrupt),
        (setting("newest", to=10**19), Corrupt),
        (setting("newest", to=10**18 - 1), Corrupt),
    ],
)
def test_a_bad_latest_is_refused_and_nothing_is_built_on_it(
    zoo: BrainManager, change: Change | bytes, error: type[BrainstoreError]
) -> None:
    overwrite(zoo, LATEST, change)
    before = contents(zoo)
    calls: list[Callable[[], object]] = [
        lambda: zoo.load("x"),
        lambda: zoo.get_latest("x"),
        lambda: zoo.save("x", params(3)),
        lambda: zoo.delete("x:1", force=True),
    ]
    for call in calls:
        with pytest.raises(error):
            call()
    refused(5 if error is Corrupt else 1, "show", "x")
    after = contents(zoo)
    assert after.keys() - before.keys() <= {key for key in after if key.startswith("blobs/")}
    assert before.items() <= after.items()
    assert any(each.where == LATEST for each in fsck(zoo.zoo))
    assert zoo.load("x:prod", as_numpy=True)[1].version == 1


def test_an_alias_that_cannot_be_read_stops_a_deletion_before_it_begins(zoo: BrainManager) -> None:
    overwrite(zoo, PROD, b"{")
    before = contents(zoo)
    for force in (False, True):
        with pytest.raises(Corrupt):
            zoo.delete("x:2", force=force)
    assert contents(zoo) == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (None, 5),
        (b'{"format":1,', 5),
        (setting("format", to=2), 1),
        (lambda record: record["models"].update({"../x_v1": {}}), 5),
        (
            lambda record: record["aliases"].update(
                {"../y": {"prod": {"version": 1, "generation": 1}}}
            ),
            5,
        ),
    ],
)
def test_a_bad_index_stops_lists_alone(
    zoo: BrainManager, change: Change | bytes | None, code: int
) -> None:
    overwrite(zoo, "registry.json", change)
    refused(code, "ls")
    with pytest.raises(BrainstoreError):
        zoo.list_models()
    ok("show", "x:2")
    assert zoo.load("x", as_numpy=True)[1].version == 2
    assert zoo.save("x", params(3)) == "x_v3"
    assert zoo.get_latest("x") == "x_v3"


def test_a_zoo_of_a_newer_format_is_read_and_not_written(zoo: BrainManager) -> None:
    overwrite(zoo, "brainstore.json", setting("format", to=2))
    overwrite(zoo, "gc/state.json", setting("format", to=2))
    before = contents(zoo)
    with pytest.raises(Unsupported, match="Upgrade"):
        zoo.save("x", params(3))
    assert contents(zoo) == before
    assert zoo.load("x", as_numpy=True)[1].version == 2


@pytest.mark.parametrize("size", [6, 2**18 + 1])
def test_one_flipped_byte_of_a_blob_is_told(zoo: BrainManager, tmp_path: Path, size: int) -> None:
    zoo.save("big", {"w": np.ones(size, np.float32)})
    [digest] = zoo.manifest("big").blobs
    found = zoo.zoo.store.get(blob_key(digest))
    assert found is not None
    zoo.zoo.store.put(blob_key(digest), found.body[:-1] + bytes([found.body[-1] ^ 1]))
    with pytest.raises(Corrupt, match=digest.short):
        zoo.load("big", verify=True, as_numpy=True)
    assert digest.short in refused(5, "export", "big", tmp_path / "plain")


HOSTILE_ROW = {
    "metrics": "many",
    "training_steps": "long",
    "new_bytes": "few",
    "input_dim": [1],
    "created_at": 5,
    "tags": 7,
    "config": 5,
}


def test_an_index_row_of_wrong_types_is_listed_without_them(zoo: BrainManager) -> None:
    overwrite(zoo, "registry.json", lambda record: record["models"]["x_v1"].update(HOSTILE_ROW))
    first, second = zoo.table("x")
    assert (first["version"], second["metrics"]) == (1, {"return": 2.0})
    assert not HOSTILE_ROW.keys() & first.keys()
    best = zoo.best("x", "return")
    assert best is not None
    assert best["version"] == 2
    assert "x" in zoo._repr_html_()
    for arguments in (["ls"], ["ls", "--sort", "-metrics.return"], ["ls", "--where", "tags=7"]):
        ok(*arguments)


@pytest.mark.parametrize(
    "meta", [{"metrics": 5}, {"training_steps": "long"}, {"tags": [1]}, {"config": [1]}]
)
def test_metadata_of_wrong_types_is_damage_and_no_traceback(
    zoo: BrainManager, meta: dict[str, Any]
) -> None:
    overwrite(zoo, FIRST, lambda record: record["meta"].update(meta))
    assert "x:1" in refused(5, "show", "x:1")
    assert next(iter(meta)) in refused(5, "diff", "x:1", "x:2")


def test_text_from_records_cannot_steer_a_terminal(zoo: BrainManager) -> None:
    zoo.save("noted", params(1), notes="\x1b[31mred\u202e", tags=["\x07bell"])
    zoo.alias("noted:1", "prod", why="\x1b[2J")
    zoo.delete("x:2", why="\x1b]0;title\x07")
    shown = ok("show", "noted") + ok("ls", "--columns", "name,notes,tags") + ok("log")
    told = run("show", "x:2").stderr
    assert "\\x1b" in shown
    assert "\\x1b" in told
    assert not set("\x1b\x07\u202e") & set(shown + told)


@pytest.mark.s3
def test_a_bucket_is_as_careful(bucket: BrainManager, tmp_path: Path) -> None:
    good = contents(bucket)

    def mended(key: str, change: Change | bytes | None) -> None:
        for each, body in good.items():
            bucket.zoo.store.put(each, body)
        overwrite(bucket, key, change)

    for change in (b"{", setting("name", to="../x"), setting(*LEAF, "digest", to="blake3:..")):
        mended(SECOND, change)
        refused(5, "export", "x:2", tmp_path / "plain")
    for change in (b"{", setting("version", to=-1), setting("newest", to=10**19)):
        mended(LATEST, change)
        with pytest.raises(Corrupt):
            bucket.save("x", params(3))
        refused(5, "show", "x")
    mended("registry.json", None)
    refused(5, "ls")
    [digest] = bucket.manifest("x:2").blobs
    mended(blob_key(digest), good[blob_key(digest)][:-1] + b"?")
    refused(5, "export", "x:2", tmp_path / "plain")
    mended(SECOND, setting("format", to=2))
    refused(1, "show", "x:2")
