"""Wrong input: one clear error of the tree, its exit code, and a zoo that stays as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused, run
from conftest import S3Place
from flax import nnx
from zoos import objects

from brainstore import BadParams, BadReference, BrainManager, BrainstoreError, NotFound

PARAMS = {"enc": {"w": np.ones((3, 2), np.float32)}}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    """A zoo with x:1 and x:2, which prod names; it must be the same after the test."""
    with guarded(str(tmp_path / "zoo"), tmp_path, monkeypatch) as manager:
        yield manager


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def any_zoo(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BrainManager]:
    """The same, on disk or in a bucket."""
    url = str(tmp_path / "zoo")
    if request.param == "s3":
        place: S3Place = request.getfixturevalue("s3_by_environment")
        url = place.url
    with guarded(url, tmp_path, monkeypatch) as manager:
        yield manager


@contextmanager
def guarded(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("BRAINSTORE_ZOO", url)
    monkeypatch.chdir(folder)
    np.savez("w.npz", w=np.ones(2, np.float32))
    with BrainManager(url) as writer:
        writer.save("x", PARAMS)
        writer.save("x", PARAMS, aliases=["prod"])
    with BrainManager(url) as manager:
        before = objects(manager)
        yield manager
        assert objects(manager) == before


NAMES = [
    "..", "../x", "a/../b", "/a", "a/", "a//b", "Abc", "a b", "", "a\nb", "a\x00b", "a\x1b[31m",
    "a" * 300, "con", "nul.txt", "a/com1", "refs", "v3", "x_v3", ".a", "a:b", "a\\b", "\u00e4",
]  # fmt: skip


def test_names_that_are_none_are_usage(any_zoo: BrainManager) -> None:
    for name in NAMES:
        with pytest.raises(BadReference, match="name"):
            any_zoo.save(name, PARAMS)
        if "\x00" not in name:
            refused(2, "save", "--", name, "w.npz")
            refused(2, "ls", "--", name)


REFERENCES = [
    "x:", ":3", "x:0", "x:-1", "x:1:2", "x:99999999999999999999", "x@", "x@blake3:zz", "x:prod~",
    "x:prod~0", "x:PROD", "::x", "x::", "s3://team/zoo/x", "nosuch://place::x", "Abc", "../x",
]  # fmt: skip


def test_references_that_do_not_parse_are_usage(any_zoo: BrainManager) -> None:
    for reference in REFERENCES:
        with pytest.raises((BadReference, BadParams)):
            any_zoo.load(reference)
        refused(2, "show", reference)
        refused(2, "rm", "--yes", reference)


def test_a_place_that_is_taken_for_a_reference_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadReference, match="s3://team/zoo::x"):
        BrainManager(tmp_path).load("s3://team/zoo/x")


ABSENT = ["y", "x:9", "x:nope", "x:prod~5", "x:2@blake3:00000000", "x@blake3:00000000"]


def test_what_is_not_there_is_not_found(any_zoo: BrainManager) -> None:
    for reference in ABSENT:
        with pytest.raises(NotFound):
            any_zoo.load(reference)
        refused(3, "show", reference)
    with pytest.raises(NotFound, match="nope"):
        any_zoo.load("x#nope")


def test_a_version_is_named_once_and_is_no_pytree(any_zoo: BrainManager) -> None:
    with pytest.raises(BadReference, match="already"):
        any_zoo.load("x:prod", version=2)
    with pytest.raises(BadReference, match="did you mean target="):
        any_zoo.load("x", PARAMS)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"enc": {"w": "text"}}, "enc/w"),
        ({"enc": {"w": np.array([object()])}}, "enc/w"),
        ({"enc": [np.ones(2), len]}, "enc/1"),
        ({}, "no leaf"),
        ({"enc": {}}, "no leaf"),
        (None, "no leaf"),
    ],
)
def test_params_that_cannot_be_stored_are_told_by_path(
    zoo: BrainManager, params: Any, told: str
) -> None:
    with pytest.raises(BadParams, match=told):
        zoo.save("x", params)


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def endless() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["a"] = found
    return found


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        (5, "BrainMeta, a dict"),
        ("text", "BrainMeta, a dict"),
        ({"nope": 1}, "nope"),
        ({"input_dim": "wide"}, "input_dim"),
        ({"metrics": {"return": "good"}}, "return"),
        ({"metrics": 5}, "metrics"),
        ({"tags": "abc"}, "tags"),
        ({"config": {"w": np.ones(3)}}, "config"),
        ({"config": endless()}, "levels"),
        ({"config": nested(200)}, "levels"),
        ({"config": {"$float": "nan"}}, r"\$float"),
        ({"config": {"a": [{"$float": "nan"}]}}, r"\$float"),
    ],
)
def test_meta_of_the_wrong_form_is_told_by_its_field(
    zoo: BrainManager, meta: Any, told: str
) -> None:
    with pytest.raises(BadParams, match=told):
        zoo.save("x", PARAMS, meta)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "table of fields"),
        ("{", "line 1"),
        ("[" * 100_000, "nested too deep"),
        ('{"metrics": 5}', "metrics"),
        ('{"config": [1]}', "config"),
        ('{"tags": "abc"}', "tags"),
        ('{"input_dim": "wide"}', "input_dim"),
    ],
)
def test_a_meta_file_of_the_wrong_form_is_usage(zoo: BrainManager, text: str, told: str) -> None:
    Path("meta.json").write_text(text)
    result = run("save", "x", "w.npz", "--meta", "meta.json", "--metric", "a=1", "--tag", "t")
    assert result.exit_code == 2
    assert told in result.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda zoo: zoo.delete("x:1#enc"),
        lambda zoo: zoo.undelete("x:1#enc"),
        lambda zoo: zoo.alias("x:1#enc", "candidate"),
        lambda zoo: zoo.export("x:1#enc", "plain"),
    ],
)
def test_a_part_of_the_params_is_not_taken_for_the_version(
    zoo: BrainManager, call: Callable[[BrainManager], object]
) -> None:
    with pytest.raises(BadReference, match="drop '#'"):
        call(zoo)


def test_the_command_line_takes_no_part_for_the_version(zoo: BrainManager) -> None:
    for arguments in (["rm", "--yes"], ["rm", "--dry-run"], ["undelete"]):
        refused(2, *arguments, "x:1#enc")
    refused(2, "alias", "x:1#enc", "candidate")
    refused(2, "export", "x:1#enc", "plain")


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda zoo: zoo.alias("x:1", "prod", "first"), BadReference, "expected"),
        (lambda zoo: zoo.alias("x:1", "prod", -1), BadReference, "expected"),
        (lambda zoo: zoo.table(where=5), BadParams, "where"),
        (lambda zoo: zoo.load_into(5, "x"), BadParams, "nnx Module"),
        (lambda zoo: zoo.undelete("x"), BadReference, "which version"),
        (lambda zoo: zoo.import_file("nope.npz", "y"), BadParams, "no such file"),
        (lambda zoo: zoo.import_file("nope.safetensors", "y"), BadParams, "no such file"),
        (lambda zoo: zoo.export("x", "w.npz"), BadParams, "is no folder"),
        (lambda zoo: zoo.save("x", PARAMS, files={"a": "."}), BadParams, "is a folder"),
        (lambda zoo: BrainManager("a\x00b"), BadParams, "store"),
        (lambda zoo: BrainManager(("x",)), BadParams, "store"),
        (lambda zoo: BrainManager("s3://No_Such!/a").list_models(), BadParams, "No_Such!"),
    ],
)
def test_arguments_of_the_wrong_form_are_told(
    zoo: BrainManager,
    call: Callable[[BrainManager], object],
    error: type[BrainstoreError],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        call(zoo)


def test_a_module_without_variables_of_its_own_is_filled(tmp_path: Path) -> None:
    zoo = BrainManager(tmp_path)
    module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    zoo.save("linear", module)
    assert zoo.load_into(module, "linear").name == "linear"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--zoo", "", "ls"], "--zoo"),
        (["undelete", "x"], "which version"),
        (["alias", "x:1", "prod", "--expect", "-1"], "expected"),
        (["export", "x", "w.npz"], "is no folder"),
    ],
)
def test_the_command_line_tells_wrong_usage(
    zoo: BrainManager, arguments: list[str], told: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_the_demo_says_what_it_lacks() -> None:
    code = "import sys; sys.modules['optax'] = None; sys.argv[1:] = ['demo']\n"
    code += "from brainstore.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the demo needs optax")
    assert "brainstore[demo]" in done.stderr


def test_meta_survives_what_json_has_no_word_for(tmp_path: Path) -> None:
    zoo = BrainManager(tmp_path)
    config = {"inf": float("inf"), "big": 2**70, "deep": nested(50), "$float": "text"}
    zoo.save("x", PARAMS, config=config)
    assert zoo.load("x", as_numpy=True)[1].config == config
    assert json.loads(run("show", "--zoo", tmp_path, "x", "--json").stdout)["name"] == "x"
