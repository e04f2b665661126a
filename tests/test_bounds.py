"""What claims to be enormous costs little memory, and ends: in a process that may have little."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mutations import nested, small_zoo
from zoos import opened

from brainstore import BrainManager, BrainstoreError
from brainstore.address import Fact, Name, manifest_key, new_ulid
from brainstore.fsck import fsck
from brainstore.garbage import collect
from brainstore.storage.base import MAX_GET_BYTES
from brainstore.storage.local import LocalStore

MEBIBYTE = 2**20
MEMORY_BYTES = 768 * MEBIBYTE
TIME_S = 240.0
"""Generous: who needs it compares everything with everything, or counts to 2**60."""

MANIFEST = manifest_key(Name("cut"), 1)
INTACT = "load"


def main(folder: str, told_to: str) -> None:
    """Use every zoo in the folder as the first word of its name says; write how that ended."""
    zoos = sorted(Path(folder).iterdir(), key=lambda zoo: (zoo.name != INTACT, zoo.name))
    with open(told_to, "w", encoding="utf-8") as answers:
        for zoo in zoos:
            with opened(zoo) as manager:
                USES[zoo.name.partition(" ")[0]](manager, zoo)
            answers.write(json.dumps([zoo.name, ERRORS.pop()]) + "\n")
            if zoo == zoos[0]:
                # The first imports what the others share.
                most = used_bytes() + MEMORY_BYTES
                resource.setrlimit(resource.RLIMIT_AS, (most, most))


ERRORS: list[str] = []


def used_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def told(call: Callable[[], object]) -> None:
    ERRORS.clear()
    try:
        call()
    except BrainstoreError as error:
        ERRORS.append(f"{type(error).__name__}: {error}"[:400])
    else:
        ERRORS.append("fine")


USES: dict[str, Callable[[BrainManager, Path], None]] = {
    "load": lambda zoo, _: told(lambda: zoo.load("cut:1", as_numpy=True, verify=True)),
    "list": lambda zoo, _: told(zoo.table),
    "latest": lambda zoo, _: told(lambda: zoo.load("cut", as_numpy=True)),
    "policy": lambda zoo, _: told(zoo.policy),
    "reports": lambda zoo, _: told(lambda: zoo.reports("ppo:1")),
    "fsck": lambda zoo, _: told(lambda: fsck(zoo.zoo)),
    "gc": lambda zoo, _: told(lambda: collect(zoo.zoo)),
    "npz": lambda zoo, at: told(lambda: zoo.import_file(at / "a.npz", "a")),
    "tensors": lambda zoo, at: told(lambda: zoo.import_file(at / "a.safetensors", "a")),
}


def edited(body: bytes, **changes: object) -> bytes:
    record = json.loads(body)
    leaf = record["groups"]["params"]["leaves"][0]
    for name, value in changes.items():
        (leaf if name in leaf else record)[name] = value
    return json.dumps(record).encode()


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(shape: list[int], stop: int) -> bytes:
    return json.dumps(
        {"tensor": {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}}
    ).encode()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "zoo"
    store = LocalStore(folder)
    for stat in small_zoo().list(""):
        store.put(stat.key, small_zoo().get(stat.key).body)  # type: ignore[union-attr]  # listed
    return folder


def hostile_zoos(template: Path, folder: Path) -> dict[str, str]:
    """Make them; return what must be told of each."""
    expected: dict[str, str] = {}

    def zoo(name: str, tells: str) -> Path:
        expected[name] = tells
        shutil.copytree(template, folder / name)
        return folder / name

    def record(name: str, key: str, body: bytes, tells: str) -> None:
        path = zoo(name, tells) / key
        path.unlink(missing_ok=True)
        path.write_bytes(body)

    def sparse(name: str, key: str) -> None:
        path = zoo(name, f"no record has more than {MAX_GET_BYTES:,}") / key
        path.unlink(missing_ok=True)
        with path.open("wb") as stream:
            stream.truncate(2**40)

    zoo(INTACT, "fine")
    body = (template / MANIFEST).read_bytes()
    deep = nested('["list",', 10**6, "]", '"*"').encode()
    structure = json.dumps(json.loads(body)["groups"]["params"]["structure"]).replace(" ", "")
    assert structure.encode() in body
    record("load deep structure", MANIFEST, body.replace(structure.encode(), deep), "Corrupt")
    report = next((template / "models/ppo/v1/reports").iterdir()).relative_to(template)
    fact = Fact(new_ulid(), "save", Name("new"), 1).key
    arrays, dicts = nested("[", 10**6, "]").encode(), nested('{"a":', 10**6, "}").encode()
    for name, key in (
        ("load deep manifest", MANIFEST), ("list deep index", "registry.json"),
        ("latest deep", "models/cut/refs/latest.json"), ("policy deep", "policy.json"),
        ("reports deep", str(report)), ("list deep fact", fact), ("gc deep manifest", MANIFEST),
    ):  # fmt: skip
        record(f"{name} 1", key, arrays, "Corrupt")
        record(f"{name} 2", key, b'{"format":1,"row":%s,"name":%s}' % (dicts, dicts), "Corrupt")
        sparse(f"{name} 3", key)
    record("load huge shape", MANIFEST, edited(body, shape=[2**60]), "Corrupt")
    record("load huge product", MANIFEST, edited(body, shape=[2**40, 2**40]), "Corrupt")
    blobs = dict.fromkeys(json.loads(body)["blobs"], 2**44)
    record("load huge blob", MANIFEST, edited(body, blobs=blobs), "Corrupt")
    pieces = json.loads(body)["groups"]["params"]["leaves"][0]["pieces"]
    record("load many pieces", MANIFEST, _many(body, pieces[0]), "Corrupt")
    [blob] = [
        path for path in (template / "blobs").rglob("*") if pieces[0]["blob"][7:] == path.name
    ]
    for number, content in enumerate(
        (header(b"", 2**60), header(entry([2**60], 2**62)), header(entry([2**32, 2**32], 0)))
    ):
        key = str(blob.relative_to(template))
        record(f"load huge header {number}", key, content, "Corrupt")
        path = zoo(f"tensors {number}", "BadParams") / "a.safetensors"
        path.write_bytes(content)
    _write_bomb(zoo("npz bomb", "claim to hold arrays of 2,147,483,648") / "a.npz")
    _write_claim(zoo("npz claim", "BadParams") / "a.npz")
    return expected


def _many(body: bytes, piece: dict[str, object]) -> bytes:
    """Return the manifest of a leaf in very many pieces, none of which is missing but one."""
    count = 40_000
    rows = [*range(count - 1), 0]
    pieces = [{**piece, "index": [[2 * row, 2 * row + 2], [0, 3]]} for row in rows]
    return edited(body, shape=[2 * count, 3], pieces=pieces)


def _write_bomb(path: Path) -> None:
    """Write an archive of little, whose directory claims much; no reader goes beyond the claim."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(MEBIBYTE))
    body = bytearray(path.read_bytes())
    at = body.rindex(b"PK\1\2")
    body[at + 24 : at + 28] = struct.pack("<L", 2**31)
    path.write_bytes(body)


def _write_claim(path: Path) -> None:
    """Write an array whose own header claims 2**60 bytes."""
    np.savez(path, w=np.zeros(7, np.float64))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("w.npy").replace(
            b"(7,), }" + b" " * 18, b"(144115188075855872,), }".ljust(25)
        )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", content)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, and a limit that is kept")
def test_what_claims_to_be_enormous_takes_little_memory_and_ends(
    template: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    (tmp_path / "zoos").mkdir()
    expected = hostile_zoos(template, tmp_path / "zoos")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_bounds as test; "
    program += "test.main(*sys.argv[2:])"
    answers = tmp_path / "answers"
    arguments = map(str, (Path(__file__).parent, tmp_path / "zoos", answers))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, timeout=TIME_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(json.loads(line) for line in answers.read_text().splitlines())
    assert found.keys() == expected.keys()
    # Without this the others would prove nothing.
    assert found[INTACT] == "fine"
    wrong = {name: found[name] for name, tells in expected.items() if tells not in found[name]}
    assert wrong == {}
    tally("claims of enormous sizes and depths", cases=len(found), lost=0)
