"""Benchmarks: brainstore beside its peers and the limits of the machine, in one run.

Each figure is the median of several rounds, in which the rivals take turns, so that a
drift of the machine meets all alike. What counts is the ratio within a row. Run it with
`scripts/bench`; `--size-mib` says how large the params are, `--rounds` how often.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

Rivals = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; a folder on the disk to measure")
    options = parser.parse_args()
    # Orbax logs every save; its lines would stand between ours.
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="brainstore-bench-", dir=options.folder) as folder:
        bench = Bench(Path(folder), options.size_mib, options.rounds)
        bench.disk()
        bench.small()
        bench.actions()
        bench.bucket()


class Bench:
    """Params of `size_mib`, in leaves of 4 to 64 MiB, and ways to store and load them."""

    def __init__(self, folder: Path, size_mib: int, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.size_bytes = size_mib << 20
        self.params = params_of(size_mib)
        self.flat = {name: np.asarray(leaf) for name, leaf in self.params.items()}

    def disk(self) -> None:
        """Save and load the large params on disk."""
        import safetensors.flax
        from orbax import checkpoint as orbax

        from brainstore import BrainManager

        zoo, raw = BrainManager(self.folder / "zoo"), self.folder / "raw"
        safe, orbax_at = self.folder / "safe.safetensors", self.folder / "orbax"
        zoo.save("warm", {"x": np.zeros(1, np.float32)})
        peer = orbax.StandardCheckpointer()
        rounds = iter(range(1000))

        def save() -> None:
            # Other values each time; else nothing would be written.
            step = np.float32(next(rounds))
            self.fresh = {name: leaf + step for name, leaf in self.flat.items()}

        def orbax_save() -> None:
            peer.save(orbax_at, self.fresh, force=True)
            peer.wait_until_finished()

        self.compare(
            f"save {self.size_bytes >> 20} MiB to disk, durable",
            {
                "brainstore": lambda: zoo.save("big", self.fresh),
                "write + fsync": lambda: write_synced(raw, self.fresh),
                "safetensors.save_file + fsync": lambda: safe_save(safe, self.fresh),
                "orbax": orbax_save,
            },
            before=save,
        )
        self.compare(
            "the same params again, one leaf changed",
            {
                "brainstore": lambda: zoo.save("big", changed(self.fresh)),
                "write + fsync": lambda: write_synced(raw, self.fresh),
            },
        )
        abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in self.fresh.items()}
        loads: Rivals = {
            "brainstore": lambda: ready(zoo.load("big")[0]),
            "brainstore, verify=True": lambda: ready(zoo.load("big", verify=True)[0]),
            "safetensors.flax.load_file": lambda: ready(safetensors.flax.load_file(safe)),
            "orbax": lambda: ready(peer.restore(orbax_at, abstract)),
        }
        self.compare("load into JAX, warm (page cache)", loads)
        touched = {name: lambda call=call: total(call()) for name, call in loads.items()}
        self.compare("load, cold, and read every element", touched, before=self.drop_caches)
        shutil.rmtree(self.folder / "zoo")

    def small(self) -> None:
        """Save and load a policy of 370 KB on disk."""
        import safetensors.flax

        from brainstore import BrainManager

        zoo, safe = BrainManager(self.folder / "small"), self.folder / "small.safetensors"
        rng = np.random.default_rng(0)
        state: dict[str, dict[str, np.ndarray]] = {}

        def fresh() -> None:
            state["params"] = {
                f"dense_{n}": rng.standard_normal((152, 152), np.float32) for n in range(4)
            }

        self.compare(
            "save a policy of 370 KB to disk, durable",
            {
                "brainstore": lambda: zoo.save("small", state["params"]),
                "write + fsync": lambda: write_synced(self.folder / "raw", state["params"]),
                "safetensors.save_file + fsync": lambda: safe_save(safe, state["params"]),
            },
            before=fresh,
            rounds=20,
        )
        self.compare(
            "load it into JAX",
            {
                "brainstore": lambda: ready(zoo.load("small")[0]),
                "safetensors.flax.load_file": lambda: ready(safetensors.flax.load_file(safe)),
            },
            rounds=20,
        )

    def actions(self) -> None:
        """Act for the demo's swarm of 100, 200 times, as in an environment's loop."""
        from brainstore import BrainInference, BrainManager
        from brainstore.networks import ActorCritic

        network = ActorCritic(100, 2, 256)
        obs = np.random.default_rng(0).standard_normal((100, 100), np.float32)
        zoo = BrainManager(self.folder / "brains")
        dims = {"input_dim": 100, "output_dim": 2, "hidden_dim": 256}
        params = network.init(jax.random.key(0), obs)
        zoo.save("actor", params, apply_fn=network.apply, example_obs=obs, **dims)
        params, _ = zoo.load("actor")
        brain = BrainInference(zoo, "actor", ActorCritic)
        program = BrainInference(zoo, "actor")

        @jax.jit
        def bare(params: Any, obs: Any) -> jax.Array:
            return jax.numpy.tanh(network.apply(params, obs)[0])

        @jax.jit
        def drawn(params: Any, obs: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            key, draw = jax.random.split(key)
            mean, log_std, _ = network.apply(params, obs)
            noise = jax.numpy.exp(log_std) * jax.random.normal(draw, mean.shape)
            return jax.numpy.tanh(mean + noise), key

        state = {"key": jax.random.key(0)}

        def bare_drawn() -> jax.Array:
            action, state["key"] = drawn(params, obs, state["key"])
            return action

        one = obs[0]
        self.compare(
            "200 deterministic actions for 100 agents",
            {
                "jitted apply": lambda: repeat(lambda: bare(params, obs)),
                "BrainInference.act": lambda: repeat(lambda: brain.act(obs, True)),
                "the same, stored program": lambda: repeat(lambda: program.act(obs, True)),
            },
            rounds=60,
        )
        self.compare(
            "200 drawn actions for 100 agents",
            {
                "jitted apply and noise": lambda: repeat(bare_drawn),
                "BrainInference.act": lambda: repeat(lambda: brain.act(obs)),
                "the same, stored program": lambda: repeat(lambda: program.act(obs)),
            },
            rounds=60,
        )
        self.compare(
            "200 deterministic actions for one agent",
            {
                "jitted apply": lambda: repeat(lambda: bare(params, one)),
                "BrainInference.act": lambda: repeat(lambda: brain.act(one, True)),
                "the same, stored program": lambda: repeat(lambda: program.act(one, True)),
            },
            rounds=60,
        )

    def bucket(self) -> None:
        """Save to and load from a SeaweedFS on this machine, which takes its share of cores."""
        from brainstore import BrainManager
        from brainstore.cache import Cache
        from brainstore.demo.seaweed import seaweed
        from brainstore.storage import open_store

        with seaweed(self.folder / "server") as server:
            server.create_bucket("bench")
            options = server.storage_options
            cache = Cache(self.folder / "cache")
            zoo = BrainManager("s3://bench/zoo", storage_options=options, cache=cache)
            store = open_store("s3://bench/raw", options)
            quarter = dict(list(self.flat.items())[: max(1, len(self.flat) // 4)])
            size = sum(leaf.nbytes for leaf in quarter.values())
            rounds = iter(range(1000))
            state: dict[str, Any] = {}

            def fresh() -> None:
                state["params"] = {k: v + np.float32(next(rounds)) for k, v in quarter.items()}
                state["bytes"] = b"".join(v.tobytes() for v in state["params"].values())

            import s3fs

            peer = s3fs.S3FileSystem(**options, skip_instance_cache=True)
            self.compare(
                f"save {size >> 20} MiB to S3",
                {
                    "brainstore": lambda: zoo.save("big", state["params"]),
                    "s3fs pipe_file": lambda: peer.pipe_file("bench/peer", state["bytes"]),
                },
                before=fresh,
            )
            self.compare(
                f"load {size >> 20} MiB from S3, cold cache",
                {
                    "brainstore": lambda: ready(zoo.load("big")[0]),
                    "s3fs cat_file": lambda: peer.cat_file("bench/peer"),
                },
                before=lambda: shutil.rmtree(cache.folder, ignore_errors=True),
            )
            zoo.load("big")
            small = {"w": np.zeros((152, 608), np.float32)}
            zoo.save("small", small)
            body = small["w"].tobytes()
            self.compare(
                "small requests to S3: save, load of latest (warm), one put, one get",
                {
                    "save": lambda: zoo.save("small", {"w": small["w"] + next(rounds)}),
                    "load": lambda: ready(zoo.load("small")[0]),
                    "put": lambda: store.put("k", body),
                    "get": lambda: store.get("k"),
                },
                rounds=20,
            )
            zoo.close()

    def compare(
        self,
        title: str,
        rivals: Rivals,
        *,
        before: Callable[[], Any] | None = None,
        rounds: int | None = None,
    ) -> None:
        """Time the rivals in turn, and print each median and its ratio to the first."""
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(rounds or self.rounds):
            for name, call in rivals.items():
                if before is not None:
                    before()
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
        first = statistics.median(next(iter(times.values())))
        print(f"\n{title}")
        for name, found in times.items():
            median = statistics.median(found)
            spread = f"{min(found) * 1e3:9.1f} to {max(found) * 1e3:9.1f}"
            print(f"  {name:32} {median * 1e3:9.1f} ms   ({spread})   x{median / first:.2f}")

    def drop_caches(self) -> None:
        """Ask the kernel to forget the pages of every file written here."""
        os.sync()
        for path in self.folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def params_of(size_mib: int) -> dict[str, jax.Array]:
    """Random float32 leaves of 64, 32, 16, 8 and 4 MiB, in turn."""
    rng = np.random.default_rng(0)
    sizes, left = [], size_mib
    while left > 0:
        sizes.append(min(left, (64, 32, 16, 8, 4)[len(sizes) % 5]))
        left -= sizes[-1]
    return {
        f"layer_{n}": jax.numpy.asarray(rng.standard_normal(size << 18, np.float32))
        for n, size in enumerate(sizes)
    }


def changed(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**params, "layer_4": params["layer_4"] + np.float32(time.perf_counter())}


def write_synced(path: Path, params: dict[str, np.ndarray]) -> None:
    """The limit: the same bytes, one file, no digest, durable."""
    with open(path, "wb") as stream:
        for leaf in params.values():
            stream.write(leaf.data)
        stream.flush()
        os.fsync(stream.fileno())


def safe_save(path: Path, params: dict[str, np.ndarray]) -> None:
    import safetensors.numpy

    safetensors.numpy.save_file(params, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def repeat(call: Callable[[], Any]) -> None:
    for _ in range(200):
        ready(call())


def ready(tree: Any) -> Any:
    return jax.block_until_ready(tree)


def total(tree: Any) -> float:
    return float(sum(float(jax.numpy.sum(leaf)) for leaf in jax.tree.leaves(tree)))


if __name__ == "__main__":
    main()
