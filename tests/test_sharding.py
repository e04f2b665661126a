"""Arrays on several devices, from a save to a load: on disk and in a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from brainstore import BrainManager

    assert len(jax.devices()) == 4
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    both, rows, whole = (NamedSharding(mesh, P(*axes)) for axes in (("x", "y"), ("x",), ()))
    # One leaf has a blob of its own, the others share a pack.
    plain = {
        "large": jnp.arange(2.0**19).reshape(512, 1024),
        "small": jnp.arange(8, dtype=jnp.bfloat16).reshape(4, 2),
        "key": jax.random.split(jax.random.key(0), 4),
        "step": jnp.int32(7),
    }
    shardings = {"large": both, "small": rows, "key": rows, "step": whole}
    spread = jax.device_put(plain, shardings)
    url, options, cache = json.loads(sys.argv[1])

    def plain_data(array):
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(array) if is_key else array

    def equal(found, expected):
        return all(
            np.array_equal(plain_data(found[name]), plain_data(expected[name])) for name in expected
        )

    with BrainManager(url, storage_options=options, cache=cache) as zoo:
        zoo.save("ppo", plain)
        zoo.save("ppo", spread, groups={"opt_state": spread})
        one, two = zoo.manifest("ppo:1"), zoo.manifest("ppo:2")
        assert [l.digest for l in one.groups["params"].leaves] == [
            l.digest for l in two.groups["params"].leaves
        ]
        found, _ = zoo.load("ppo:2")
        assert {d for a in found.values() for d in a.devices()} == {jax.devices()[0]}
        assert equal(found, plain)
        for target in (spread, jax.eval_shape(lambda: spread)):
            shaped = jax.tree.map(
                lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), target, shardings
            )
            found, _ = zoo.load("ppo:2", target=shaped)
            assert {k: a.sharding for k, a in found.items()} == shardings
            assert equal(found, plain)
        targets = {"params": spread, "opt_state": plain}
        groups, _ = zoo.load("ppo:2", groups="all", target=targets)
        assert groups["params"]["large"].sharding == both
        assert equal(groups["opt_state"], plain)
        found, _ = zoo.load("ppo:2", sharding=whole)
        assert all(a.sharding.is_equivalent_to(whole, a.ndim) for a in found.values())
        assert equal(found, plain)
        found, _ = zoo.load("ppo:2#large", sharding=both)
        assert found.sharding == both and np.array_equal(found, plain["large"])
        # What is spread can be donated, and the stored file stays as it is.
        jax.jit(lambda t: t * 2, donate_argnums=0)(found).block_until_ready()
        assert equal(zoo.load("ppo:2", verify=True)[0], plain)
"""


@pytest.mark.parametrize("where", ["disk", pytest.param("s3", marks=pytest.mark.s3)])
def test_sharded_arrays_are_saved_whole_and_come_back_sharded(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place: tuple[str, dict[str, Any]] = str(tmp_path / "zoo"), {}
    if where == "s3":
        bucket = request.getfixturevalue("s3_place")
        place = bucket.url, bucket.storage_options
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    task = json.dumps([*place, str(tmp_path / "cache")])
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), task]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
