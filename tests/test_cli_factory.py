"""The verbs of the factory, as people type them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import filled, ok, parsed, refused, run

from brainstore import BrainManager, QualityReport

POLICY = """
[[rules]]
alias = "prod"
stations = ["s3"]
checks = ["return >= 7.0", { metric = "loss", op = "<", threshold = 1, station = "s3" }]
max_age_s = 86400
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    """A small zoo, which BRAINSTORE_ZOO names, with a policy in ./policy.toml."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("BRAINSTORE_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    Path("policy.toml").write_text(POLICY)
    with filled(tmp_path / "zoo") as manager:
        manager.unalias("ppo_swarm", "prod")
        yield manager


def test_a_report_is_filed_from_options_and_listed(zoo: BrainManager) -> None:
    assert ok("report", "ppo_swarm:2") == "no reports\n"
    checks = ["--check", "return=7.5>=7.0", "--check", "loss=0.5<1"]
    told = ok(
        "report", "ppo_swarm", "--station", "s3", *checks, "--n", 100, "--seed", 1, "--seed", 2
    )
    assert told == "ppo_swarm:2: s3 passed: return 7.5 >= 7, loss 0.5 < 1\n"
    [report] = zoo.reports("ppo_swarm:2")
    assert (report.n, report.seeds) == (100, (1, 2))
    header, row = ok("report", "ppo_swarm:2").splitlines()
    assert header.split() == ["AT", "BY", "STATION", "VERDICT", "CHECKS", "N"]
    assert "s3       passed   return 7.5 >= 7, loss 0.5 < 1  100" in row
    [found] = parsed("report", "ppo_swarm:2")
    assert (found["is_passed"], found["checks"][0]["value"]) == (True, 7.5)


@pytest.mark.parametrize("name", ["report.json", "report.toml"])
def test_a_report_is_filed_from_a_file(zoo: BrainManager, name: str) -> None:
    fields = {"station": "s3", "checks": ["return=nan>=7"], "at": "2026-11-23T22:33:35Z"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    Path(name).write_text(json.dumps(fields) if name.endswith("json") else "\n".join(lines))
    found = parsed("report", "ppo_swarm:1", "--file", name)
    assert (found["is_passed"], found["checks"][0]["value"]) == (False, None)
    assert zoo.reports("ppo_swarm:1")[0].at == fields["at"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "return=7>=7"], "--station"),
        (["--station", "s3", "--check", "return=7~7"], "return=7~7"),
        (["--station", "s3", "--check", "return=x>=7"], "no number"),
        (["--station", "s3", "--at", "today"], "RFC 3339"),
        (["--station", "s3", "--file", "policy.toml"], "--file"),
        (["--file", "policy.toml"], "unknown fields rules"),
    ],
)
def test_a_report_that_is_none_is_wrong_usage(
    zoo: BrainManager, arguments: list[str], said: str
) -> None:
    result = run("report", "ppo_swarm:1", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert zoo.reports("ppo_swarm:1") == []


def test_a_report_on_nothing_is_not_found(zoo: BrainManager) -> None:
    refused(3, "report", "ppo_swarm:9", "--station", "s3")


def test_a_promotion_that_misses_something_exits_with_6_and_says_all(zoo: BrainManager) -> None:
    ok("policy", "set", "policy.toml")
    line = refused(6, "promote", "ppo_swarm:2", "prod")
    assert line.startswith("error: ppo_swarm:2 may not become prod: 3 of what the policy")
    result = run("promote", "ppo_swarm:2", "prod", "--json")
    assert result.exit_code == 6
    missing = json.loads(result.stdout)["missing"]
    assert missing[1] == {
        "what": "metric return", "expected": ">= 7", "found": "no report that measured it",
    }  # fmt: skip
    assert result.stderr.count("\n  ") == 3


def test_a_promotion_that_may_be_moves_the_alias_and_shows_its_gate(zoo: BrainManager) -> None:
    ok("policy", "set", "policy.toml", "--why", "begin")
    ok(
        "report",
        "ppo_swarm:2",
        "--station",
        "s3",
        "--check",
        "return=7.5>=7",
        "--check",
        "loss=0<1",
    )
    told = ok("promote", "ppo_swarm:2", "prod", "--dry-run")
    assert told == "ppo_swarm:2 may become prod; nothing was done\n"
    assert "prod" not in zoo.aliases("ppo_swarm")
    refused(6, "promote", "ppo_swarm:1", "prod", "--dry-run")
    refused(4, "promote", "ppo_swarm:2", "prod", "--expect", "1")
    told = ok("promote", "ppo_swarm:2", "prod", "--expect", "0", "--why", "good")
    assert told == "ppo_swarm:prod is ppo_swarm:2\n"
    shown = ok("show", "ppo_swarm:prod")
    assert "gates      prod: by policy 1 and 1 report\n" in shown
    assert "reports    s3 passed: return 7.5 >= 7, loss 0 < 1" in shown
    found = parsed("show", "ppo_swarm:prod")
    assert found["gates"]["prod"]["reports"] == [found["reports"][0]["id"]]
    assert found["gates"]["prod"]["rules"] == parsed("policy", "show")["rules"]
    log = ok("log")
    assert "promoted nothing → 2  ppo_swarm:prod  good; by policy 1 and 1 report" in log
    assert "set policy 1          policy          begin" in log
    assert parsed("log")[-1]["gate"]["generation"] == 1


def test_a_guarded_alias_moves_by_hand_only_with_force(zoo: BrainManager) -> None:
    ok("policy", "set", "policy.toml")
    refused(6, "alias", "ppo_swarm:1", "prod")
    ok("alias", "ppo_swarm:1", "prod", "--force")
    ok("alias", "ppo_swarm:2", "prod", "--force")
    refused(6, "rollback", "ppo_swarm", "prod")
    assert ok("rollback", "ppo_swarm", "prod", "--force") == "ppo_swarm:prod is ppo_swarm:1\n"
    assert "gates      prod: forced past policy 1\n" in ok("show", "ppo_swarm:1")


def test_the_policy_is_set_from_a_file_and_shown(zoo: BrainManager) -> None:
    assert ok("policy", "show") == "no policy\n"
    assert parsed("policy", "show") is None
    ok("policy", "set", "policy.toml", "--expect", "0")
    refused(4, "policy", "set", "policy.toml", "--expect", "0")
    first, header, rule = ok("policy", "show").splitlines()
    assert first.startswith("policy 1, set ")
    assert header.split("  ")[0] == "ALIAS"
    checks = "return >= 7, loss < 1 at s3"
    assert re.split(r"\s{2,}", rule) == ["prod", "*", "s3", checks, "86,400 s", "-"]
    found = parsed("policy", "show")
    assert found["rules"][0]["checks"][0] == {
        "metric": "return", "op": ">=", "threshold": 7.0, "station": None,
    }  # fmt: skip
    for generation, text in ((2, found), (3, {"rules": found["rules"]})):
        Path("policy.json").write_text(json.dumps(text))
        again = parsed("policy", "set", "policy.json")
        assert (again["generation"], again["rules"]) == (generation, found["rules"])


@pytest.mark.parametrize(
    "text",
    [
        "[[rules]]\nalias = 'prod'\n",
        "rules = 5",
        "alias = 'prod'",
        "[[",
        "rules = ['x']",
        "generation = 1",
    ],
)
def test_a_file_that_is_no_policy_is_wrong_usage(zoo: BrainManager, text: str) -> None:
    Path("policy.toml").write_text(text)
    assert run("policy", "set", "policy.toml").exit_code == 2
    assert zoo.policy() is None


def test_lineage_is_text_json_or_dot(zoo: BrainManager) -> None:
    assert ok("lineage", "ppo_swarm:2").splitlines() == [
        "ppo_swarm:2", "made from", "  ppo_swarm:1  fine_tuned", "became nothing that is recorded",
    ]  # fmt: skip
    assert ok("lineage", "ppo_swarm:1", "--dot").startswith("digraph lineage {\n")
    found = parsed("lineage", "ppo_swarm:1", "--most", 1)
    assert (found["is_complete"], len(found["nodes"]), found["edges"]) == (False, 1, [])
    refused(3, "lineage", "ppo_swarm:9")


def test_show_still_shows_a_version_whose_reports_cannot_be_read(zoo: BrainManager) -> None:
    zoo.add_report("ppo_swarm:1", QualityReport("s3"))
    [key] = [stat.key for stat in zoo.zoo.store.list("models/") if "/reports/" in stat.key]
    zoo.zoo.store.put(key, b"{}")
    assert "do not hold the record" in parsed("show", "ppo_swarm:1")["reports_problem"]
    assert "reports    " in ok("show", "ppo_swarm:1")
    refused(5, "report", "ppo_swarm:1")


def test_a_save_takes_station_experts_and_a_report(zoo: BrainManager) -> None:
    weights = np.arange(6, dtype=np.float32)
    np.savez("nav.npz", kernel=weights)
    np.savez("swarm.npz", **{"experts/nav/kernel": weights, "head": weights + 1})
    Path("report.toml").write_text('station = "s1"\nchecks = ["return=7>=6"]\n')
    ok("save", "nav", "nav.npz", "--report", "report.toml")
    ok("save", "swarm", "swarm.npz", "--station", "s2", "--expert", "experts/nav=nav:1")
    assert zoo.prove("swarm")[0].is_proved
    assert [report.station for report in zoo.reports("nav")] == ["s1"]
    shown = parsed("show", "swarm")
    assert (shown["station"], shown["frozen_experts"]["experts/nav"]["name"]) == ("s2", "nav")


def test_ls_shows_stations_once_there_are_any(zoo: BrainManager) -> None:
    assert "STATION" not in ok("ls")
    zoo.save("dial", {"w": np.ones(2, np.float32)}, report=QualityReport("s4"))
    header, *rows = ok("ls", "dial").splitlines()
    assert header.endswith("STATION")
    assert [row.split()[-1] for row in rows] == ["-", "s4"]
    assert "STATION" not in ok("ls", "ppo_swarm")
    assert "STATION" not in ok("ls", "dial", "--columns", "name,version")
    [row] = parsed("ls", "--where", "station=s4")
    assert row["name"] == "dial"


def test_a_push_tells_how_many_reports_went(zoo: BrainManager, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    assert "report" not in ok("push", backup)
    zoo.add_report("ppo_swarm:1", QualityReport("s3"))
    assert ok("push", backup, "--dry-run").startswith("3 present, 1 report; 0 B to send")
    assert ok("push", backup) == "3 present, 1 report; 0 B sent\n"
    assert parsed("push", backup)["quality_reports"] == 0
