"""`doctor` tries a store: who we are there, what it can, its clock, its speed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import ok, parsed, run
from conftest import S3Place
from zoos import Call, Proceed, WrappedStore, params

from brainstore import BrainManager
from brainstore.cli.diagnosis import BAD, NOTE, OK, Check
from brainstore.cli.trials import Trials
from brainstore.errors import ReadOnly, StoreUnavailable, Unsupported
from brainstore.marker import require
from brainstore.storage import open_store
from brainstore.storage.base import Stat, Store
from brainstore.storage.memory import MemoryStore


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with BrainManager(tmp_path / "zoo") as zoo:
        zoo.save("ppo", params(1))
    return tmp_path / "zoo"


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def checks(*arguments: Any) -> dict[str, dict[str, Any]]:
    return {check["what"]: check for check in parsed("doctor", *arguments)}


def tried(store: Store, *, quick: bool = True, probe: bool = False) -> dict[str, Check]:
    found = require(store) if store.get("brainstore.json") else None
    return {each.what: each for each in Trials(store, found, quick=quick, probe=probe).run()}


def test_a_healthy_zoo_is_tried_in_all_ways_and_left_as_it_was(place: Path) -> None:
    before = files(place)
    found = checks("--zoo", place)
    for what in ("credentials", "abilities", "clock", "speed"):
        assert found[what]["state"] == OK, found[what]
    assert "may list, read, write and delete" in found["credentials"]["text"]
    assert "create, race of 16, swap; seen at" in found["abilities"]["text"]
    assert re.search(r"put [\d.]+ ms, get [\d.]+ ms .*/s up, .*/s down", found["speed"]["text"])
    assert files(place) == before


def test_quick_measures_no_speed(place: Path) -> None:
    assert "speed" not in checks("--quick", "--zoo", place)


def test_abilities_are_tried_one_by_one_when_asked_for(place: Path) -> None:
    before = files(place)
    found = checks("--quick", "--probe", "--zoo", place)
    tried = [what for what in found if what.startswith("ability ")]
    assert tried == [
        "ability create", "ability swap", "ability swap of what is gone",
        "ability race of creates", "ability race of swaps",
    ]  # fmt: skip
    assert "abilities" not in found
    assert files(place) == before


def test_a_place_that_is_no_zoo_yet_is_tried_too(tmp_path: Path) -> None:
    found = checks("--quick", "--zoo", tmp_path)
    assert found["format"]["state"] == NOTE
    assert found["ability create"]["state"] == OK
    assert files(tmp_path) == set()


def test_a_folder_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    found = checks("--zoo", tmp_path / "typo")
    assert found["trials"]["state"] == NOTE
    assert "--probe" in found["trials"]["fix"]
    assert files(tmp_path) == set()


class Careless(MemoryStore):
    """A store that ignores conditions, as some S3 servers do."""

    def _check(self, *_: object) -> None:
        return


def test_a_store_that_ignores_conditions_is_a_problem_with_each_ability_it_lacks() -> None:
    found = tried(Careless(), probe=True)
    bad = [what for what, check in found.items() if check.state == BAD]
    assert len(bad) == 5
    assert all(found[what].fix and found[what].code == 1 for what in bad)
    assert "the store accepted it" in found["ability create"].text
    assert found["clock"].state == OK


class Skewed(MemoryStore):
    skew_s = 0.0

    def stat(self, key: str) -> Stat | None:
        found = super().stat(key)
        return found and Stat(found.key, found.size_bytes, found.modified_at + self.skew_s)


@pytest.mark.parametrize(
    ("skew_s", "state", "told"),
    [(0, OK, "within 1 s"), (40, OK, "within 40 s"), (-7200, BAD, "7,200 s ahead of"),
     (90, BAD, "90 s behind")],
)  # fmt: skip
def test_a_clock_that_is_wrong_is_told_with_its_direction(
    skew_s: float, state: str, told: str
) -> None:
    store = Skewed()
    store.skew_s = skew_s
    clock = tried(store)["clock"]
    assert clock.state == state
    assert told in clock.text
    assert bool(clock.fix) == bool(clock.code) == (state == BAD)


def test_a_place_that_may_only_be_read_is_noted(place: Path) -> None:
    def around(call: Call, proceed: Proceed) -> Any:
        if call.method in ("put", "delete"):
            raise ReadOnly(f"{call.key}: these credentials may not write")
        return proceed()

    found = tried(WrappedStore(open_store(place), around), quick=False, probe=True)
    assert {check.state for check in found.values()} == {NOTE}
    assert "may list and read, not write" in found["credentials"].text
    assert {*found} == {"credentials", "abilities", "clock", "speed"}
    assert all(check.fix and check.code == 0 for check in found.values())


@pytest.mark.parametrize("method", ["list", "get", "put", "stat", "get_range"])
def test_what_fails_is_a_problem_of_its_own_and_the_rest_is_tried(method: str) -> None:
    def around(call: Call, proceed: Proceed) -> Any:
        if call.method == method and call.key.startswith("probe/"):
            raise StoreUnavailable("credentials refused")
        return proceed()

    found = tried(WrappedStore(MemoryStore(), around), quick=False)
    bad = {what for what, check in found.items() if check.state == BAD}
    broken = {
        "list": {"credentials"}, "stat": {"clock"}, "get_range": {"speed"},
    }.get(method, {"credentials", "speed"})  # fmt: skip
    assert broken <= bad
    assert all(found[what].code in (1, 7) and found[what].fix for what in bad)
    assert {"credentials", "clock", "speed"} <= {*found}


def test_what_was_written_is_removed_also_where_something_fails() -> None:
    inner = MemoryStore()

    def around(call: Call, proceed: Proceed) -> Any:
        if call.method in ("stat", "get_range"):
            raise Unsupported("cannot do that")
        return proceed()

    tried(WrappedStore(inner, around), quick=False)
    assert list(inner.list("")) == []


def test_a_slow_store_gets_fewer_and_smaller_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("brainstore.cli.trials.time.perf_counter", lambda: float(next(clock)))
    watched = WrappedStore(MemoryStore())
    speed = tried(watched, quick=False)["speed"]
    puts = [call for call in watched.calls if call.method == "put" and "/small" in call.key]
    assert len(puts) == 1
    assert "1.0 MB/s up" in speed.text
    assert "(1.0 MB)" in speed.text


def test_offline_nothing_is_tried(s3_place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(s3_place.url, s3_place.storage_options)
    monkeypatch.setenv("BRAINSTORE_OFFLINE", "1")
    with closing(store):
        [only] = Trials(store, None, quick=False, probe=True).run()
    assert (only.state, only.what) == (NOTE, "trials")
    assert store.requests.total() == 0


@pytest.mark.s3
def test_a_bucket_says_who_we_are_and_no_secret(s3_place: S3Place) -> None:
    given = [f"--storage-option={k}={v}" for k, v in s3_place.storage_options.items()]
    text = ok("doctor", "--zoo", s3_place.url, *given)
    key, secret = s3_place.storage_options["key"], s3_place.storage_options["secret"]
    [line] = [line for line in text.splitlines() if "credentials:" in line]
    assert f"{key[:4]}…{key[-4:]}, from explicit, endpoint http://127.0.0.1" in line
    assert "may list, read, write and delete" in line
    assert secret not in text
    assert key not in text
    found = {each["what"]: each for each in parsed("doctor", "--zoo", s3_place.url, *given)}
    for what in ("credentials", "ability race of swaps", "clock", "speed"):
        assert found[what]["state"] == OK, found[what]
    with closing(open_store(s3_place.url, s3_place.storage_options)) as store:
        assert list(store.list("")) == []
        assert list(store.leftovers()) == []


@pytest.mark.s3
def test_a_bucket_by_the_environment_says_so(s3_by_environment: S3Place) -> None:
    found = checks("--quick", "--zoo", s3_by_environment.url)
    assert "from env" in found["credentials"]["text"]


@pytest.mark.s3
def test_refused_credentials_are_seven_with_a_way_out(s3_place: S3Place) -> None:
    options = {**s3_place.storage_options, "key": "nobody-that-is-known"}
    given = [f"--storage-option={k}={v}" for k, v in options.items()]
    result = run("doctor", "--json", "--zoo", s3_place.url, *given)
    assert result.exit_code == 7
    problems = [each for each in json.loads(result.stdout) if each["state"] == BAD]
    assert problems
    assert all(each["fix"] and each["code"] == 7 for each in problems)
    assert "credentials refused" in problems[0]["text"]


def test_doctor_imports_no_jax(place: Path) -> None:
    code = f"""
import sys
from brainstore.cli import verbs
try:
    verbs(["doctor", "--zoo", {str(place)!r}], prog_name="brainstore")
except SystemExit as end:
    assert not end.code, end.code
assert not {{"jax", "jaxlib", "flax", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nobodys_marker_steers_a_terminal(place: Path) -> None:
    marker = place / "brainstore.json"
    record = json.loads(marker.read_text())
    record["store"]["\x1b[2J"] = True
    marker.write_text(json.dumps(record))
    text = ok("doctor", "--quick", "--zoo", place)
    assert "\\x1b[2J" in text
    assert "\x1b" not in text
