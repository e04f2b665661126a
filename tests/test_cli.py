"""The verbs that look and change, and what every verb has in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from command_line import filled, ok, parsed, refused, run

from brainstore import BrainManager
from brainstore.cli import verbs
from brainstore.errors import ReadOnly

ROOT = Path(__file__).parent.parent


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


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in verbs.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {verb}": each for verb, each in inner.items()} or {name: command}
    return found


# Documentation


@pytest.mark.parametrize("name", commands())
def test_every_verb_and_option_explains_itself(name: str) -> None:
    command = commands()[name]
    assert command.help
    assert len(command.get_short_help_str(100)) < 62
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts}"


@pytest.mark.parametrize("name", commands())
def test_the_manual_has_every_verb_and_option(name: str) -> None:
    manual = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"`brainstore {name}" in manual or f"$ brainstore {name}" in manual
    for option in commands()[name].params:
        if isinstance(option, click.Option):
            assert option.opts[-1] in manual or option.opts[0] in manual, option.opts


@pytest.mark.parametrize("name", commands())
def test_every_verb_takes_the_shared_options(name: str) -> None:
    text = ok(*name.split(), "--help")
    assert all(option in text for option in ("--zoo", "--storage-option", "--json", "--verbose"))


def test_help_lists_verbs_from_first_need_to_last() -> None:
    text = ok("--help")
    places = [text.index(f"\n  {name} ") for name in ("init", "save", "ls", "rm", "sync", "doctor")]
    assert places == sorted(places)


def test_version_is_that_of_the_package() -> None:
    from brainstore import __version__

    assert __version__ in ok("--version")


# Where the zoo is


def test_zoo_may_stand_before_or_after_the_verb(zoo: BrainManager, tmp_path: Path) -> None:
    other = tmp_path / "other"
    ok("--zoo", other, "init")
    ok("init", "--zoo", other)
    assert "is empty" in ok("--zoo", other, "ls")
    assert "is empty" in ok("ls", "--zoo", other)


def test_the_zoo_is_brains_here_when_nobody_names_one(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRAINSTORE_ZOO")
    assert ok("init").startswith(str(Path.cwd() / "brains"))
    assert (Path.cwd() / "brains" / "brainstore.json").exists()


def test_storage_options_reach_the_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def opened(self: BrainManager, where: str, *, storage_options: Any) -> None:
        seen.update(where=where, options=storage_options)
        raise ReadOnly("far enough")

    monkeypatch.setattr(BrainManager, "__init__", opened)
    options = ["endpoint_url=http://s", "key=123", "anon=true", 'client_kwargs={"a": 1}']
    refused(1, "--zoo", "s3://b/x", "ls", *(x for o in options for x in ("--storage-option", o)))
    assert seen["where"] == "s3://b/x"
    assert seen["options"] == {
        "endpoint_url": "http://s", "key": "123", "anon": True, "client_kwargs": {"a": 1},
    }  # fmt: skip


# Looking


def test_ls_shows_what_matters_in_order_of_name_and_version(zoo: BrainManager) -> None:
    columns = ["NAME", "VERSION", "ALIASES", "TYPE", "DIMS", "STEPS", "METRIC", "AGE", "NEW"]
    header, *lines = ok("ls").splitlines()
    assert header.split() == columns
    assert [line.split()[:2] for line in lines] == [
        ["dial", "1"],
        ["ppo_swarm", "1"],
        ["ppo_swarm", "2"],
    ]
    assert re.search(r"latest +ppo +100→256→2 +2\.4M +return=7\.5 +\d+ s +\S+ k?B$", lines[2])
    assert max(map(len, lines)) <= 80


def test_ls_of_a_name_lists_only_that(zoo: BrainManager) -> None:
    assert [row["name"] for row in parsed("ls", "ppo_swarm")] == ["ppo_swarm"] * 2


def test_ls_sorts_and_leaves_nan_and_missing_for_the_end(zoo: BrainManager) -> None:
    def order(sort: str) -> list[str]:
        return [f"{row['name']}:{row['version']}" for row in parsed("ls", "--sort", sort)]

    assert order("metrics.return") == ["ppo_swarm:1", "ppo_swarm:2", "dial:1"]
    assert order("-metrics.return") == ["ppo_swarm:2", "ppo_swarm:1", "dial:1"]
    assert order("-metrics.success")[0] == "dial:1"
    assert order("-steps")[0] == "ppo_swarm:2"
    assert order("-type") == ["ppo_swarm:1", "ppo_swarm:2", "dial:1"]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (["type=ppo"], 2),
        (["brain_type=ppo", "version=2"], 1),
        (["metrics.return=7.25"], 1),
        (["tags=wide"], 1),
        (["aliases=prod"], 1),
        (["type=none"], 0),
    ],
)
def test_ls_keeps_only_what_fits_every_where(
    zoo: BrainManager, where: list[str], count: int
) -> None:
    options = [part for each in where for part in ("--where", each)]
    assert len(parsed("ls", *options)) == count
    if not count:
        assert ok("ls", *options) == "no version fits\n"


def test_ls_shows_the_columns_that_were_asked_for(zoo: BrainManager) -> None:
    lines = ok("ls", "ppo_swarm", "--columns", "version,metrics.loss,tags").splitlines()
    assert [line.split() for line in lines] == [
        ["VERSION", "METRICS.LOSS", "TAGS"],
        ["1", "0.5", "-"],
        ["2", "-", "wide"],
    ]


@pytest.mark.parametrize(
    "arguments",
    [["--columns", "nmae"], ["--sort", "-nope"], ["--where", "nope=1"], ["--where", "nope"]],
)
def test_ls_knows_when_no_version_can_have_a_field(zoo: BrainManager, arguments: list[str]) -> None:
    result = run("ls", *arguments)
    assert result.exit_code == 2
    assert "nope" in result.stderr or "nmae" in result.stderr


def test_json_has_null_where_a_metric_is_nan(zoo: BrainManager) -> None:
    assert parsed("ls", "dial")[0]["metrics"] == {"success": None}


def test_show_tells_all_and_how_to_load_it(zoo: BrainManager) -> None:
    text = ok("show", "ppo_swarm")
    for part in (
        "ppo_swarm:2", zoo.resolve("ppo_swarm").digest, "aliases    latest", "100→256→2",
        "return 7.5", "ppo_swarm:1 (fine_tuned)", "params: 2 leaves", "step: 1 leaf",
        "notes.md, 5 B", "wide",
    ):  # fmt: skip
        assert part in text, part


def test_the_lines_that_show_prints_load_the_version(zoo: BrainManager) -> None:
    scope: dict[str, Any] = {}
    exec("\n".join(parsed("show", "ppo_swarm:prod")["python"]), scope)
    assert scope["meta"].version == 1
    np.testing.assert_array_equal(scope["params"]["encoder"]["bias"], np.zeros(3))


def test_show_lists_leaves_when_asked(zoo: BrainManager) -> None:
    assert "encoder/kernel  float32  [4, 3]" in ok("show", "ppo_swarm", "--leaves")
    assert "leaves" not in parsed("show", "ppo_swarm")["groups"]["params"]
    leaves = parsed("show", "ppo_swarm", "--leaves")["groups"]["params"]["leaves"]
    assert leaves[1] == {"path": "encoder/kernel", "dtype": "float32", "shape": [4, 3]}


def test_show_looks_in_the_zoo_that_the_reference_names(zoo: BrainManager, tmp_path: Path) -> None:
    found = parsed("--zoo", tmp_path / "nowhere", "show", f"{zoo.zoo.url}::dial")
    assert (found["full_name"], found["zoo"]) == ("dial_v1", zoo.zoo.url)
    assert zoo.zoo.url in found["python"][1]


def test_log_tells_who_did_what(zoo: BrainManager) -> None:
    lines = ok("log", "ppo_swarm").splitlines()
    assert lines[0].split() == ["AT", "BY", "WHAT", "REF", "WHY"]
    assert "saved" in lines[1]
    assert "ppo_swarm:prod" in lines[3]
    first = parsed("log")[0]
    assert {"at", "by", "what", "ref", "why"} <= set(first)


def test_log_and_ls_of_an_empty_zoo_say_so(zoo: BrainManager, tmp_path: Path) -> None:
    ok("--zoo", tmp_path / "new", "init")
    assert "is empty" in ok("--zoo", tmp_path / "new", "ls")
    assert "nothing has happened" in ok("--zoo", tmp_path / "new", "log")
    assert parsed("--zoo", tmp_path / "new", "ls") == []
    assert parsed("--zoo", tmp_path / "new", "log") == []


def test_diff_tells_fields_and_leaves(zoo: BrainManager) -> None:
    text = ok("diff", "ppo_swarm:1", "ppo_swarm:2")
    assert "metrics.return" in text
    assert "encoder/bias" in text
    found = parsed("diff", "ppo_swarm:1", "ppo_swarm:2")
    statuses = {leaf["path"]: leaf["status"] for leaf in found["leaves"]}
    assert statuses["encoder/kernel"] == "same"
    assert statuses["encoder/bias"] == "changed"


# Changing


def test_init_says_what_the_store_was_seen_to_do(zoo: BrainManager, tmp_path: Path) -> None:
    found = parsed("--zoo", tmp_path / "new", "init")
    assert found["store"]["swap"] is True
    assert parsed("--zoo", tmp_path / "new", "init")["zoo_id"] == found["zoo_id"]


def test_save_takes_a_tensor_file_and_all_that_is_known(zoo: BrainManager, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"encoder/kernel": np.eye(3, dtype=np.float32)})
    (tmp_path / "meta.toml").write_text('brain_type = "old"\n[metrics]\nloss = 1\n')
    (tmp_path / "note").write_text("hello")
    text = ok(
        "save", "walker", tmp_path / "w.npz", "--meta", tmp_path / "meta.toml",
        "--brain-type", "ppo", "--input-dim", "3", "--training-steps", "7", "--notes", "good",
        "--metric", "return=7.2", "--config", "lr=3e-4", "--config", "env=flat", "--tag", "a",
        "--parent", "ppo_swarm:1=distilled", "--parent", "dial", "--alias", "prod",
        "--file", f"note.txt={tmp_path / 'note'}",
    )  # fmt: skip
    assert text == "walker_v1\n"
    params, meta = zoo.load("walker:prod", as_numpy=True)
    np.testing.assert_array_equal(params["encoder"]["kernel"], np.eye(3))
    assert (meta.brain_type, meta.input_dim, meta.training_steps) == ("ppo", 3, 7)
    assert meta.metrics == {"loss": 1, "return": 7.2}
    assert meta.config == {"lr": 3e-4, "env": "flat"}
    assert (meta.tags, meta.notes) == (["a"], "good")
    relations = {pin.name: pin.relation for pin in zoo.manifest("walker").parents}
    assert relations == {"ppo_swarm": "distilled", "dial": None}
    assert zoo.file("walker", "note.txt") == b"hello"


def test_save_answers_in_json(zoo: BrainManager, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.zeros(2, np.float32))
    (tmp_path / "meta.json").write_text('{"notes": "from json"}')
    found = parsed("save", "walker", tmp_path / "w.npz", "--meta", tmp_path / "meta.json")
    assert (found["full_name"], found["name"], found["version"]) == ("walker_v1", "walker", 1)
    assert zoo.table("walker")[0]["notes"] == "from json"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--metric", "return"],
        ["--metric", "return=high"],
        ["--meta", "broken.json"],
        ["--meta", "list.json"],
        ["--alias", "latest"],
        ["--file", "a=missing"],
    ],
)
def test_save_refuses_arguments_that_make_no_sense(zoo: BrainManager, arguments: list[str]) -> None:
    np.savez("w.npz", w=np.zeros(2, np.float32))
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[]")
    assert run("save", "walker", "w.npz", *arguments).exit_code == 2
    assert "walker" not in {row["name"] for row in parsed("ls")}


def test_alias_moves_and_rollback_moves_back(zoo: BrainManager) -> None:
    assert (
        ok("alias", "ppo_swarm:2", "prod", "--why", "better") == "ppo_swarm:prod is ppo_swarm:2\n"
    )
    assert ok("alias", "ppo_swarm:2", "prod").endswith("ppo_swarm:2\n")
    assert parsed("rollback", "ppo_swarm", "prod")["version"] == 1
    assert "better" in ok("log", "ppo_swarm")


def test_alias_moves_only_what_is_where_it_is_expected(zoo: BrainManager) -> None:
    refused(4, "alias", "ppo_swarm:2", "prod", "--expect", "2")
    refused(4, "alias", "ppo_swarm:2", "prod", "--expect", "0")
    assert parsed("alias", "ppo_swarm:2", "prod", "--expect", "1")["version"] == 2
    assert parsed("alias", "ppo_swarm:2", "new", "--expect", "0")["alias"] == "new"


def test_unalias_removes_once(zoo: BrainManager) -> None:
    assert ok("unalias", "ppo_swarm", "prod") == "ppo_swarm:prod is gone\n"
    assert "prod" in refused(3, "unalias", "ppo_swarm", "prod")
    zoo.alias("ppo_swarm:1", "prod")
    assert parsed("unalias", "ppo_swarm", "prod") == {
        "alias": "prod", "name": "ppo_swarm", "version": None,
    }  # fmt: skip


def test_rm_deletes_and_undelete_brings_back(zoo: BrainManager) -> None:
    digest = zoo.resolve("ppo_swarm:2").digest
    assert ok("rm", "ppo_swarm:2", "dial", "--yes", "--why", "old").splitlines() == [
        "deleted ppo_swarm:2",
        "deleted dial:1",
    ]
    assert "old" in refused(3, "show", "ppo_swarm:2")
    assert ok("undelete", "ppo_swarm:2") == "ppo_swarm:2 is back\n"
    assert zoo.resolve("ppo_swarm:2").digest == digest
    assert parsed("undelete", "dial:1")["full_name"] == "dial_v1"


def test_rm_asks_and_where_nobody_can_answer_refuses(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("rm", "dial")
    assert (result.exit_code, "--yes" in result.stderr) == (2, True)
    monkeypatch.setattr("brainstore.cli.change._is_asked", lambda: True)
    assert run("rm", "dial", input="n\n").exit_code == 1
    assert zoo.get_latest("dial") == "dial_v1"
    assert run("rm", "dial", input="y\n").exit_code == 0
    assert zoo.get_latest("dial") is None


def test_rm_deletes_nothing_when_one_of_them_does_not_exist(zoo: BrainManager) -> None:
    refused(3, "rm", "dial", "nope", "--yes")
    assert zoo.get_latest("dial") == "dial_v1"


def test_rm_refuses_what_an_alias_names_unless_forced(zoo: BrainManager) -> None:
    assert "prod" in refused(4, "rm", "ppo_swarm:1", "--yes")
    assert parsed("rm", "ppo_swarm:1", "--yes", "--force")[0]["deleted"] is True


def test_rm_with_dry_run_deletes_nothing_and_says_what_is_needed(zoo: BrainManager) -> None:
    assert ok("rm", "dial", "--dry-run") == "would delete dial:1\n"
    assert "needs --force: ppo_swarm:prod" in ok("rm", "ppo_swarm:1", "-n")
    assert parsed("rm", "ppo_swarm:1", "-n")[0]["needed_by"] == ["ppo_swarm:prod"]
    assert len(zoo.list_models()) == 3


def test_rm_tells_what_it_did_before_it_failed(zoo: BrainManager) -> None:
    result = run("rm", "dial", "ppo_swarm:1", "--yes", "--json")
    assert result.exit_code == 4
    assert '"dial_v1"' in result.stdout
