"""Quality reports: filed with a save or after it, never on nothing, never about other content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from zoos import finish, objects, opened, params

from brainstore import BadParams, BrainManager, Check, Corrupt, NotFound, QualityReport, Unsupported
from brainstore.address import new_ulid, parse_report_key
from brainstore.fsck import fsck
from brainstore.storage.base import Stat
from brainstore.storage.memory import MemoryStore

GOOD = QualityReport("s3", [Check("return", 7.5, ">=", 7.0)], n=10, seeds=[1, 2])
BAD = QualityReport("s3", [Check("return", 6.5, ">=", 7.0)])


@pytest.fixture
def zoo() -> Iterator[BrainManager]:
    """A zoo with two versions of ppo."""
    with opened(MemoryStore()) as zoo:
        zoo.save("ppo", params(1))
        zoo.save("ppo", params(2))
        finish(zoo)
        yield zoo


def report_keys(zoo: BrainManager) -> list[str]:
    return [stat.key for stat in zoo.zoo.store.list("models/") if parse_report_key(stat.key)]


def overwrite(zoo: BrainManager, key: str, content: bytes) -> None:
    zoo.zoo.store.delete(key)
    zoo.zoo.store.put(key, content)


def test_a_report_comes_with_the_save_inside_its_manifest(zoo: BrainManager) -> None:
    zoo.save("ppo", params(3), station="s2", report=GOOD)
    manifest = zoo.manifest("ppo:3")
    [report] = zoo.reports("ppo:3")
    assert manifest.report == report
    assert (manifest.station, report.station, report.checks) == ("s2", "s3", GOOD.checks)
    assert report.by
    assert report.at
    assert report_keys(zoo) == []


def test_the_index_knows_the_station_of_the_save_or_of_its_report(zoo: BrainManager) -> None:
    zoo.save("ppo", params(3), station="s2", report=GOOD)
    zoo.save("ppo", params(4), report=GOOD)
    assert [row["station"] for row in zoo.table("ppo")] == [None, None, "s2", "s3"]
    assert [row["version"] for row in zoo.table(where={"station": "s3"})] == [4]


def test_reports_are_told_in_the_order_of_filing(zoo: BrainManager) -> None:
    zoo.save("ppo", params(3), report=GOOD)
    filed = [zoo.add_report("ppo:3", report) for report in (BAD, GOOD, BAD)]
    assert zoo.reports("ppo:3")[1:] == filed
    assert [report.is_passed for report in zoo.reports("ppo:3")] == [True, False, True, False]
    assert zoo.reports("ppo:2") == []


def test_the_last_filed_is_the_newest_whatever_the_clocks_say(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("brainstore.address.time.time_ns", lambda: 2_000_000_000 * 10**9)
        zoo.add_report("ppo:1", GOOD)
    zoo.add_report("ppo:1", BAD)
    assert [report.is_passed for report in zoo.reports("ppo:1")] == [True, False]


def test_reports_filed_at_once_are_all_kept(zoo: BrainManager) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: zoo.add_report("ppo:1", {"station": "s", "n": n}), range(16)))
    assert sorted(report.n or 0 for report in zoo.reports("ppo:1")) == list(range(16))


@pytest.mark.parametrize("ref", ["ppo:9", "nobody", "ppo:prod"])
def test_a_report_on_nothing_is_refused_and_nothing_is_stored(zoo: BrainManager, ref: str) -> None:
    before = objects(zoo)
    with pytest.raises(NotFound):
        zoo.add_report(ref, GOOD)
    assert objects(zoo) == before


def test_a_report_on_a_deleted_version_is_refused_and_those_before_come_back_with_it(
    zoo: BrainManager,
) -> None:
    zoo.add_report("ppo:2", GOOD)
    zoo.delete("ppo:2")
    with pytest.raises(NotFound, match="undelete"):
        zoo.add_report("ppo:2", BAD)
    assert fsck(zoo.zoo) == []
    zoo.undelete("ppo:2")
    assert [report.is_passed for report in zoo.reports("ppo:2")] == [True]


def test_a_report_through_an_alias_is_about_what_it_names(zoo: BrainManager) -> None:
    zoo.alias("ppo:1", "prod")
    zoo.add_report("ppo:prod", GOOD)
    assert len(zoo.reports("ppo:1")) == 1
    assert zoo.reports("ppo:2") == []


@pytest.mark.parametrize(
    "report", [5, {"station": "s3", "checks": ["return=7~7"]}, {"station": 3}, {"checks": []}]
)
def test_a_bad_report_is_refused_by_a_save_and_after_it_and_nothing_is_stored(
    zoo: BrainManager, report: Any
) -> None:
    before = objects(zoo)
    with pytest.raises(BadParams):
        zoo.add_report("ppo:1", report)
    with pytest.raises(BadParams):
        zoo.save("ppo", params(3), report=report)
    with pytest.raises(BadParams):
        zoo.save("ppo", params(3), station="")
    assert objects(zoo) == before


def test_a_report_carried_to_another_version_does_not_count_and_is_found(
    zoo: BrainManager,
) -> None:
    zoo.add_report("ppo:1", GOOD)
    [key] = report_keys(zoo)
    record = json.loads(objects(zoo)[key])
    moved = key.replace("/v1/", "/v2/")
    zoo.zoo.store.put(moved, json.dumps({**record, "version": 2}).encode())
    with pytest.raises(Corrupt, match="carried there"):
        zoo.reports("ppo:2")
    assert [(each.kind, each.where) for each in fsck(zoo.zoo)] == [("report", moved)]
    zoo.zoo.store.delete(moved)
    assert zoo.reports("ppo:2") == []
    assert fsck(zoo.zoo) == []


@pytest.mark.parametrize("damage", ["cut", "other id", "other name", "newer", "no version"])
def test_a_damaged_report_is_an_error_and_a_finding(zoo: BrainManager, damage: str) -> None:
    zoo.add_report("ppo:1", GOOD)
    [key] = report_keys(zoo)
    record = json.loads(objects(zoo)[key])
    inner = {**record["report"], "id": new_ulid()}
    body = {
        "cut": json.dumps(record).encode()[:-9],
        "other id": json.dumps({**record, "report": inner}).encode(),
        "other name": json.dumps({**record, "name": "dial"}).encode(),
        "newer": json.dumps({**record, "format": 2}).encode(),
        "no version": json.dumps({**record, "version": 7}).encode(),
    }[damage]
    if damage == "no version":
        zoo.zoo.store.delete(key)
        key = key.replace("/v1/", "/v7/")
    overwrite(zoo, key, body)
    assert [(each.kind, each.where) for each in fsck(zoo.zoo)] == [("report", key)]
    if damage != "no version":
        with pytest.raises((Corrupt, Unsupported)):
            zoo.reports("ppo:1")


def test_a_report_survives_repair_byte_for_byte(zoo: BrainManager) -> None:
    zoo.add_report("ppo:1", GOOD)
    [key] = report_keys(zoo)
    before = objects(zoo)[key]
    zoo.zoo.store.delete("registry.json")
    assert fsck(zoo.zoo, repair=True)
    assert objects(zoo)[key] == before
    assert fsck(zoo.zoo) == []


# Between zoos


def test_reports_travel_verbatim_with_their_versions(zoo: BrainManager) -> None:
    zoo.add_report("ppo:1", GOOD)
    with opened(MemoryStore()) as target:
        assert zoo.push(target).quality_reports == 1
        assert {k: v for k, v in objects(target).items() if k in report_keys(zoo)} == {
            key: objects(zoo)[key] for key in report_keys(zoo)
        }
        assert target.reports("ppo:1") == zoo.reports("ppo:1")


@pytest.mark.parametrize("refs", [(), ("ppo:1",), ("ppo",)])
def test_reports_filed_later_travel_to_versions_that_are_there(
    zoo: BrainManager, refs: tuple[str, ...]
) -> None:
    with opened(MemoryStore()) as target:
        zoo.push(target)
        zoo.add_report("ppo:1", GOOD)
        zoo.add_report("ppo:1", BAD)
        before = objects(target)
        planned = zoo.push(target, refs, dry_run=True)
        assert (planned.quality_reports, objects(target)) == (2, before)
        assert zoo.push(target, refs).quality_reports == 2
        assert target.reports("ppo:1") == zoo.reports("ppo:1")
        assert zoo.push(target, refs).quality_reports == 0


def test_a_sync_in_both_directions_joins_the_reports(zoo: BrainManager) -> None:
    with opened(MemoryStore()) as other:
        zoo.push(other)
        zoo.add_report("ppo:1", GOOD)
        other.add_report("ppo:1", BAD)
        zoo.push(other)
        zoo.pull(other)
        assert zoo.reports("ppo:1") == other.reports("ppo:1")
        assert len(zoo.reports("ppo:1")) == 2


def test_reports_on_a_version_that_does_not_travel_stay(zoo: BrainManager) -> None:
    zoo.add_report("ppo:1", GOOD)
    with opened(MemoryStore()) as target:
        target.save("ppo", params(77))
        report = zoo.push(target, ["ppo:1"])
        assert [each.status for each in report.outcomes] == ["conflict"]
        assert (report.quality_reports, report_keys(target)) == (0, [])


def test_a_report_that_cannot_be_copied_is_told_and_the_others_travel(zoo: BrainManager) -> None:
    zoo.add_report("ppo:1", GOOD)
    zoo.add_report("ppo:2", GOOD)
    first, _ = report_keys(zoo)
    with opened(MemoryStore()) as target:
        overwrite(zoo, first, b"{}")
        report = zoo.push(target)
        assert [(each.version, each.status) for each in report.outcomes][-1] == (1, "failed")
        assert report.quality_reports == 1
        assert len(target.reports("ppo:2")) == 1


@pytest.mark.parametrize("refs", [(), ("ppo",)])
def test_a_report_about_other_content_does_not_travel(
    zoo: BrainManager, refs: tuple[str, ...]
) -> None:
    with opened(MemoryStore()) as target:
        zoo.push(target)
        zoo.add_report("ppo:1", GOOD)
        [key] = report_keys(zoo)
        record = json.loads(objects(zoo)[key])
        digest = zoo.resolve("ppo:2").digest
        overwrite(zoo, key, json.dumps({**record, "digest": digest}).encode())
        report = zoo.push(target, refs)
        [failure] = report.failed
        assert "carried there" in failure.detail
        assert (report.quality_reports, report_keys(target)) == (0, [])


def test_another_report_under_the_same_id_is_a_conflict(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(MemoryStore()) as target:
        zoo.push(target)
        zoo.add_report("ppo:1", GOOD)
        [key] = report_keys(zoo)
        listed = target.zoo.store.list

        def without_it(prefix: str) -> Iterator[Stat]:
            return iter([stat for stat in listed(prefix) if stat.key != key])

        target.zoo.store.put(key, b"another")
        monkeypatch.setattr(target.zoo.store, "list", without_it)
        assert [each.status for each in zoo.push(target).outcomes][-1] == "conflict"
        assert objects(zoo)[key] != b"another"


# Plain files


def test_export_writes_all_reports_and_import_brings_them_back(
    zoo: BrainManager, tmp_path: Path
) -> None:
    loss = QualityReport("s4", [Check("loss", float("nan"), "<", float("inf"))])
    zoo.save("ppo", params(3), station="s2", report=GOOD, parents="ppo:1")
    zoo.add_report("ppo:3", loss)
    zoo.add_report("ppo:1", BAD)
    zoo.export_all(tmp_path)
    told = json.loads((tmp_path / "ppo/v3/quality_report.json").read_text())
    assert [each["is_passed"] for each in told["reports"]] == [True, False]
    assert told["digest"] == zoo.resolve("ppo:3").digest
    assert not (tmp_path / "ppo/v2/quality_report.json").exists()
    with opened(MemoryStore()) as other:
        other.import_zoo(tmp_path)
        for ref in ("ppo:1", "ppo:2", "ppo:3"):
            assert contents(other, ref) == contents(zoo, ref)
        manifest = other.manifest("ppo:3")
        assert manifest.station == "s2"
        assert manifest.report is not None
        assert manifest.report.station == "s3"
        before = objects(other)
        other.import_zoo(tmp_path)
        assert objects(other) == before


def contents(zoo: BrainManager, ref: str) -> list[str]:
    return [repr(replace(report, id="")) for report in zoo.reports(ref)]


def test_exporting_again_brings_the_reports_up_to_date(zoo: BrainManager, tmp_path: Path) -> None:
    zoo.export("ppo:1", tmp_path)
    zoo.add_report("ppo:1", GOOD)
    zoo.export("ppo:1", tmp_path)
    path = tmp_path / "ppo/v1/quality_report.json"
    assert len(json.loads(path.read_text())["reports"]) == 1
    with opened(MemoryStore()) as other:
        other.import_zoo(tmp_path)
        zoo.add_report("ppo:1", BAD)
        zoo.export("ppo:1", tmp_path)
        other.import_zoo(tmp_path)
        assert [report.is_passed for report in other.reports("ppo:1")] == [True, False]


def test_a_damaged_report_file_is_named_and_nothing_is_imported(
    zoo: BrainManager, tmp_path: Path
) -> None:
    zoo.add_report("ppo:1", GOOD)
    zoo.export_all(tmp_path)
    (tmp_path / "ppo/v1/quality_report.json").write_text('{"reports": [{"station": 5}]}')
    with opened(MemoryStore()) as other:
        with pytest.raises(BadParams, match="quality_report"):
            other.import_zoo(tmp_path)
        assert objects(other) == {}
