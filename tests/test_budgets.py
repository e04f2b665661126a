"""The budgets of the design: requests and round trips on S3, copies and memory everywhere."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiobotocore.endpoint import AioEndpoint
from conftest import S3Place
from zoos import finish, opened, params, same

from brainstore import BrainManager
from brainstore.cache import Cache
from brainstore.provenance import provenance
from brainstore.storage import open_store
from brainstore.storage.memory import MemoryStore

MIB = 1 << 20
DELAY_S = 0.05
"""Added to every request: those that wait for each other are then plainly apart."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    start: float
    end: float

    @property
    def is_in_the_background(self) -> bool:
        return self.method == "DELETE" and "/intents/" in self.path


class Wire:
    """Every HTTP request of this process, with the time it took."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    @contextmanager
    def watched(self, zoo: BrainManager) -> Iterator[Wire]:
        """Hold what was sent inside, as far as somebody waits for it."""
        finish(zoo)
        self.requests.clear()
        before = sum(zoo.zoo.store.requests.values())
        yield self
        finish(zoo)
        # The store's own count is what people see.
        assert sum(zoo.zoo.store.requests.values()) - before == len(self.requests)
        self.requests = [each for each in self.requests if not each.is_in_the_background]

    @property
    def depth(self) -> int:
        """The longest chain of requests of which each began after the one before ended."""
        depth, last_end = 0, 0.0
        for request in sorted(self.requests, key=lambda each: each.end):
            if request.start >= last_end:
                depth, last_end = depth + 1, request.end
        return depth

    @property
    def count(self) -> int:
        return len(self.requests)

    def __repr__(self) -> str:
        return f"{self.count} requests, {self.depth} deep: " + ", ".join(
            f"{each.method} {each.path}" for each in self.requests
        )


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire, send = Wire(), AioEndpoint._send

    async def slow_send(endpoint: Any, request: Any) -> Any:
        start = time.monotonic()
        await asyncio.sleep(DELAY_S)
        reply = await send(endpoint, request)
        path = request.url.partition("//")[2].partition("/")[2]
        wire.requests.append(Request(request.method, "/" + path, start, time.monotonic()))
        return reply

    monkeypatch.setattr(AioEndpoint, "_send", slow_send)
    # A fold, now and then, would be in the background too.
    monkeypatch.setattr("brainstore.commit.BUCKET_FOLD", 10**9)
    return wire


@pytest.fixture
def place(s3_place: S3Place) -> S3Place:
    """A zoo of three versions of ppo, `prod` on the second."""
    fill(s3_place, 3)
    return s3_place


def fill(place: S3Place, versions: int) -> None:
    """Copy a zoo with so many versions of ppo, and some other models, into the bucket."""
    memory = MemoryStore()
    with opened(memory) as zoo:
        for seed in range(versions):
            zoo.save("ppo", params(seed % 3), config={"seed": seed})
            if seed % 10 == 0:
                zoo.save(f"other/{seed}", params(0))
        zoo.alias("ppo:2", "prod")
        finish(zoo)
        zoo.zoo.registry.journal.fold()
    store = open_store(place.url, place.storage_options)
    with ThreadPoolExecutor(16) as threads:
        keys = [stat.key for stat in memory.list("")]
        list(threads.map(lambda key: store.put(key, memory.get(key).body), keys))
    store.close()


@contextmanager
def process(place: S3Place, cache: Path) -> Iterator[BrainManager]:
    """A manager that has not sent anything, as in a new process."""
    provenance()  # asks git, once a process, which takes about as long as a request here
    manager = BrainManager(place.url, storage_options=place.storage_options, cache=Cache(cache))
    with manager as zoo:
        yield zoo


@pytest.mark.s3
def test_a_small_save_on_s3_stays_within_its_budget(
    place: S3Place, wire: Wire, tmp_path: Path
) -> None:
    with process(place, tmp_path) as zoo:
        with wire.watched(zoo):
            assert zoo.save("ppo", params(10)) == "ppo_v4"
        assert wire.depth <= 5, wire
        assert wire.count <= 8, wire
        for seed in (11, 12):
            with wire.watched(zoo):
                zoo.save("ppo", params(seed))
            assert wire.depth <= 4, wire
            assert wire.count <= 6, wire
        with wire.watched(zoo):
            zoo.save("brand_new", params(13))
        assert wire.depth <= 5, wire
        assert wire.count <= 7, wire
        # What this process stored already is not sent again.
        with wire.watched(zoo):
            zoo.save("ppo", params(13))
        assert wire.depth <= 4, wire
        assert wire.count <= 5, wire


@pytest.mark.s3
def test_a_first_save_of_what_another_process_stored_is_as_deep(
    place: S3Place, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two chains of two run side by side here; connecting must not make one of them look longer.
    monkeypatch.setitem(globals(), "DELAY_S", 0.4)
    with process(place, tmp_path) as zoo:
        with wire.watched(zoo):
            assert zoo.save("ppo", params(2)) == "ppo_v4"
        assert wire.depth <= 5, wire
        # One more than for new content: what stands there already is read, and compared.
        assert wire.count <= 9, wire
        assert [each.method for each in wire.requests if "/blobs/" in each.path] == ["PUT", "GET"]


@pytest.mark.s3
def test_a_load_on_s3_stays_within_its_budget(place: S3Place, wire: Wire, tmp_path: Path) -> None:
    with process(place, tmp_path) as zoo:
        with wire.watched(zoo):
            assert same(zoo.load("ppo", as_numpy=True)[0], params(2))
        assert wire.depth <= 3, wire
        assert wire.count <= 3, wire
    with process(place, tmp_path) as zoo:
        with wire.watched(zoo):
            assert same(zoo.load("ppo", as_numpy=True)[0], params(2))
        assert wire.count <= 1, wire
        pinned = f"ppo:3@{zoo.resolve('ppo').digest}"
    with process(place, tmp_path) as zoo:
        with wire.watched(zoo):
            assert same(zoo.load(pinned, as_numpy=True)[0], params(2))
        assert wire.count == 0, wire
        with wire.watched(zoo):
            zoo.load("ppo:prod", as_numpy=True)
        assert wire.depth <= 3, wire


@pytest.mark.s3
def test_names_of_all_versions_cost_two_requests(
    place: S3Place, wire: Wire, tmp_path: Path
) -> None:
    with process(place, tmp_path) as zoo:
        with wire.watched(zoo):
            assert len(zoo.list_models()) == 4
        assert wire.count <= 2, wire
        for seed in range(3):
            zoo.save("ppo", params(seed))
        with wire.watched(zoo):
            assert len(zoo.list_models()) == 7
        assert wire.count <= 2, wire


@pytest.mark.s3
def test_saves_and_loads_by_name_cost_the_same_in_a_large_zoo(
    seaweed_server: Any, wire: Wire, tmp_path: Path
) -> None:
    counts = []
    for versions in (3, 300):
        place = S3Place(f"s3://zoo/size-{versions}-{tmp_path.name}", seaweed_server.storage_options)
        fill(place, versions)
        seen = {}
        with process(place, tmp_path / str(versions)) as zoo:
            for what, work in {
                "first save": lambda zoo=zoo: zoo.save("ppo", params(10)),
                "later save": lambda zoo=zoo: zoo.save("ppo", params(11), source_checkpoint="x/y"),
                "load": lambda zoo=zoo: zoo.load("ppo", as_numpy=True),
                "load of a number": lambda zoo=zoo: zoo.load("ppo:1", as_numpy=True),
                "load of an alias": lambda zoo=zoo: zoo.load("ppo:prod", as_numpy=True),
                "move": lambda zoo=zoo: zoo.alias("ppo:3", "prod"),
            }.items():
                with wire.watched(zoo):
                    work()
                seen[what] = wire.depth, wire.count
        counts.append(seen)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("versions", [3, 120])
def test_saves_and_loads_on_disk_cost_the_same_in_a_large_zoo(
    tmp_path: Path, versions: int
) -> None:
    from zoos import WrappedStore

    from brainstore.storage.local import LocalStore

    store = WrappedStore(LocalStore(tmp_path))
    with opened(store) as zoo:
        for seed in range(versions):
            zoo.save("ppo", params(seed % 3))
        finish(zoo)
        store.calls.clear()
        zoo.load("ppo", as_numpy=True)
        assert len(store.calls) <= 2
        store.calls.clear()
        zoo.save("ppo", params(50))
        finish(zoo)
        assert len(store.calls) <= 18, store.steps()


def file_maps() -> list[tuple[int, int, str]]:
    """Return (start, stop, file) of each map of a file in this process."""
    maps = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith("/"):
            start, stop = (int(each, 16) for each in words[0].split("-"))
            maps.append((start, stop, words[5]))
    return maps


def assert_mapped(pointer: int, folder: Path) -> None:
    owners = [file for start, stop, file in file_maps() if start <= pointer < stop]
    assert owners
    assert owners[0].startswith(str(folder / "blobs"))


needs_maps = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="only Linux tells what a process has mapped"
)


@needs_maps
def test_a_large_leaf_is_loaded_from_disk_without_a_copy(tmp_path: Path) -> None:
    tree = {
        "one": np.arange(MIB // 4, dtype=np.float32),
        "two": np.ones((3, 2 * MIB), np.float32),
        "half": np.ones((3 * MIB,), np.int8),
    }
    with opened(tmp_path) as zoo:
        zoo.save("big", tree)
        loaded, _ = zoo.load("big")
        as_numpy, _ = zoo.load("big", as_numpy=True)
        into, _ = zoo.load("big", target=loaded)
    for name, array in tree.items():
        for found in (loaded[name], into[name]):
            assert_mapped(found.unsafe_buffer_pointer(), tmp_path)
            assert np.array_equal(np.asarray(found), array)
        assert_mapped(as_numpy[name].ctypes.data, tmp_path)
        assert not as_numpy[name].flags.writeable


MEMORY = """
import json, resource, sys, warnings
warnings.simplefilter("error")
import numpy as np
from brainstore import BrainManager
from brainstore.cache import Cache

work, url, options, cache, LEAVES = json.loads(sys.argv[1])
SIZE = 256 << 20

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

zoo = BrainManager(url, storage_options=options, cache=Cache(__import__("pathlib").Path(cache)))
small = {"w": np.zeros(8, np.float32), "x": np.zeros(3 << 20, np.uint8)}
if work == "save":
    zoo.save("small", small)
    tree = {str(i): np.full(SIZE // LEAVES // 4, i + 0.5, np.float32) for i in range(LEAVES)}
    before = peak()
    zoo.save("big", tree)
else:
    zoo.load("small", as_numpy=True)
    before = peak()
    tree, _ = zoo.load("big", as_numpy=True)
loaded = peak()
assert all(tree[str(i)][-1] == i + 0.5 and tree[str(i)].sum() > 0 for i in range(LEAVES))
zoo.close()
print(json.dumps([before, loaded, peak()]))
"""


def peaks(
    work: str, url: str, options: dict[str, Any], cache: Path, leaves: int = 8
) -> tuple[int, int]:
    """Return by how much the peak grew: until the work was done, and all leaves read."""
    task = json.dumps([work, url, options, str(cache), leaves])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, task], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after, touched = json.loads(done.stdout)
    return after - before, touched - before


def test_memory_of_a_save_and_a_load_on_disk(tmp_path: Path) -> None:
    where = str(tmp_path / "zoo"), {}, tmp_path / "cache"
    assert peaks("save", *where)[0] <= 64 * MIB
    loaded, touched = peaks("load", *where)
    assert loaded <= 64 * MIB
    assert touched <= (256 + 64) * MIB


@pytest.mark.s3
@pytest.mark.parametrize("leaves", [8, 32])
def test_memory_of_a_save_and_a_fetch_on_s3(s3_place: S3Place, tmp_path: Path, leaves: int) -> None:
    where = s3_place.url, s3_place.storage_options
    assert peaks("save", *where, tmp_path / "one", leaves)[0] <= 64 * MIB
    _, touched = peaks("load", *where, tmp_path / "two", leaves)
    assert touched <= (256 + 64) * MIB
