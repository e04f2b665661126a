"""Bad input and failures: one line, and a code of its own. And values as text."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import PARAMS, filled, ok, refused, run

from brainstore import BrainManager
from brainstore.cli import render
from brainstore.errors import GateFailed, ReadOnly, StoreUnavailable


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    """A small zoo, which BRAINSTORE_ZOO names; the current folder is an empty one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("BRAINSTORE_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    with filled(tmp_path / "zoo") as manager:
        yield manager


@pytest.mark.parametrize(
    ("code", "arguments", "told"),
    [
        (3, ["show", "ppo_swrm"], "ppo_swarm"),
        (3, ["show", "ppo_swarm:9"], "versions 1 to 2"),
        (3, ["show", "ppo_swarm:prdo"], "prod"),
        (3, ["ls", "nope"], "nope"),
        (3, ["log", "nope"], "nope"),
        (3, ["--zoo", "nowhere", "ls"], "init"),
        (3, ["--zoo", "nowhere", "log"], "init"),
        (2, ["show", "Bad Name"], "bad_name"),
        (2, ["show", "ppo_swarm:prod:prod"], "prod:prod"),
        (2, ["ls", "Bad"], "bad"),
        (2, ["alias", "ppo_swarm:1", "latest"], "reserved"),
        (2, ["alias", "ppo_swarm:1", "3"], "version number"),
        (2, ["--zoo", "foo://x", "ls"], "foo"),
        (2, ["cache", "prune", "--max", "much"], "20GB"),
        (4, ["undelete", "dial:1"], "not deleted"),
    ],
)
def test_bad_input_is_one_line_and_its_own_code(
    zoo: BrainManager, code: int, arguments: list[str], told: str
) -> None:
    assert told in refused(code, *arguments)


@pytest.mark.parametrize("arguments", [["show"], ["nope"], ["alias", "x"], ["ls", "--nope"]])
def test_wrong_usage_is_two(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


def test_a_damaged_manifest_is_five(zoo: BrainManager, tmp_path: Path) -> None:
    path = tmp_path / "zoo/models/dial/v1/manifest.json"
    path.chmod(0o644)
    path.write_bytes(b'{"format": 1, "kind"')
    assert "fsck" in refused(5, "show", "dial:1")


@pytest.mark.parametrize(
    ("error", "code"), [(GateFailed, 6), (StoreUnavailable, 7), (ReadOnly, 1), (OSError, 1)]
)
def test_errors_have_the_codes_of_the_manual(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        problem = error("it failed")
        problem.add_note("the version was saved all the same")
        raise problem

    monkeypatch.setattr(BrainManager, "table", fail)
    result = run("ls")
    assert result.exit_code == code
    assert result.stderr == "error: it failed\nthe version was saved all the same\n"


def test_an_interruption_is_130(zoo: BrainManager, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BrainManager, "table", interrupt)
    result = run("ls")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_traceback_is_logged_only_when_asked_for(zoo: BrainManager) -> None:
    assert "Traceback" not in run("-v", "show", "nope").stderr
    assert "Traceback" in run("-v", "show", "nope", "-v").stderr


@pytest.mark.parametrize("verb", [["ls"], ["show", "x"], ["doctor"], ["init"]])
def test_a_server_that_is_down_is_seven(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = taken.getsockname()[1]
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "k", "secret": "s"}
        given = [x for k, v in options.items() for x in ("--storage-option", f"{k}={v}")]
        result = run("--zoo", "s3://bucket/x", *given, *verb)
    assert result.exit_code == 7
    assert "Traceback" not in result.output
    assert str(port) in result.output


# Text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_960, "10 kB"), (105_920, "106 kB"),
     (999_600, "1.0 MB"), (34 * 10**9, "34 GB"), (5 * 10**15, "5000 TB")],
)  # fmt: skip
def test_sizes_read_well(size_bytes: int, text: str) -> None:
    assert render.size(size_bytes) == text


@pytest.mark.parametrize(
    ("created_at", "text"),
    [
        ("2026-01-02T00:00:00Z", "0 s"),
        ("2026-01-01T23:59:50+00:00", "10 s"),
        ("2026-01-01T21:00:00", "3 h"),
        ("2024-01-01", "2 y"),
        ("2030-01-01T00:00:00Z", "0 s"),
        ("yesterday", "-"),
    ],
)
def test_ages_read_well(created_at: str, text: str) -> None:
    from datetime import UTC, datetime

    assert render.age(created_at, datetime(2026, 1, 2, tzinfo=UTC)) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1500, "1.5k"), (2_400_000, "2.4M")]
)
def test_counts_read_well(number: int, text: str) -> None:
    assert render.count(number) == text


def test_the_headline_is_the_metric_that_people_ask_for(zoo: BrainManager) -> None:
    assert render.headline({"loss": 1.0, "return": 2.0}) == "return=2"
    assert render.headline({"zeta": 1.0, "alpha": 2.0}) == "zeta=1"
    assert render.headline({}) == "-"


def test_a_note_of_several_lines_stays_in_its_row(zoo: BrainManager) -> None:
    zoo.save("noted", PARAMS, {"notes": "one\ntwo"})
    assert len(ok("ls", "noted", "--columns", "name,notes").splitlines()) == 2
