"""One program among its forks, its threads and its end: nothing hangs, nothing is half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoos import WrappedStore, opened

from brainstore.address import blob_key
from brainstore.blobs import RANGE_BYTES, RANGES_AT_ONCE, Blobs, FileBlob, _Fetch
from brainstore.cache import Cache
from brainstore.storage.base import ABSENT
from brainstore.storage.memory import MemoryStore
from brainstore.sync import copying
from brainstore.threads import Threads

TESTS = Path(__file__).parent
PATIENCE_S = 60


def run(program: str, *arguments: object) -> str:
    """Return what the program printed; it must end, and well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """
    import os, sys
    from zoos import params, same
    from brainstore import BrainManager

    zoo = BrainManager(sys.argv[1])
    zoo.save("ppo", params(1))
    child = os.fork()
    name = zoo.save("ppo", params(2))
    assert same(zoo.load(name, as_numpy=True)[0], params(2))
    if child == 0:
        zoo.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    zoo.close()
    print(*BrainManager(sys.argv[1]).list_models())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_saves_beside_its_parent(tmp_path: Path) -> None:
    assert run(FORK, tmp_path / "zoo").split() == ["ppo_v1", "ppo_v2", "ppo_v3"]


FORK_S3 = """
    import json, os, sys
    from zoos import params
    from brainstore import BrainManager, Unsupported

    zoo = BrainManager(sys.argv[1], storage_options=json.loads(sys.argv[2]), cache=sys.argv[3])
    zoo.save("ppo", params(1))
    child = os.fork()
    if child == 0:
        try:
            zoo.save("ppo", params(2))
        except Unsupported as error:
            os._exit(0 if "spawn" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    print(zoo.save("ppo", params(3)))
    zoo.close()
"""


@pytest.mark.s3
def test_a_forked_child_is_told_to_open_the_bucket_itself(s3_place: Any, tmp_path: Path) -> None:
    place = s3_place.url, json.dumps(s3_place.storage_options), tmp_path
    assert run(FORK_S3, *place) == "ppo_v2\n"


class HalfWayStore(MemoryStore):
    """Takes one piece of a blob, then waits until the test goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self.taken = 0

    def put(self, key: str, body: Any, **condition: Any) -> Any:
        for _ in body:
            self.taken += 1
            self.has_begun.set()
            assert self.may_go_on.wait(PATIENCE_S)
        return super().put(key, body, **condition)


def test_a_save_that_ends_early_ends_its_uploads() -> None:
    store = HalfWayStore()
    blob = FileBlob(bytes(3 * RANGE_BYTES))
    # How it is left does not matter: by an error, by Ctrl-C, or for the commit.
    with Blobs(store).upload([blob]) as upload:
        upload.start(set())
        assert store.has_begun.wait(PATIENCE_S)
    store.may_go_on.set()
    [write] = upload._writes
    assert write.exception(PATIENCE_S) is not None
    assert store.taken == 1
    assert list(store.list("")) == []


def press_ctrl_c(until: threading.Event) -> None:
    """Interrupt the main thread until that is heard.

    A signal that comes just before a wait begins is not heard in it.
    """
    for _ in range(PATIENCE_S // 5):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if until.wait(5):
            return


def test_ctrl_c_in_a_load_ends_the_downloads_that_run(tmp_path: Path) -> None:
    blobs = [FileBlob(bytes([seed]) * RANGE_BYTES * 20) for seed in range(3)]
    inner = MemoryStore()
    for blob in blobs:
        inner.put(blob_key(blob.digest), blob, expect=ABSENT)

    def interrupt(call: Any, proceed: Any) -> Any:
        if call.number == 0:
            press_ctrl_c(fetch._stop)
        assert fetch._stop.wait(PATIENCE_S)
        return proceed()

    store = WrappedStore(inner, interrupt)
    ranges = Threads(RANGES_AT_ONCE, "test-range")
    fetch = _Fetch(store, Cache(tmp_path), ranges, "ppo:1", ())
    with pytest.raises(KeyboardInterrupt):
        fetch.all({blob.digest: blob.size_bytes for blob in blobs})
    ranges.close()
    assert len(store.calls) <= RANGES_AT_ONCE
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class RemoteStore(MemoryStore):
    is_remote = True


@pytest.mark.parametrize("at", ["get_range", "put"])
def test_ctrl_c_in_a_sync_ends_the_copies_that_run(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[threading.Event] = []
    real = copying._cancelling

    def noted(threads: int, stop: threading.Event | None = None) -> Any:
        stops.extend([stop] if stop else [])
        return real(threads, stop)

    sent = threading.Lock()

    def interrupt(call: Any, proceed: Any) -> Any:
        if call.method == at and call.room == "blob":
            if sent.acquire(blocking=False):
                press_ctrl_c(stops[0])
            assert stops[0].wait(PATIENCE_S)
        return proceed()

    monkeypatch.setattr(copying, "_cancelling", noted)
    source, target = WrappedStore(RemoteStore()), WrappedStore(MemoryStore())
    with opened(source, cache=Cache(tmp_path)) as one, opened(target) as two:
        one.save("ppo", {"w": np.zeros(5 * RANGE_BYTES // 4, np.float32)})
        two.init()
        (source if at == "get_range" else target).around = interrupt
        with pytest.raises(KeyboardInterrupt):
            two.pull(one)
        source.around = target.around = None
        assert list(target.inner.list("blobs/")) == []
        assert two.list_models() == []


FEW_DESCRIPTORS = """
    import resource, sys
    import numpy as np
    from brainstore import BrainManager
    from brainstore.storage.memory import MemoryStore

    class RemoteStore(MemoryStore):
        is_remote = True

    zoo = BrainManager(RemoteStore(), cache=sys.argv[1])
    zoo.save("ppo", {f"w{n}": np.full(2**18, n, np.float32) for n in range(120)})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    tree, _ = zoo.load("ppo", as_numpy=True)
    assert tree["w119"][5] == 119
    print(len(tree))
"""


def test_more_large_arrays_than_open_files_are_allowed_can_be_fetched(tmp_path: Path) -> None:
    import resource

    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 400:
        pytest.skip("the hard limit of open files is too low here")
    assert run(FEW_DESCRIPTORS, tmp_path) == "120\n"


FIRST_RECORDS = """
    import os, sys, threading
    from brainstore.records import decode_version

    def first_of_many(body):
        sys.setswitchinterval(1e-6)
        start = threading.Barrier(8)

        def read():
            start.wait()
            decode_version(body, "here")

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    body = open(sys.argv[1], "rb").read()
    for _ in range(40):
        child = os.fork()
        if child == 0:
            first_of_many(body)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_the_first_records_of_a_process_may_be_read_by_several_threads_at_once() -> None:
    golden = TESTS / "golden" / "records" / "manifest.json"
    assert set(run(FIRST_RECORDS, golden).split()) == {"0"}
