"""Playing brains: actions, refreshing, tracing, and what is refused before it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from actors import (
    DIMS,
    NETWORK,
    OBS,
    Chooser,
    NnxActor,
    applied,
    init,
    nnx_outputs,
    nnx_state,
    outputs,
    params_of,
    save,
)
from flax import nnx
from flax.core import freeze

from brainstore import BrainInference, BrainManager
from brainstore.errors import BadParams, BadReference, NotFound, Unsupported
from brainstore.networks import ActorCritic


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrainInference]:
    """A brain that stays as it is, so that what one test has compiled serves the others."""
    with BrainManager(tmp_path_factory.mktemp("zoo")) as manager:
        save(manager, 0)
        yield BrainInference(manager, "actor", ActorCritic)


@pytest.fixture
def follower(zoo: BrainManager) -> BrainInference:
    """A brain of `zoo`, which may follow `latest` there."""
    save(zoo, 0)
    return BrainInference(zoo, "actor", ActorCritic)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Acting


@pytest.mark.parametrize("lead", [(), (5,), (0,), (2, 1, 3)])
def test_any_leading_dimensions_of_observations_are_those_of_actions(
    brain: BrainInference, lead: tuple[int, ...]
) -> None:
    obs = np.ones((*lead, 4), np.float32)
    assert brain.act(obs).shape == (*lead, 2)
    assert brain.value(obs).shape == lead


def test_deterministic_actions_are_the_squashed_mean(brain: BrainInference) -> None:
    expected = jnp.tanh(outputs(0)[0])
    close(brain.act(OBS, True), expected)
    close(brain.act(OBS, deterministic=True), expected)
    close(brain.act(OBS, np.True_), expected)
    close(brain.value(OBS), outputs(0)[2])


def test_a_key_draws_the_noise_of_the_formula(brain: BrainInference) -> None:
    key = jax.random.key(7)
    mean, log_std, _ = outputs(0)
    expected = jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape))
    close(brain.act(OBS, False, key), expected)
    close(brain.act(OBS, key=key), expected)
    close(brain.act(OBS, key=jax.random.PRNGKey(7)), expected)


def test_every_call_draws_fresh_noise_and_rows_do_not_share_it(brain: BrainInference) -> None:
    obs = np.repeat(OBS[:1], 4, axis=0)
    actions = np.stack([brain.act(obs) for _ in range(3)] + [brain.act(obs, False)])
    assert len(np.unique(actions.round(6))) == actions.size


def test_the_seed_alone_decides_what_is_drawn(zoo: BrainManager, follower: BrainInference) -> None:
    same, other = (BrainInference(zoo, "actor", ActorCritic, seed=seed) for seed in (0, 1))
    first = follower.act(OBS)
    assert (first == same.act(OBS)).all()
    assert not (first == other.act(OBS)).any()


def test_lists_and_other_floats_are_observations_too(brain: BrainInference) -> None:
    expected = brain.act(OBS, True)
    close(brain.act(OBS.tolist(), True), expected)
    close(brain.act(OBS.astype(np.float64), True), expected)
    close(brain.act(jnp.asarray(OBS), True), expected)
    close(
        brain.act(OBS.astype(jnp.bfloat16), True),
        brain.act(OBS.astype(jnp.bfloat16).astype("f"), True),
    )


def test_params_may_be_saved_bare_or_frozen(zoo: BrainManager) -> None:
    for params in (init(0)["params"], freeze(init(0)), freeze(init(0)["params"])):
        zoo.save("other", params, **DIMS)
        other = BrainInference(zoo, "other", ActorCritic)
        close(other.act(OBS, True), jnp.tanh(outputs(0)[0]))


def test_params_keep_the_dtype_that_they_were_saved_in(zoo: BrainManager) -> None:
    zoo.save("half", jax.tree.map(lambda leaf: leaf.astype("bfloat16"), init(0)), **DIMS)
    brain = BrainInference(zoo, "half", ActorCritic)
    assert {leaf.dtype for leaf in jax.tree.leaves(brain.params)} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(brain.act(OBS, True), jnp.tanh(outputs(0)[0]), atol=0.02)


def test_threads_that_act_at_once_draw_different_noise(brain: BrainInference) -> None:
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(brain.act(OBS[0]) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(np.unique(np.stack(found)[:, 0])) == 80


# Discrete policies


@pytest.mark.parametrize("with_value", [True, False])
def test_logits_give_actions_that_are_numbers(zoo: BrainManager, with_value: bool) -> None:
    network = Chooser(4, 3, with_value)
    params = params_of(network)
    zoo.save(
        "chooser", params, input_dim=4, output_dim=3, network_kwargs={"with_value": with_value}
    )
    brain = BrainInference(zoo, "chooser", Chooser)
    outputs: Any = network.apply(params, OBS)
    logits = outputs[0] if with_value else outputs
    best = brain.act(OBS, True)
    assert best.dtype == jnp.int32
    assert (best == logits.argmax(-1)).all()
    key = jax.random.key(3)
    assert (brain.act(OBS, key=key) == jax.random.categorical(key, logits)).all()
    drawn = np.stack([brain.act(OBS) for _ in range(50)])
    assert set(np.unique(drawn)) == {0, 1, 2}
    if with_value:
        close(brain.value(OBS), outputs[1])
    else:
        with pytest.raises(Unsupported, match="no value"):
            brain.value(OBS)


# Rebuilding the network


def test_saved_arguments_go_before_dims_and_given_ones_before_both(zoo: BrainManager) -> None:
    made: list[dict[str, Any]] = []

    def make(**arguments: Any) -> ActorCritic:
        made.append(arguments)
        return ActorCritic(**arguments)

    zoo.save("actor", init(0), **{**DIMS, "hidden_dim": 64}, network_kwargs={"hidden_dim": 32})
    BrainInference(zoo, "actor", make, hidden_dim=8)
    assert made == [{"obs_dim": 4, "action_dim": 2, "hidden_dim": 8}]
    with pytest.raises(BadParams, match=r"torso_0/bias: the network expects float32\[32\], found"):
        BrainInference(zoo, "actor", make)


def test_what_the_network_raises_says_for_which_version_it_was_traced(zoo: BrainManager) -> None:
    class Broken(ActorCritic):
        def __call__(self, obs: jax.Array) -> Any:
            raise RuntimeError("out of order")

    save(zoo, 0)
    with pytest.raises(BadParams, match=r"actor:1 .* and .*RuntimeError: out of order") as error:
        BrainInference(zoo, "actor", Broken)
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_class_is_given_only_the_dims_that_it_takes(zoo: BrainManager) -> None:
    params = params_of(Chooser(4, 3))
    zoo.save("chooser", params, input_dim=4, output_dim=3, hidden_dim=99)
    assert BrainInference(zoo, "chooser", Chooser).act(OBS).shape == (5,)
    partial = functools.partial(Chooser, with_value=True)
    assert BrainInference(zoo, "chooser", partial).act(OBS).shape == (5,)


def test_an_nnx_module_plays_in_evaluation_mode(zoo: BrainManager) -> None:
    zoo.save("nnx", nnx_state(), **DIMS)
    brain = BrainInference(zoo, "nnx", NnxActor)
    expected = nnx_outputs()
    close(brain.act(OBS, True), jnp.tanh(expected["mean"]))
    close(brain.value(OBS), expected["value"][:, 0])
    key = jax.random.key(0)
    close(jax.jit(brain.policy)(brain.params, OBS, key), brain.act(OBS, key=key))


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_random_streams_of_nnx_need_not_be_saved(zoo: BrainManager, wrapped: bool) -> None:
    state = {name: each for name, each in nnx_state().items() if name != "dropout"}
    zoo.save("nnx", {"params": state} if wrapped else state, **DIMS)
    close(BrainInference(zoo, "nnx", NnxActor).act(OBS, True), jnp.tanh(nnx_outputs()["mean"]))


def test_dims_that_do_not_match_the_network_are_listed_leaf_by_leaf(zoo: BrainManager) -> None:
    save(zoo, 0, input_dim=6)
    with pytest.raises(BadParams) as error:
        BrainInference(zoo, "actor", ActorCritic)
    assert "actor:1 (a brain of type 'ppo') and ActorCritic do not fit, at 1 of the params" in str(
        error.value
    )
    assert "torso_0/kernel: the network expects float32[6, 8], found float32[4, 8]" in str(
        error.value
    )


def test_a_class_of_other_params_is_refused(zoo: BrainManager, follower: BrainInference) -> None:
    for other in (Chooser, NnxActor):
        with pytest.raises(BadParams, match="expects nothing, found"):
            BrainInference(zoo, "actor", other)


def test_a_brain_of_another_type_is_refused(zoo: BrainManager) -> None:
    class Speaker(ActorCritic):
        brain_type = "dial"

    save(zoo, 0)
    with pytest.raises(BadParams, match=r"type 'ppo', and .*Speaker is for type 'dial'"):
        BrainInference(zoo, "actor", Speaker)
    with pytest.raises(BadParams, match="type 'ppo'; asked for 'dial'"):
        BrainInference(zoo, "actor", ActorCritic, brain_type="dial")
    assert BrainInference(zoo, "actor", ActorCritic, brain_type="ppo").version == 1
    zoo.save("pair", {"encoder": OBS, "decoder": OBS}, brain_type="dial")
    with pytest.raises(BadParams, match=r"pair:1 \(a brain of type 'dial'\)"):
        BrainInference(zoo, "pair", ActorCritic)


def test_outputs_that_are_no_policy_are_refused(zoo: BrainManager) -> None:
    class Twins(nn.Module):
        obs_dim: int

        @nn.compact
        def __call__(self, obs: jax.Array) -> Any:
            return nn.Dense(3)(obs), nn.Dense(5)(obs)

    zoo.save("twins", params_of(Twins(4)), input_dim=4)
    with pytest.raises(BadParams, match=r"gives \[1009, 3\], \[1009, 5\]; expected the outputs"):
        BrainInference(zoo, "twins", Twins)


def test_an_output_dim_that_contradicts_the_network_is_refused(zoo: BrainManager) -> None:
    save(zoo, 0, output_dim=3, network_kwargs={"action_dim": 2})
    with pytest.raises(BadParams, match="output_dim 3, and mean of the network has 2"):
        BrainInference(zoo, "actor", ActorCritic)


def test_what_cannot_be_built_says_why(zoo: BrainManager) -> None:
    zoo.save("dimless", init(0))
    with pytest.raises(BadParams, match="missing 3 required positional arguments"):
        BrainInference(zoo, "dimless", ActorCritic)
    save(zoo, 0)
    with pytest.raises(BadParams, match="unexpected keyword argument 'depth'"):
        BrainInference(zoo, "actor", ActorCritic, depth=3)
    with pytest.raises(BadParams, match="expected a class"):
        BrainInference(zoo, "actor", NETWORK)  # type: ignore[arg-type]
    with pytest.raises(BadParams, match="made a dict; expected a Module"):
        BrainInference(zoo, "actor", dict)
    with pytest.raises(BadParams, match="expected a BrainManager, found str"):
        BrainInference("brains", "actor", ActorCritic)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="Did you mean actor"):
        BrainInference(zoo, "actr", ActorCritic)
    with pytest.raises(BadReference, match="a part of a version"):
        BrainInference(zoo, "actor#params", ActorCritic)


def test_a_network_that_takes_no_rows_of_numbers_is_told(zoo: BrainManager) -> None:
    class Framed(nn.Module):
        obs_dim: int

        @nn.compact
        def __call__(self, frames: jax.Array) -> jax.Array:
            if frames.shape[-2:] != (8, self.obs_dim):
                raise ValueError(f"frames: expected [..., 8, 4], found {frames.shape}")
            return nn.Dense(2)(frames)

    class Pointed(nnx.Module):
        def __init__(self, obs_dim: int, *, rngs: nnx.Rngs) -> None:
            self.head = nnx.Linear(obs_dim, 2, rngs=rngs)

        def __call__(self, obs: jax.Array, goal: jax.Array) -> jax.Array:
            return self.head(obs + goal)

    zoo.save("framed", {"params": {}, "x": np.zeros(2, np.float32)}, input_dim=4)
    with pytest.raises(
        BadParams, match=r"framed:1 and .*does not take float32\[1, 4\] \(ValueError"
    ):
        BrainInference(zoo, "framed", Framed)
    zoo.save("pointed", nnx.state(Pointed(4, rngs=nnx.Rngs(0))), input_dim=4)
    with pytest.raises(BadParams, match=r"pointed:1: .*\(TypeError: .*'goal'"):
        BrainInference(zoo, "pointed", Pointed)


def test_an_unknown_observation_is_said_so(zoo: BrainManager) -> None:
    zoo.save("blind", params_of(Chooser(4, 3)), output_dim=3)
    with pytest.raises(BadParams, match="its input_dim is 0"):
        BrainInference(zoo, "blind", lambda: Chooser(4, 3))
    assert BrainInference(zoo, "blind", Chooser, obs_dim=4).act(OBS).shape == (5,)


def test_bare_params_of_a_network_with_more_are_refused(zoo: BrainManager) -> None:
    class Normed(nn.Module):
        obs_dim: int

        @nn.compact
        def __call__(self, obs: jax.Array) -> jax.Array:
            return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(obs))

    variables = params_of(Normed(4))
    zoo.save("bare", variables["params"], input_dim=4)
    with pytest.raises(BadParams, match="the network also has batch_stats"):
        BrainInference(zoo, "bare", Normed)
    zoo.save("whole", variables, input_dim=4)
    assert BrainInference(zoo, "whole", Normed).act(OBS).shape == (5,)


# Observations


@pytest.mark.parametrize(
    ("obs", "found"),
    [
        (np.zeros((5, 3), np.float32), r"found float32\[5, 3\]"),
        (np.zeros((), np.float32), r"found float32\[\]"),
        (np.zeros((5, 4), np.int64), r"found int64\[5, 4\]. Convert it: obs.astype\('float32'\)"),
        (np.zeros((5, 4), bool), r"found bool\[5, 4\]"),
        (np.zeros((5, 4), object), r"found object\[5, 4\]"),
        (np.zeros((5, 4), complex), r"found complex128\[5, 4\]"),
        (jnp.zeros((5, 4), jnp.int32), r"found int32\[5, 4\]"),
        ([1, 2, 3, 4], r"found int64\[4\]"),
        ([[0.1], [0.1, 0.2]], "found a ragged list"),
        ("left", "found <U4"),
        (None, r"found object\[\]"),
    ],
)
def test_a_wrong_observation_is_refused_before_anything_is_traced(
    brain: BrainInference, obs: Any, found: str
) -> None:
    before = compiled(brain)
    for call in (brain.act, brain.value):
        with pytest.raises(BadParams, match=r"obs: expected float32\[..., 4\], " + found):
            call(obs)
    assert compiled(brain) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_observation_that_is_no_number_is_refused(brain: BrainInference, bad: float) -> None:
    obs = OBS.copy()
    obs[2, 1] = bad
    with pytest.raises(BadParams, match=r"1 of 20 numbers are NaN or infinite, .* at \[2, 1\]"):
        brain.act(obs)


def test_arguments_in_each_others_place_are_named(brain: BrainInference) -> None:
    with pytest.raises(BadParams, match=r"deterministic: expected True or False.*key="):
        brain.act(OBS, jax.random.key(0))
    with pytest.raises(BadParams, match="deterministic: expected True or False, found str"):
        brain.act(OBS, "yes")
    with pytest.raises(BadParams, match=r"key: expected one PRNG key.*found int"):
        brain.act(OBS, key=3)
    keys = jax.random.split(jax.random.key(0), 5)
    with pytest.raises(BadParams, match=r"one PRNG key.*found key<fry>\[5\].*jax.vmap"):
        brain.act(OBS, key=keys)
    with pytest.raises(BadParams, match=r"one PRNG key.*found float64\[2\]"):
        brain.policy(brain.params, OBS, np.zeros(2))


# Tracing


def test_acting_without_a_key_in_a_traced_function_is_refused(brain: BrainInference) -> None:
    constant = jnp.asarray(OBS)
    for traced in (
        jax.jit(brain.act),
        jax.vmap(brain.act),
        lambda obs: jax.jit(lambda: brain.act(constant))(),
        lambda obs: jax.lax.map(brain.act, obs),
    ):
        with pytest.raises(BadParams, match=r"without a key.*drawn once, while tracing"):
            traced(constant)


def test_a_traced_flag_without_a_key_is_refused_with_the_way_out(brain: BrainInference) -> None:
    with pytest.raises(BadParams, match=r"deterministic is traced.*static_argnums"):
        jax.jit(brain.act)(OBS, True)
    greedy = jax.jit(brain.act, static_argnums=1)
    close(greedy(OBS, True), brain.act(OBS, True))


def test_acting_with_a_key_may_be_traced(brain: BrainInference) -> None:
    key = jax.random.key(0)
    expected = brain.act(OBS, key=key)
    close(jax.jit(lambda obs, key: brain.act(obs, key=key))(OBS, key), expected)
    close(jax.jit(brain.act)(OBS, True, key), brain.act(OBS, True))
    close(jax.jit(lambda obs: brain.act(obs, True))(OBS), brain.act(OBS, True))
    close(jax.jit(brain.value)(OBS), brain.value(OBS))


def test_policy_is_pure_for_jit_vmap_and_scan(brain: BrainInference) -> None:
    keys = jax.random.split(jax.random.key(1), 5)
    policy, params = brain.policy, brain.params
    expected = jnp.stack(
        [policy(params, obs, key, False) for obs, key in zip(OBS, keys, strict=True)]
    )
    close(jax.jit(jax.vmap(policy, (None, 0, 0)))(params, OBS, keys), expected)
    _, scanned = jax.lax.scan(lambda c, x: (c, policy(params, *x, False)), None, (OBS, keys))
    close(scanned, expected)
    flags = jax.jit(policy)
    close(flags(params, OBS, keys[0], False), policy(params, OBS, keys[0]))
    close(flags(params, OBS, keys[0], True), policy(params, OBS, deterministic=True))
    with pytest.raises(BadParams, match="a key is needed"):
        policy(params, OBS)


def test_policy_is_differentiable(brain: BrainInference) -> None:
    def loss(params: Any) -> jax.Array:
        return brain.policy(params, OBS, deterministic=True).sum()

    slopes = jax.grad(loss)(brain.params)
    assert jnp.abs(slopes["params"]["mean"]["kernel"]).max() > 0


# Following a pointer


def compiled(brain: BrainInference) -> int:
    functions = brain._playing.functions
    kinds = (functions.greedy, functions.keyed, functions.drawn, functions.value)
    return sum(function._cache_size() for function in kinds)  # type: ignore[attr-defined]


def test_refresh_follows_a_moved_pointer_without_compiling_again(zoo: BrainManager) -> None:
    traces = []

    class Traced(ActorCritic):
        def __call__(self, obs: jax.Array) -> Any:
            traces.append(obs.shape)
            return super().__call__(obs)

    save(zoo, 0, aliases=["prod"])
    brain = BrainInference(zoo, "actor:prod", Traced)
    before = brain.act(OBS, True), brain.act(OBS), brain.value(OBS)
    traced, programs = len(traces), compiled(brain)
    save(zoo, 1)
    assert not brain.refresh()
    zoo.alias("actor:2", "prod")
    assert brain.refresh()
    assert (brain.ref, brain.version, brain.meta.version) == ("actor:2", 2, 2)
    assert brain.digest == zoo.resolve("actor:2").digest
    after = brain.act(OBS, True), brain.act(OBS), brain.value(OBS)
    close(after[0], jnp.tanh(outputs(1)[0]))
    assert all((x != y).any() for x, y in zip(before, after, strict=True))
    assert (len(traces), compiled(brain)) == (traced, programs)
    zoo.rollback("actor", "prod")
    assert brain.refresh()
    close(brain.act(OBS, True), before[0])


def test_a_pinned_brain_does_not_move(zoo: BrainManager, follower: BrainInference) -> None:
    pinned = BrainInference(zoo, "actor:1", ActorCritic)
    save(zoo, 1)
    assert not pinned.refresh()
    assert pinned.version == 1
    assert follower.refresh()


def test_refresh_rebuilds_a_network_of_other_dims(
    zoo: BrainManager, follower: BrainInference
) -> None:
    network = ActorCritic(4, 2, 16)
    wide = params_of(network)
    zoo.save("actor", wide, **{**DIMS, "hidden_dim": 16})
    assert follower.refresh()
    close(follower.act(OBS, True), jnp.tanh(jax.jit(network.apply)(wide, OBS)[0]))


def test_a_version_that_cannot_play_leaves_the_old_one_playing(
    zoo: BrainManager, follower: BrainInference
) -> None:
    expected = follower.act(OBS, True)
    zoo.save("actor", {"params": {"w": np.ones(3, np.float32)}}, **DIMS)
    with pytest.raises(BadParams, match=r"actor:2 .* and ActorCritic do not fit"):
        follower.refresh()
    assert follower.version == 1
    close(follower.act(OBS, True), expected)


# Normalised observations


def test_statistics_that_were_saved_scale_observations(zoo: BrainManager) -> None:
    mean, variance = np.float32([1, 2, 3, 4]), np.float32([1, 4, 9, 16])
    norm = {"mean": mean, "variance": variance, "clip": 0.5}
    params = save(zoo, 0, groups={"obs_norm": norm})
    brain = BrainInference(zoo, "actor", ActorCritic)
    scaled = np.clip((OBS - mean) / np.sqrt(variance), -0.5, 0.5)
    expected = jnp.tanh(applied(params, scaled)[0])
    close(brain.act(OBS, True), expected)
    close(brain.policy(params, OBS, deterministic=True), expected)
    close(brain.value(OBS), applied(params, scaled)[2])
    raw = brain.policy(params, OBS, deterministic=True, obs_norm=None)
    close(raw, jnp.tanh(applied(params, OBS)[0]))


def test_refresh_takes_new_statistics_without_compiling_again(zoo: BrainManager) -> None:
    def norm(shift: float) -> dict[str, Any]:
        return {"mean": np.full(4, shift, np.float32), "var": np.ones(4, np.float32), "count": 3}

    params = save(zoo, 0, groups={"obs_norm": norm(0)})
    brain = BrainInference(zoo, "actor", ActorCritic)
    brain.act(OBS, True)
    save(zoo, 0, groups={"obs_norm": norm(1)})
    brain.refresh()
    close(brain.act(OBS, True), jnp.tanh(applied(params, OBS - 1)[0]))
    assert compiled(brain) == 1


@pytest.mark.parametrize(
    ("norm", "problem"),
    [
        ({"mean": np.zeros(4, np.float32)}, "holds mean; expected mean, variance"),
        (
            {"mean": np.zeros(3), "variance": np.ones(4)},
            r"expected mean of shape \[4\], found \[3\]",
        ),
        ([np.zeros(4, np.float32)], "holds list"),
    ],
)
def test_statistics_of_another_form_are_refused(zoo: BrainManager, norm: Any, problem: str) -> None:
    save(zoo, 0, groups={"obs_norm": jax.tree.map(np.float32, norm)})
    with pytest.raises(BadParams, match=problem):
        BrainInference(zoo, "actor", ActorCritic)


def test_it_shows_what_plays(brain: BrainInference) -> None:
    assert repr(brain) == "BrainInference('actor:1')"
