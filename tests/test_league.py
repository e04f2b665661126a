"""Several brains as one tree, and a league of them under vmap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from actors import DIMS, NETWORK, OBS, init, save

from brainstore import BrainInference, BrainManager
from brainstore.errors import BadParams, NotFound
from brainstore.networks import ActorCritic


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def test_params_are_stacked_in_the_order_of_the_references(zoo: BrainManager) -> None:
    for seed in range(3):
        save(zoo, seed)
    stacked = zoo.load_stacked(["actor:3", "actor:1", "actor:3"])
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), init(2), init(0), init(2))
    assert jax.tree.structure(stacked) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), stacked, expected))


def test_a_league_plays_under_vmap_as_its_brains_do_alone(zoo: BrainManager) -> None:
    refs = []
    for seed in range(3):
        save(zoo, seed, groups={"obs_norm": norm(seed)})
        refs.append(f"actor:{seed + 1}")
    brain = BrainInference(zoo, "actor:1", ActorCritic)
    keys = jax.random.split(jax.random.key(0), 3)
    params, norms = zoo.load_stacked(refs), zoo.load_stacked(refs, group="obs_norm")
    assert norms["clip"].shape == (3,)

    @jax.jit
    @jax.vmap
    def play(params: Any, key: jax.Array, norm: Any) -> jax.Array:
        return brain.policy(params, OBS, key, obs_norm=norm)

    found = play(params, keys, norms)
    for n, ref in enumerate(refs):
        alone = BrainInference(zoo, ref, ActorCritic).act(OBS, key=keys[n])
        np.testing.assert_allclose(found[n], alone, rtol=1e-5, atol=1e-6)


def norm(shift: float) -> dict[str, Any]:
    return {
        "mean": np.full(4, shift, np.float32),
        "var": np.full(4, 2, np.float32),
        "clip": 0.5,
    }


def test_any_leaf_can_be_stacked(zoo: BrainManager) -> None:
    def params(seed: int) -> dict[str, Any]:
        return {
            "half": np.full(2, seed, ml_dtypes.bfloat16),
            "key": jax.random.key(seed),
            "large": np.full(300_000, seed, np.float32),
            "scale": 0.5 * seed,
            "steps": seed,
            "flag": np.bool_(seed),
            "nothing": None,
        }

    for seed in range(2):
        zoo.save("any", params(seed))
    stacked = zoo.load_stacked(["any:1", "any:2"])
    assert stacked.pop("nothing") is None
    assert {path: (leaf.shape, str(leaf.dtype)) for path, leaf in stacked.items()} == {
        "half": ((2, 2), "bfloat16"),
        "key": ((2,), "key<fry>"),
        "large": ((2, 300_000), "float32"),
        "scale": ((2,), "float32"),
        "steps": ((2,), "int32"),
        "flag": ((2,), "bool"),
    }  # fmt: skip
    assert (stacked["scale"] == jnp.array([0, 0.5])).all()
    assert (jax.random.key_data(stacked["key"])[1] == jax.random.key_data(jax.random.key(1))).all()


def test_all_that_differs_is_listed_in_one_error(zoo: BrainManager) -> None:
    first = {
        "a": np.zeros(2, np.float32),
        "b": np.zeros(3, np.float32),
        "c": np.zeros(1, np.float32),
    }
    zoo.save("x", first)
    zoo.save("x", {**first, "a": np.zeros(4, np.float32), "b": np.zeros(3, np.float16)})
    zoo.save("x", {"a": first["a"], "b": first["b"], "d": np.zeros(1, np.int32)})
    with pytest.raises(BadParams) as error:
        zoo.load_stacked(["x:1", "x:2", "x:3"])
    assert str(error.value).splitlines() == [
        "params: these cannot be stacked, since they differ from x:1:",
        "  x:2: a: expected float32[2], found float32[4]",
        "  x:2: b: expected float32[3], found float16[3]",
        "  x:3: c: expected float32[1], found nothing",
        "  x:3: d: expected nothing, found int32[1]",
        "A league under vmap needs brains of one architecture",
    ]


def test_the_same_leaves_in_other_containers_are_not_stacked(zoo: BrainManager) -> None:
    zoo.save("x", {"a": [np.zeros(2, np.float32)]})
    zoo.save("x", {"a": (np.zeros(2, np.float32),)})
    with pytest.raises(BadParams, match="x:2: the same leaves, in other containers"):
        zoo.load_stacked(["x:1", "x:2"])


@pytest.mark.parametrize("refs", [[], "actor:1"])
def test_a_list_of_references_is_needed(zoo: BrainManager, refs: Any) -> None:
    with pytest.raises(BadParams, match="expected a list of references"):
        zoo.load_stacked(refs)


def test_what_is_not_there_cannot_be_stacked(zoo: BrainManager) -> None:
    save(zoo, 0)
    with pytest.raises(NotFound, match="actor:2 does not exist"):
        zoo.load_stacked(["actor:1", "actor:2"])
    with pytest.raises(NotFound, match="has no group 'obs_norm'"):
        zoo.load_stacked(["actor:1"], group="obs_norm")


def test_brains_of_another_zoo_can_be_stacked(zoo: BrainManager, tmp_path: Path) -> None:
    save(zoo, 0)
    with BrainManager(tmp_path / "other") as other:
        save(other, 1)
        stacked = zoo.load_stacked(["actor:1", f"{other.zoo.url}::actor:1"])
    kernel = stacked["params"]["mean"]["kernel"]
    assert (kernel[1] == init(1)["params"]["mean"]["kernel"]).all()
    assert NETWORK.action_dim == DIMS["output_dim"] == kernel.shape[-1]
