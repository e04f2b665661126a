"""The program that is killed: it does one piece of work on a zoo, and dies at its N-th call.

Started once, it imports everything, and forks a child for each death; see `Killed`. The
child says that its work is done only when it has returned, as any caller would know it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from aftermath import checked, has
from system_calls import Call, Proceed, watched
from zoos import opened, params

from brainstore import BrainManager
from brainstore.address import GC_STATE_KEY, Digest, Name, blob_key, new_ulid
from brainstore.garbage import collect
from brainstore.intents import put_intent
from brainstore.records import Target
from brainstore.storage.disk import LEFTOVER_PREFIX

CHANGES = ("open", "write", "pwrite", "link", "rename", "replace", "unlink", "rmdir", "mkdir",
           "truncate", "ftruncate", "chmod", "fchmod")  # fmt: skip
"""The calls that change what a reader sees of the folder, of those that are watched."""

ACKNOWLEDGED = {"ppo:1": 1, "ppo:3": 3, "team/other:1": 5, "gone:1": 9}
"""What the zoo holds that `make_zoos` makes."""

LARGE = 300_000
PATIENCE_S = 120


@dataclass(frozen=True)
class Work:
    """One operation on a zoo: what it does, and what is true for good once it has returned.

    `source` is another zoo, to sync from. `prepare` makes the zoo what the work needs, and
    `before` is what was saved there: references, and the seeds of their params.
    """

    do: Callable[[BrainManager, Path], object]
    holds: Callable[[BrainManager], bool]
    prepare: Callable[[Path], object] = lambda zoo: None
    before: Mapping[str, int] = field(default_factory=lambda: ACKNOWLEDGED)


def is_listed(zoo: BrainManager, full_name: str) -> bool:
    return full_name in zoo.list_models()


def empty(zoo: Path) -> None:
    import shutil

    shutil.rmtree(zoo)


def damage(zoo: Path) -> None:
    """Take from the zoo what follows from the rest, as no crash would."""
    (zoo / "registry.json").unlink()
    (zoo / "models/ppo/refs/latest.json").unlink()
    (zoo / "gc/state.json").unlink()


def litter(zoo: Path) -> None:
    """Leave in the zoo what dead savers leave: an intent, a blob, and half of one."""
    orphan = b"of a save that has died"
    with opened(zoo) as manager:
        store = manager.zoo.store
        store.put(blob_key(Digest.of(orphan)), orphan)
        target = Target(name=Name("ppo"), version=4)
        put_intent(manager.zoo.registry, new_ulid(), [target], [Digest.of(orphan)])
    (zoo / "blobs" / f"{LEFTOVER_PREFIX}1-ab").write_bytes(b"half")


def collect_all(zoo: BrainManager, _: Path) -> None:
    collect(zoo.zoo, dry_run=False, older_than_s=0, expiry_s=0)


def is_collected(zoo: BrainManager) -> bool:
    """Return whether nothing is left to collect, and no collection is under way."""
    found = collect(zoo.zoo, older_than_s=0, expiry_s=0)
    state = json.loads(zoo.zoo.store.get(GC_STATE_KEY).body)["state"]
    return state == "idle" and not (found.blobs or found.leftovers or found.intents)


WORK = {
    "first save": Work(
        lambda zoo, _: zoo.save("ppo", params(4)), lambda zoo: has(zoo, "ppo:latest", 4), empty, {}
    ),
    "save": Work(
        lambda zoo, _: zoo.save("ppo", params(4)),
        lambda zoo: has(zoo, "ppo:latest", 4) and is_listed(zoo, str(zoo.get_latest("ppo"))),
    ),
    "save of several blobs": Work(
        lambda zoo, _: zoo.save(
            "big", params(4, LARGE), groups={"step": params(5)}, files={"notes.txt": b"seen"},
            aliases=["prod"],
        ),
        lambda zoo: has(zoo, "big:latest", 4, LARGE) and has(zoo, "big:prod", 4, LARGE),
    ),
    "alias move": Work(
        lambda zoo, _: zoo.alias("ppo:3", "prod"), lambda zoo: has(zoo, "ppo:prod", 3)
    ),
    "new alias": Work(
        lambda zoo, _: zoo.alias("ppo:1", "best"), lambda zoo: has(zoo, "ppo:best", 1)
    ),
    "delete": Work(
        lambda zoo, _: zoo.delete("ppo:3", force=True),
        lambda zoo: not is_listed(zoo, "ppo_v3") and has(zoo, "ppo:latest", 1),
    ),
    "undelete": Work(lambda zoo, _: zoo.undelete("ppo:2"), lambda zoo: has(zoo, "ppo:2", 2)),
    "sync": Work(
        lambda zoo, source: zoo.pull(source, aliases=True, delete=True),
        lambda zoo: has(zoo, "far/away:prod", 6) and has(zoo, "far/away:latest", 7)
        and not is_listed(zoo, "gone_v1"),
    ),
    "compaction": Work(
        lambda zoo, _: zoo.zoo.registry.journal.fold(),
        lambda zoo: zoo.zoo.registry.journal.fold() == 0,
    ),
    "gc": Work(collect_all, is_collected, litter),
    "fsck --repair": Work(
        lambda zoo, _: checked(zoo, repair=True),
        lambda zoo: has(zoo, "ppo:latest", 3) and checked(zoo) == [],
        damage,
    ),
}  # fmt: skip


def make_zoos(folder: Path) -> None:
    """Make `zoo` and `source` in `folder`, which every work begins with a copy of.

    The zoo has ppo:1 to ppo:3, of which 2 is deleted, aliases, and facts not yet folded; and
    a version of the source's, which was deleted there since.
    """
    with opened(folder / "source") as source:
        for seed in (6, 7, 8):
            source.save("far/away", params(seed))
        source.alias("far/away:1", "prod")
        source.save("gone", params(9))
    with opened(folder / "zoo") as zoo:
        zoo.pull(folder / "source", ["gone"])
        for seed in (1, 2, 3):
            zoo.save("ppo", params(seed))
        zoo.alias("ppo:1", "prod")
        zoo.delete("ppo:2")
        zoo.zoo.committer.tidy = lambda: None  # type: ignore[method-assign]  # the facts stay
        zoo.alias("ppo:3", "candidate")
        zoo.save("team/other", params(5))
    with opened(folder / "source") as source:
        source.delete("far/away:3")
        source.delete("gone:1")


@dataclass(frozen=True)
class Death:
    """What is known of a child: did it die of our hand, had its work returned, what it called."""

    was_killed: bool
    has_returned: bool
    calls: list[tuple[str, str]]


class Killed:
    """The program, running, and how to have a child of it killed."""

    def __enter__(self) -> Killed:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(PATIENCE_S)

    def run(
        self,
        work: str,
        zoo: Path,
        source: Path,
        *,
        at: int = 0,
        names: Sequence[str] = CHANGES,
        traced: Callable[[int], AbstractContextManager[None]] | None = None,
    ) -> Death:
        """Have a child do the work, and kill itself just before its `at`-th call of `names`.

        With `at` 0, it lives. A write at which it dies is done by half. All of it happens in
        the context that `traced(process_id)` gives.
        """
        self._send({"work": work, "zoo": str(zoo), "source": str(source), "at": at, "names": names})
        process_id = self._receive()
        with traced(process_id) if traced else contextlib.nullcontext():
            self._send("go")
            answer = self._receive()
        assert not answer["error"], answer["error"]
        return Death(answer["was_killed"], answer["has_returned"], answer["calls"])

    def _send(self, message: Any) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> Any:
        line = self._process.stdout.readline()
        assert line, "the program that forks children has died itself"
        return json.loads(line)


# What follows runs in that program and in its children


class _Killer:
    """Kills this process just before its `at`-th call of `names`, or half way through it."""

    def __init__(self, zoo: Path, at: int, names: list[str]) -> None:
        self.calls: list[tuple[str, str]] = []
        self._zoo, self._at, self._names = zoo, at, names
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self, call: Call, proceed: Proceed) -> Any:
        with self._lock:
            self.calls.append((call.name, os.path.relpath(call.path, self._zoo)))
            self._count += call.name in self._names
            if self._count == self._at and call.name in self._names:
                if call.name in ("write", "pwrite"):
                    descriptor, body, *offset = call.arguments
                    proceed(descriptor, body[: len(body) // 2], *offset)
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()  # the signal may take a moment
        return proceed()


def _child(request: dict[str, Any], go: int, tell: int) -> None:
    signal.alarm(PATIENCE_S)
    os.read(go, 1)
    zoo = Path(request["zoo"])
    killer = _Killer(zoo, request["at"], request["names"])
    with watched([zoo], killer), BrainManager(zoo) as manager:
        WORK[request["work"]].do(manager, Path(request["source"]))
        os.write(tell, b"returned\n")
    os.write(tell, json.dumps(killer.calls).encode() + b"\n")


def _fork(request: dict[str, Any]) -> None:
    go_out, go_in = os.pipe()
    tell_out, tell_in = os.pipe()
    with warnings.catch_warnings():
        # JAX is imported, and no thread of it has been started.
        warnings.simplefilter("ignore")
        process_id = os.fork()
    if process_id == 0:
        status = 1
        try:
            _child(request, go_out, tell_in)
            status = 0
        except BaseException:  # noqa: BLE001  # it is told to the test, which fails
            os.write(tell_in, traceback.format_exc().encode())
        os._exit(status)
    os.close(tell_in)
    _answer(process_id)
    sys.stdin.readline()
    os.write(go_in, b"!")
    with os.fdopen(tell_out) as stream:
        said = stream.read().partition("returned\n")
    _, status = os.waitpid(process_id, 0)
    os.close(go_in)
    os.close(go_out)
    code = os.waitstatus_to_exitcode(status)
    _answer(
        {
            "was_killed": code == -signal.SIGKILL,
            "has_returned": bool(said[1]),
            "calls": json.loads(said[2]) if code == 0 else [],
            "error": "" if code in (0, -signal.SIGKILL) else f"{code}: {said}",
        }
    )


def _answer(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    # What is imported here, and asked once, no child needs to do again. All threads have
    # ended by then.
    import brainstore.fsck
    import brainstore.sync  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        make_zoos(Path(folder))
    for line in sys.stdin:
        _fork(json.loads(line))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
