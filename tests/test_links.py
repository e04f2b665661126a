"""Symbolic links that somebody plants in a zoo: none is followed, inside or out of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from zoos import finish, opened, params, same

from brainstore import BrainManager, BrainstoreError, Corrupt
from brainstore.fsck import check, fsck
from brainstore.fsck.survey import Finding
from brainstore.records import Intent
from brainstore.storage import disk
from brainstore.storage.base import ABSENT, ANYTHING
from brainstore.storage.local import LocalStore

MANIFEST, LATEST = "models/x/v1/manifest.json", "models/x/refs/latest.json"
PLACES = [
    "models", "models/x", "models/x/v1", MANIFEST, "models/x/v1/reports", "REPORT",
    "models/x/refs", LATEST, "models/x/refs/prod.json", "blobs", "BLOB FOLDER", "BLOB",
    "journal", "FACT", "intents", "INTENT", "gc", "gc/state.json", "brainstore.json",
    "registry.json", "policy.json", "damaged",
]  # fmt: skip


@pytest.fixture(autouse=True)
def second_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody saves meanwhile whom fsck would have to wait for.
    monkeypatch.setattr(check, "SECOND_LOOK_S", 0)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo with x:1, which prod names, a report on it, a policy, an intent and a fact."""
    folder = tmp_path_factory.mktemp("template") / "zoo"
    with opened(folder) as zoo:
        zoo.save("x", params(1), aliases=["prod"])
        checks = [{"metric": "return", "value": 2.0, "op": ">=", "threshold": 1.0}]
        zoo.add_report("x:1", {"station": "night", "checks": checks})
        zoo.set_policy([{"alias": "best", "models": "x", "stations": ["night"]}])
        finish(zoo)
        zoo.zoo.committer.tidy = lambda: None
        zoo.alias("x:1", "candidate")
    (folder / "damaged").mkdir()
    (folder / "intents").mkdir(exist_ok=True)
    write_id = "01JDE5ZZZZZZZZZZZZZZZZZZZZ"
    intent = Intent(write_id=write_id, created_at="", by="ada", targets=(), digests=())
    (folder / "intents" / f"{write_id}.json").write_bytes(intent.encode())
    return folder


def place(folder: Path, name: str) -> Path:
    """Return the path that a name of PLACES means in this zoo."""
    patterns = {
        "REPORT": "models/x/v1/reports/*.json", "BLOB FOLDER": "blobs/*", "BLOB": "blobs/*/*",
        "FACT": "journal/*", "INTENT": "intents/*",
    }  # fmt: skip
    return next(folder.glob(patterns.get(name, name)))


def contents(folder: Path) -> dict[str, bytes | str]:
    """Return what stands in a folder: bytes of files, targets of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def findings(zoo: BrainManager, *, repair: bool = False) -> list[Finding]:
    return fsck(zoo.zoo, repair=repair)


USES: list[Callable[[BrainManager], object]] = [
    lambda zoo: zoo.load("x", as_numpy=True, verify=True),
    lambda zoo: zoo.load("x:1", as_numpy=True),
    lambda zoo: zoo.load("x:prod", as_numpy=True),
    lambda zoo: zoo.list_models(),
    lambda zoo: zoo.table(),
    lambda zoo: zoo.aliases("x"),
    lambda zoo: zoo.history(),
    lambda zoo: zoo.reports("x:1"),
    lambda zoo: zoo.policy(),
    lambda zoo: zoo.lineage("x:1"),
    lambda zoo: zoo.promote("x:1", "best", dry_run=True),
    lambda zoo: zoo.zoo.registry.journal.fold(),
    lambda zoo: zoo.alias("x:1", "prod"),
    lambda zoo: zoo.alias("x:1", "newest"),
    lambda zoo: zoo.save("x", params(2)),
    lambda zoo: zoo.save("y", params(1)),
    lambda zoo: zoo.add_report("x:1", {"station": "day", "checks": []}),
    lambda zoo: zoo.set_policy([]),
    lambda zoo: findings(zoo),
    lambda zoo: findings(zoo, repair=True),
    lambda zoo: zoo.delete("x:1", force=True),
    lambda zoo: zoo.undelete("x:1"),
    lambda zoo: zoo.load("x:1", as_numpy=True),
]


def use_everything(folder: Path, elsewhere: Path) -> list[Any]:
    """Do everything with the zoo; return what came of it, errors of the tree among it."""
    told: list[Any] = []
    with opened(folder) as zoo:
        push: list[Callable[[BrainManager], object]] = [lambda zoo: zoo.push(elsewhere)]
        for use in [*USES[:-4], *push, *USES[-4:]]:
            try:
                told.append(use(zoo))
            except BrainstoreError as error:
                told.append(error)
    return told


@pytest.fixture(params=PLACES)
def planted(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A zoo in which a link stands at one place, and the outside, to which that was moved."""
    zoo, outside = tmp_path / "zoo", tmp_path / "outside"
    shutil.copytree(template, zoo)
    outside.mkdir()
    link = place(zoo, request.param)
    shutil.move(link, outside / "moved")
    link.symlink_to(outside / "moved")
    return link, outside


def test_what_lies_behind_a_link_is_neither_read_nor_changed(
    planted: tuple[Path, Path], tmp_path: Path
) -> None:
    link, outside = planted
    before = contents(outside)
    told = use_everything(tmp_path / "zoo", tmp_path / "elsewhere")
    assert contents(outside) == before
    # Of these nobody needs anything.
    if link.parent.name != "intents" and link.name != "damaged":
        assert any(isinstance(each, Corrupt) and str(link) in str(each) for each in told)


def test_fsck_names_a_link_and_goes_on(planted: tuple[Path, Path], tmp_path: Path) -> None:
    link, outside = planted
    before = contents(outside)
    with opened(tmp_path / "zoo") as zoo:
        (tmp_path / "zoo" / "stray").write_bytes(b"")
        for repair in (False, True):
            found = {(each.kind, each.where) for each in findings(zoo, repair=repair)}
            assert ("link", link.relative_to(tmp_path / "zoo").as_posix()) in found
            assert ("stray", "stray") in found
    assert contents(outside) == before


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@pytest.mark.parametrize("plant", [dangling, loop, to_a_device, to_a_pipe])
@pytest.mark.parametrize("name", [MANIFEST, LATEST, "BLOB", "gc/state.json", "registry.json"])
def test_a_link_to_nothing_good_is_told_and_waited_for_by_nobody(
    template: Path, tmp_path: Path, plant: Callable[[Path], None], name: str
) -> None:
    shutil.copytree(template, tmp_path / "zoo")
    link = place(tmp_path / "zoo", name)
    link.unlink()
    plant(link)
    told = use_everything(tmp_path / "zoo", tmp_path / "elsewhere")
    assert any(isinstance(each, Corrupt) and str(link) in str(each) for each in told)


@pytest.mark.parametrize("name", PLACES)
def test_a_file_in_place_of_a_folder_or_the_other_way_is_told_and_stays(
    template: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(template, tmp_path / "zoo")
    path = place(tmp_path / "zoo", name)
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"in the way")
    else:
        path.unlink()
        path.mkdir()
        (path / "within").write_bytes(b"in the way")
    use_everything(tmp_path / "zoo", tmp_path / "elsewhere")
    kept = path if path.is_file() else path / "within"
    assert kept.read_bytes() == b"in the way"


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb\x1b[2J"])
@pytest.mark.parametrize("kind", ["link", "file", "folder"])
def test_names_that_are_no_text_break_nothing(
    template: Path, tmp_path: Path, name: bytes, kind: str
) -> None:
    shutil.copytree(template, tmp_path / "zoo")
    for folder in ("journal", "intents", "models", "models/x/refs", "blobs", "gc"):
        path = os.fsencode(tmp_path / "zoo" / folder) + b"/" + name
        if kind == "link":
            os.symlink(b"/dev/zero", path)
        elif kind == "folder":
            os.mkdir(path)
        else:
            Path(os.fsdecode(path)).write_bytes(b"")
    for verb in (["ls"], ["show", "x", "--json"], ["log", "--json"], ["fsck", "--json"], ["gc"]):
        result = run("--zoo", tmp_path / "zoo", *verb)
        assert not {"\x1b", "\udcff"} & set(result.output)
    use_everything(tmp_path / "zoo", tmp_path / "elsewhere")


def test_a_list_that_a_link_may_shorten_is_no_list(template: Path, tmp_path: Path) -> None:
    """Whoever moved a model to another disk must not have its blobs collected for that."""
    shutil.copytree(template, tmp_path / "zoo")
    shutil.move(tmp_path / "zoo/models/x", tmp_path / "x")
    (tmp_path / "zoo/models/x").symlink_to(tmp_path / "x")
    store, seen = LocalStore(tmp_path / "zoo"), []
    with pytest.raises(Corrupt, match="models/x is a symbolic link"):
        seen += list(store.list("models/"))
    listing: Iterator[Any] = store.list("")
    with pytest.raises(Corrupt):
        seen += [next(listing) for _ in range(100)]
    assert store.links() == ["models/x"]


@pytest.fixture
def linked(tmp_path: Path) -> LocalStore:
    """A zoo whose folder of pointers is a link to another folder with a pointer in it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "latest.json").write_bytes(b"of another zoo")
    (tmp_path / "zoo" / "models" / "x").mkdir(parents=True)
    (tmp_path / "zoo" / "models" / "x" / "refs").symlink_to(tmp_path / "outside")
    return LocalStore(tmp_path / "zoo")


def test_no_call_of_a_store_goes_through_a_link(linked: LocalStore, tmp_path: Path) -> None:
    token = disk.token_of(b"of another zoo")
    for expect in (ANYTHING, ABSENT, token):
        with pytest.raises(Corrupt, match="symbolic link"):
            linked.put(LATEST, b"new", expect=expect)
    with pytest.raises(Corrupt, match="symbolic link"):
        linked.delete(LATEST)
    reads: list[Callable[[], object]] = [
        lambda: linked.get(LATEST),
        lambda: linked.get_range(LATEST, 0, 2),
        lambda: linked.stat(LATEST),
        lambda: linked.settle(LATEST),
        lambda: linked.open(LATEST),
        lambda: list(linked.list("models/x/refs/")),
    ]
    for read in reads:
        with pytest.raises(Corrupt, match="symbolic link"):
            read()
    assert contents(tmp_path / "outside") == {"latest.json": b"of another zoo"}


def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker who is as fast as can be: the swap comes just before the last open."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "latest.json").write_bytes(b"of another zoo")
    store = LocalStore(tmp_path / "zoo")
    store.put(LATEST, b"ours")
    folder, real = (store.root / LATEST).parent, os.open

    def swap_then_open(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if path == "latest.json" and not folder.is_symlink():
            folder.rename(folder.with_name("aside"))
            folder.symlink_to(tmp_path / "outside")
        return real(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", swap_then_open)
    found = store.get(LATEST)
    assert found is not None
    assert found.body == b"ours"
    assert folder.is_symlink()


def test_a_zoo_may_itself_be_a_link_and_lie_behind_one(template: Path, tmp_path: Path) -> None:
    shutil.copytree(template, tmp_path / "real" / "zoo")
    (tmp_path / "disk").symlink_to(tmp_path / "real")
    (tmp_path / "brains").symlink_to(tmp_path / "disk" / "zoo")
    for where in (tmp_path / "brains", tmp_path / "disk" / "zoo"):
        with opened(where) as zoo:
            assert same(zoo.load("x:1", as_numpy=True)[0], params(1))
            zoo.save("z", params(7))
            assert not [each for each in findings(zoo) if not each.is_harmless]
    assert (tmp_path / "real" / "zoo" / "models" / "z" / "v2").is_dir()


def test_folders_without_end_are_walked_to_the_depth_of_keys(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "zoo")
    store.put("models/a", b"1")
    here = os.getcwd()
    try:
        os.chdir(store.root / "models")
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
        assert [each.key for each in store.list("")] == ["models/a"]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(tmp_path / "zoo")], check=True)


def looked_behind(template: Path, folder: Path, places: Sequence[str]) -> tuple[list[str], int]:
    """Use zoos with a link at each place; return the calls that came outside, and how many ran."""
    program = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_links import use_everything
for zoo in sorted(pathlib.Path({str(folder)!r}).glob("zoo *")):
    use_everything(zoo, zoo.with_name("elsewhere" + zoo.name))
"""
    outside, log = folder / "outside", folder / "calls"
    outside.mkdir()
    for number, name in enumerate(places):
        zoo = folder / f"zoo {number}"
        shutil.copytree(template, zoo)
        link = place(zoo, name)
        shutil.move(link, outside / str(number))
        link.symlink_to(outside / str(number))
    arguments = ["strace", "-f", "--seccomp-bpf", "-qq", "-yy", "-e", "trace=%file", "-o", str(log)]
    subprocess.run([*arguments, sys.executable, "-c", program], check=True, timeout=300)
    calls = [line for line in log.read_text(errors="replace").splitlines() if "zoo " in line]
    return [line for line in calls if str(outside) in line], len(calls)


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which sees all, is missing"
)


@needs_strace
def test_the_kernel_is_never_asked_for_what_lies_behind_a_link(
    template: Path, tmp_path: Path
) -> None:
    outside, calls = looked_behind(template, tmp_path, ["models/x/refs", "BLOB"])
    assert outside == []
    assert calls > 100


@needs_strace
@pytest.mark.soak
def test_the_kernel_is_never_asked_for_what_lies_behind_any_link(
    template: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    outside, calls = looked_behind(template, tmp_path, PLACES)
    assert outside == []
    assert calls > 1000
    tally("links planted in a zoo", cases=len(PLACES), operations=calls, followed=len(outside))


def test_the_command_line_tells_of_a_link(template: Path, tmp_path: Path) -> None:
    shutil.copytree(template, tmp_path / "zoo")
    shutil.move(tmp_path / "zoo" / "models", tmp_path / "models")
    (tmp_path / "zoo" / "models").symlink_to(tmp_path / "models")
    for verb in (["show", "x:1"], ["log"]):
        result = run("--zoo", tmp_path / "zoo", *verb)
        assert result.exit_code == 5
        assert "models is a symbolic link" in result.stderr
    assert "models: is a symbolic link" in run("--zoo", tmp_path / "zoo", "fsck").stdout
