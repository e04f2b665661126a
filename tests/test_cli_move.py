"""The verbs that copy between places and care for zoos, the cache and this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import PARAMS, filled, ok, parsed, refused, run
from conftest import S3Place

from brainstore import BrainManager
from brainstore.cache import Cache

ROOT = Path(__file__).parent.parent


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    """A small zoo, which BRAINSTORE_ZOO names, and a cache of its own."""
    monkeypatch.setenv("BRAINSTORE_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    with filled(tmp_path / "zoo") as manager:
        yield manager


def digests(where: Path) -> dict[str, str]:
    with BrainManager(where) as manager:
        return {f"{row['name']}:{row['version']}": row["digest"] for row in manager.table()}


# Plain files


def test_export_writes_folders_and_import_reads_them(zoo: BrainManager, tmp_path: Path) -> None:
    assert ok("export", "--all", tmp_path / "out").splitlines() == [
        str(tmp_path / "out" / part) for part in ("dial/v1", "ppo_swarm/v1", "ppo_swarm/v2")
    ]
    names = parsed("--zoo", tmp_path / "new", "import", tmp_path / "out")
    assert sorted(names) == ["dial_v1", "ppo_swarm_v1", "ppo_swarm_v2"]


def test_export_of_one_reference_writes_that(zoo: BrainManager, tmp_path: Path) -> None:
    assert parsed("export", "ppo_swarm:prod", tmp_path / "out") == [
        str(tmp_path / "out/ppo_swarm/v1")
    ]
    assert (tmp_path / "out/ppo_swarm/v1/params.safetensors").exists()


def test_import_of_a_file_needs_a_name_and_a_folder_takes_none(
    zoo: BrainManager, tmp_path: Path
) -> None:
    np.savez(tmp_path / "w.npz", w=np.zeros(2, np.float32))
    assert ok("import", tmp_path / "w.npz", "walker") == "walker_v1\n"
    assert run("import", tmp_path / "w.npz").exit_code == 2
    assert run("import", tmp_path, "walker").exit_code == 2
    refused(3, "import", tmp_path)


@pytest.mark.parametrize("arguments", [["a"], ["a", "b", "c"], ["--all", "a", "b"]])
def test_export_takes_a_reference_and_a_folder_or_all(
    zoo: BrainManager, arguments: list[str]
) -> None:
    assert run("export", *arguments).exit_code == 2


# Between zoos


def test_push_copies_everything_byte_for_byte(zoo: BrainManager, tmp_path: Path) -> None:
    lines = ok("push", tmp_path / "other").splitlines()
    assert sorted(lines[:-1]) == ["copied dial:1", "copied ppo_swarm:1", "copied ppo_swarm:2"]
    assert lines[-1].startswith("3 copied; ")
    assert digests(tmp_path / "other") == digests(tmp_path / "zoo")
    assert ok("push", tmp_path / "other") == "3 present; 0 B sent\n"


def test_pull_and_sync_copy_what_is_named(zoo: BrainManager, tmp_path: Path) -> None:
    source = tmp_path / "zoo"
    ok("pull", source, "dial", "--to", tmp_path / "a")
    assert list(digests(tmp_path / "a")) == ["dial:1"]
    text = ok("--zoo", tmp_path / "b", "pull", source, "ppo_swarm:1", "--aliases")
    assert "moved ppo_swarm:prod to ppo_swarm:1" in text
    assert list(digests(tmp_path / "b")) == ["ppo_swarm:1"]
    assert BrainManager(tmp_path / "b").aliases("ppo_swarm")["prod"] == 1
    found = parsed("sync", source, tmp_path / "c", "dial:1", "ppo_swarm:1")
    assert {each["status"] for each in found["outcomes"]} == {"copied"}
    assert found["target"] == str(tmp_path / "c")
    assert found["sent_bytes"] == found["planned_bytes"] > 0


def test_sync_with_dry_run_copies_nothing(zoo: BrainManager, tmp_path: Path) -> None:
    text = ok("push", tmp_path / "other", "dial", "--dry-run")
    assert text.splitlines()[0] == "to copy dial:1"
    assert "nothing was done" in text
    assert not (tmp_path / "other").exists()
    assert parsed("push", tmp_path / "other", "dial", "-n")["dry_run"] is True


def test_sync_with_delete_follows_deletions(zoo: BrainManager, tmp_path: Path) -> None:
    ok("push", tmp_path / "other")
    zoo.delete("dial:1")
    ok("push", tmp_path / "other")
    assert "dial:1" in digests(tmp_path / "other")
    assert "deleted dial:1" in ok("push", tmp_path / "other", "--delete")
    assert "dial:1" not in digests(tmp_path / "other")


def test_a_conflict_is_reported_and_exits_with_four(zoo: BrainManager, tmp_path: Path) -> None:
    with BrainManager(tmp_path / "other") as other:
        other.save("dial", PARAMS, {"notes": "mine"})
    result = run("push", tmp_path / "other")
    assert result.exit_code == 4
    assert result.stderr.startswith("conflict dial:1, ")
    assert "2 copied, 1 conflict" in result.stdout
    result = run("push", tmp_path / "other", "--json")
    assert result.exit_code == 4
    statuses = {x["name"]: x["status"] for x in json.loads(result.stdout)["outcomes"]}
    assert statuses["dial"] == "conflict"


def test_a_version_that_cannot_be_read_exits_with_five(zoo: BrainManager, tmp_path: Path) -> None:
    path = tmp_path / "zoo/models/dial/v1/manifest.json"
    path.chmod(0o644)
    path.write_bytes(b"{}")
    result = run("push", tmp_path / "other")
    assert result.exit_code == 5
    assert result.stderr.startswith("failed dial:1, ")
    assert "2 copied, 1 failed" in result.stdout


def test_a_zoo_is_not_copied_onto_itself_nor_from_nowhere(
    zoo: BrainManager, tmp_path: Path
) -> None:
    refused(2, "push", tmp_path / "zoo")
    refused(3, "pull", tmp_path / "nowhere")
    refused(3, "push", tmp_path / "other", "nope")


@pytest.mark.s3
def test_push_to_a_bucket_and_everything_there_by_options(
    zoo: BrainManager, s3_place: S3Place
) -> None:
    given = [x for k, v in s3_place.storage_options.items() for x in _option(k, v)]
    ok("push", s3_place.url, *given)
    rows = parsed("--zoo", s3_place.url, "ls", *given)
    assert len(rows) == 3
    found = parsed("--zoo", s3_place.url, "show", "dial", *given)
    endpoint = s3_place.storage_options.get("endpoint_url")
    assert endpoint is None or endpoint in found["python"][1]
    assert "secret" not in found["python"][1]
    checks = {check["what"]: check for check in parsed("--zoo", s3_place.url, "doctor", *given)}
    assert checks["format"]["state"] == "ok"


def _option(key: str, value: Any) -> list[str]:
    return ["--storage-option", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]


# sync_zoo


def sync_zoo(*arguments: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "sync_zoo"), *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_sync_zoo_prints_one_line_and_exits_as_sync_does(zoo: BrainManager, tmp_path: Path) -> None:
    source, target = tmp_path / "zoo", tmp_path / "other"
    done = sync_zoo(source, target)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert f"{source} -> {target}: 3 copied; " in done.stdout
    assert sync_zoo(tmp_path / "nowhere", target).returncode == 3
    assert sync_zoo(source).returncode == 2


def test_sync_zoo_runs_as_a_scheduler_runs_it(zoo: BrainManager, tmp_path: Path) -> None:
    link = tmp_path / "sync"
    link.symlink_to(ROOT / "scripts" / "sync_zoo")
    bare = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    command = [link, tmp_path / "zoo", tmp_path / "other"]
    done = subprocess.run(
        command, env=bare, cwd="/", capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 copied; " in done.stdout


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_sync_zoo_leaves_it_to_the_run_before(zoo: BrainManager, tmp_path: Path) -> None:
    import fcntl

    arguments = (tmp_path / "zoo", tmp_path / "other")
    assert sync_zoo(*arguments).returncode == 0
    [lock] = (tmp_path / "cache" / "locks").iterdir()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        late = sync_zoo(*arguments)
        assert (late.returncode, late.stdout) == (75, "")
        assert "still going" in late.stderr
        assert sync_zoo(*arguments, "--dry-run").returncode == 0
    assert sync_zoo(*arguments).returncode == 0


# The cache


def test_cache_ls_prune_and_verify(zoo: BrainManager, tmp_path: Path) -> None:
    from brainstore.address import Digest

    cache = Cache()
    bodies = [b"a" * 600, b"b" * 600]
    for body in bodies:
        cache.write(Digest.of(body), body)
    assert "2 blobs, 1.2 kB of at most" in ok("cache", "ls")
    assert [blob["size_bytes"] for blob in parsed("cache", "ls")["blobs"]] == [600, 600]
    damaged = cache.ls()[0]
    damaged.path.chmod(0o644)
    damaged.path.write_bytes(b"x" * 600)
    assert ok("cache", "verify") == "damaged and removed: 1 blob, 600 B\n"
    assert parsed("cache", "verify")["removed"] == []
    assert parsed("cache", "prune", "--max", "1kB")["size_bytes"] == 0
    assert ok("cache", "prune", "--max", "0") == "removed: 1 blob, 600 B\n"
    assert ok("cache", "ls").startswith(f"{tmp_path / 'cache'}: 0 blobs, 0 B")


# Care


def test_doctor_finds_nothing_wrong_here(zoo: BrainManager) -> None:
    checks = {check["what"]: check for check in parsed("doctor")}
    for what in ("python", "numpy", "cache", "zoo", "reachable", "format", "index"):
        assert checks[what]["state"] == "ok", checks[what]
    assert "2 models, 3 versions" in ok("doctor")


def test_doctor_says_how_to_make_a_zoo_where_there_is_none(
    zoo: BrainManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINSTORE_OFFLINE", "1")
    text = ok("doctor", "--zoo", tmp_path / "new")
    assert f"-> brainstore --zoo {tmp_path / 'new'} init" in text
    assert "BRAINSTORE_OFFLINE is set" in text


def test_doctor_names_the_package_that_is_missing_or_old(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    real = metadata.version

    def version(package: str) -> str:
        if package == "safetensors":
            raise metadata.PackageNotFoundError(package)
        return {"s3fs": "2023.1.0"}.get(package) or real(package)

    monkeypatch.setattr("brainstore.cli.checks.metadata.version", version)
    result = run("doctor", "--json")
    checks = {check["what"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert checks["safetensors"]["fix"] == "pip install -U 'safetensors'"
    assert checks["s3fs"]["state"] == "note"
    assert checks["s3fs"]["fix"] == "pip install -U 'brainstore[s3]'"


def test_doctor_survives_a_damaged_zoo(zoo: BrainManager, tmp_path: Path) -> None:
    (tmp_path / "zoo/registry.json").write_bytes(b"{")
    result = run("doctor")
    assert result.exit_code == 5
    assert "fsck" in result.stdout


def test_fsck_finds_nothing_in_a_healthy_zoo(zoo: BrainManager) -> None:
    assert ok("fsck") == "no damage found\n"
    assert ok("fsck", "dial") == "no damage found\n"
    assert parsed("fsck") == []


def test_fsck_repairs_the_index_and_then_is_content(zoo: BrainManager, tmp_path: Path) -> None:
    (tmp_path / "zoo/registry.json").write_bytes(b"{")
    result = run("fsck")
    assert result.exit_code == 5
    assert result.stdout.splitlines()[-1] == "1 damaged"
    assert "repaired index registry.json" in ok("fsck", "--repair")
    assert ok("fsck") == "no damage found\n"


def test_fsck_tells_a_flipped_byte_and_exits_with_five(zoo: BrainManager, tmp_path: Path) -> None:
    blob = next(path for path in (tmp_path / "zoo/blobs").rglob("*") if path.is_file())
    blob.chmod(0o644)
    body = bytearray(blob.read_bytes())
    body[-1] ^= 1
    blob.write_bytes(body)
    blob.chmod(0o444)
    result = run("fsck", "--json")
    assert result.exit_code == 5
    assert [x["kind"] for x in json.loads(result.stdout)] == ["blob-damaged"]


def test_fsck_of_nothing_is_not_a_clean_bill(zoo: BrainManager, tmp_path: Path) -> None:
    refused(3, "fsck", "nope")
    refused(3, "fsck", "--repair", "--zoo", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("click asks bash for its version")
    assert "_BRAINSTORE_COMPLETE" in ok("completion", shell)
    assert parsed("completion", shell)["shell"] == shell


def test_demo_runs_the_story_in_the_zoo_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str | None] = []
    monkeypatch.setattr("brainstore.demo.story.run", told.append)
    ok("demo")
    ok("demo", "--zoo", "s3://b/x")
    assert told == [None, "s3://b/x"]
