"""Golden behaviour: what is kept, how it is compared, and `verify` in Python and on the shell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from actors import DIMS, NETWORK, OBS, NnxActor, init, nnx_outputs, nnx_state, outputs, save
from command_line import ok, parsed, process, refused, run

from brainstore import BrainManager, Golden
from brainstore.errors import BadParams, NotFound
from brainstore.networks import ActorCritic


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrainManager]:
    """An empty zoo, which BRAINSTORE_ZOO names; the current folder is an empty one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("BRAINSTORE_ZOO", str(tmp_path / "zoo"))
    with BrainManager(tmp_path / "zoo") as manager:
        yield manager


def golden_of(seed: int, **tolerances: float) -> Golden:
    return Golden(OBS, outputs(seed), **tolerances)


# Comparing


def test_a_deviation_is_measured_against_what_is_allowed_there() -> None:
    golden = Golden(None, {"x": np.float32([0, 100])}, atol=0.5, rtol=0.01)
    [fits] = golden.deviations({"x": np.float32([0.25, 100.75])})
    assert (fits.path, fits.max_error, fits.share) == ("x", 0.75, 0.5)
    assert fits.fits
    assert str(fits) == "at most 0.75 off, 0.5 times what is allowed"
    [off] = golden.deviations({"x": np.float32([0.75, 100])})
    assert (off.max_error, off.share, off.fits) == (0.75, 1.5, False)


def test_the_edge_of_the_tolerance_still_fits() -> None:
    golden = Golden(None, np.float32([1]), atol=0.25, rtol=0)
    assert golden.deviations(np.float32([1.25]))[0].fits
    assert not golden.deviations(np.nextafter(np.float32([1.25]), np.float32(2)))[0].fits


@pytest.mark.parametrize(
    ("expected", "found", "fits"),
    [
        (np.int32([1, 2]), np.int32([1, 2]), True),
        (np.int32([10**6]), np.int32([10**6 + 1]), False),
        (np.array([True]), np.array([False]), False),
        (np.float32([np.inf, -np.inf]), np.float32([np.inf, -np.inf]), True),
        (np.float32([np.inf]), np.float32([1e30]), False),
        (np.float32([1e30]), np.float32([np.inf]), False),
        (np.float32([1]), np.float32([np.nan]), False),
        (np.float32([]), np.float32([]), True),
        (ml_dtypes.bfloat16(1.5), np.float32(1.5), True),
        (np.complex64([1j]), np.complex64([1j + 1e-7]), True),
        (np.complex64([1j]), np.complex64([2j]), False),
    ],
)
def test_what_fits(expected: Any, found: Any, fits: bool) -> None:
    [deviation] = Golden(None, np.asarray(expected)).deviations(np.asarray(found))
    assert deviation.fits == fits
    assert math.isnan(deviation.max_error or 0) == bool(np.isnan(found).any())


def test_a_nan_is_named() -> None:
    [deviation] = Golden(None, np.float32([1])).deviations(np.float32([np.nan]))
    assert str(deviation) == "NaN, where a number is expected"


def test_outputs_that_cannot_be_compared_are_named() -> None:
    golden = Golden(None, {"a": np.zeros(2, "f"), "b": np.zeros(2, "f"), "c": np.zeros(2, "f")})
    found = golden.deviations({"a": np.zeros(3, "f"), "b": np.zeros(2, "i"), "d": np.zeros(1, "f")})
    assert [str(each) for each in found] == [
        "expected float32[2], found float32[3]",
        "expected float32[2], found int32[2]",
        "expected float32[2], found nothing",
        "expected nothing, found float32[1]",
    ]
    assert not any(each.fits for each in found)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf, "wide", None])
def test_a_tolerance_is_a_number_from_0_up(tolerance: Any) -> None:
    for name in ("atol", "rtol"):
        with pytest.raises(BadParams, match=f"golden: {name} must be a number from 0 up"):
            Golden(OBS, OBS, **{name: tolerance})


def test_outputs_without_arrays_and_with_nans_are_no_behaviour() -> None:
    with pytest.raises(BadParams, match="no array"):
        Golden(OBS, {})
    with pytest.raises(BadParams, match="output value has a NaN"):
        Golden(OBS, {"value": np.float32([1, np.nan])})


# Keeping


def test_a_version_keeps_it_as_a_group(zoo: BrainManager) -> None:
    save(zoo, 0, golden=golden_of(0, atol=0.5))
    group = zoo.load("actor", groups="golden")[0]["golden"]
    assert (group["atol"], group["rtol"]) == (0.5, 1e-4)
    np.testing.assert_array_equal(group["inputs"], OBS)
    assert isinstance(group["outputs"], tuple)
    assert set(zoo.load("actor")[0]) == {"params"}


def test_wide_numbers_are_kept_as_jax_has_them(zoo: BrainManager) -> None:
    mean = np.asarray(outputs(0)[0], np.float64)
    save(zoo, 0, golden=Golden(OBS.astype(np.float64), {"mean": mean}))
    found = zoo.load("actor", groups="golden")[0]["golden"]
    assert (found["inputs"].dtype, found["outputs"]["mean"].dtype) == ("float32", "float32")


def test_it_is_given_once(zoo: BrainManager) -> None:
    group = {"golden": golden_of(0).group()}
    with pytest.raises(BadParams, match="given as well"):
        save(zoo, 0, golden=golden_of(0), groups=group)
    save(zoo, 0, groups=group, apply_fn=NETWORK.apply, example_obs=OBS)
    assert zoo.verify("actor").holds


def test_a_function_gives_examples_and_outputs_at_once(zoo: BrainManager) -> None:
    save(zoo, 0, apply_fn=NETWORK.apply, golden=golden_of(0))
    assert zoo.verify("actor").played_with == "program"
    with pytest.raises(BadParams, match="apply_fn does not give the golden outputs"):
        save(zoo, 0, apply_fn=NETWORK.apply, golden=golden_of(1))
    assert zoo.list_models() == ["actor_v1"]


def test_without_golden_nothing_is_kept(zoo: BrainManager) -> None:
    save(zoo, 0, apply_fn=NETWORK.apply, example_obs=OBS, golden=False)
    assert set(zoo.manifest("actor").groups) == {"params"}


# Verifying


def test_a_version_is_replayed_with_its_class_or_its_program(zoo: BrainManager) -> None:
    save(zoo, 0, apply_fn=NETWORK.apply, example_obs=OBS)
    for arguments, player in (((), "program"), ((ActorCritic,), "ActorCritic")):
        report = zoo.verify("actor", *arguments)
        assert report.holds
        assert (str(report.version), report.played_with) == ("actor:1", player)
        assert [check.what for check in report.checks] == [f"golden output {n}" for n in range(3)]


def test_params_that_act_otherwise_are_told_with_how_far_off(zoo: BrainManager) -> None:
    save(zoo, 0, golden=golden_of(1))
    report = zoo.verify("actor", ActorCritic)
    assert not report.holds
    mean = np.abs(outputs(0)[0] - outputs(1)[0]).max()
    assert f"at most {mean:.3g} off" in report.checks[0].text
    assert not any(check.holds for check in report.checks)
    assert str(report).splitlines()[:2] == [
        "actor:1",
        f"OFF  golden output 0: {report.checks[0].text}",
    ]


def test_a_replay_that_gives_nan_is_off_and_no_error(zoo: BrainManager) -> None:
    zoo.save("nan", {"w": np.float32([np.nan])}, golden=Golden(OBS, OBS), **DIMS)
    zoo.attach_export("nan", lambda params, obs: obs * params["w"], OBS, golden=False)
    with pytest.raises(BadParams, match="NaN, where a number is expected"):
        zoo.attach_export("nan", lambda params, obs: obs * params["w"], OBS)
    [check] = zoo.verify("nan").checks
    assert (check.holds, check.text) == (False, "NaN, where a number is expected")


def test_an_nnx_brain_is_replayed_in_evaluation_mode(zoo: BrainManager) -> None:
    zoo.save("nnx", nnx_state(), golden=Golden(OBS, nnx_outputs()), **DIMS)
    assert zoo.verify("nnx", NnxActor).holds


def test_a_class_is_shaped_by_the_golden_inputs(zoo: BrainManager) -> None:
    zoo.save("dimless", init(0), golden=golden_of(0))
    assert zoo.verify("dimless", ActorCritic, obs_dim=4, action_dim=2, hidden_dim=8).holds
    with pytest.raises(BadParams, match="missing 2 required"):
        zoo.verify("dimless", ActorCritic, obs_dim=4)


def test_there_must_be_something_to_verify_and_something_to_replay_it_with(
    zoo: BrainManager,
) -> None:
    save(zoo, 0)
    with pytest.raises(NotFound, match="actor:1 has nothing to verify"):
        zoo.verify("actor")
    save(zoo, 0, golden=golden_of(0))
    with pytest.raises(BadParams, match="no program to replay it with; name the network's class"):
        zoo.verify("actor")
    save(zoo, 0, groups={"golden": {"inputs": OBS}})
    with pytest.raises(BadParams, match="the group 'golden' of actor:3 holds no golden behaviour"):
        zoo.verify("actor", ActorCritic)


def test_frozen_experts_are_proved_along(zoo: BrainManager) -> None:
    save(zoo, 0)
    expert, _ = zoo.load("actor:1")
    changed = jax.tree.map(lambda leaf: leaf + 1, expert)
    zoo.save("fusion", {"nav": expert}, frozen_experts={"nav": "actor:1"})
    report = zoo.verify("fusion")
    assert (report.holds, report.played_with) == (True, None)
    assert [check.what for check in report.checks] == ["frozen expert nav"]
    with pytest.warns(UserWarning, match="will not be proved"):
        zoo.save("fusion", {"nav": changed}, frozen_experts={"nav": "actor:1"})
    result = run("verify", "fusion:2")
    assert result.exit_code == 5
    assert "OFF  frozen expert nav: actor:1: changed" in result.stdout


# The verb


def test_the_verb_replays_with_the_program(zoo: BrainManager) -> None:
    save(zoo, 0, apply_fn=NETWORK.apply, example_obs=OBS)
    lines = ok("verify", "actor").splitlines()
    assert lines[0] == "actor:1"
    assert lines[1].startswith("ok   golden output 0: at most ")
    found = parsed("verify", "actor:1")
    assert (found["holds"], found["played_with"], len(found["checks"])) == (True, "program", 3)
    assert found["checks"][0].keys() == {"what", "holds", "text", "max_error", "share"}
    assert 0 <= found["checks"][0]["share"] <= 1
    assert found["digest"] == zoo.resolve("actor").digest


def test_an_output_that_is_one_array_needs_no_name(zoo: BrainManager) -> None:
    zoo.save("sum", {"w": OBS}, golden=Golden.of(lambda params, obs: obs.sum(-1), {}, OBS))
    zoo.attach_export("sum", lambda params, obs: obs.sum(-1), OBS)
    assert str(zoo.verify("sum")) == (
        "sum:2\nok   golden output: at most 0 off, 0 times what is allowed"
    )


def test_the_verb_exits_with_5_when_it_is_off(zoo: BrainManager) -> None:
    save(zoo, 0, golden=golden_of(1))
    result = run("verify", "actor", "--network", "brainstore.networks:ActorCritic")
    assert result.exit_code == 5
    assert "OFF  golden output 0: at most" in result.stdout


def test_the_verb_says_what_is_missing(zoo: BrainManager) -> None:
    save(zoo, 0)
    assert "has nothing to verify" in refused(3, "verify", "actor")
    assert "model 'actr'" in refused(3, "verify", "actr")
    save(zoo, 0, golden=golden_of(0))
    assert "--network module:Class" in refused(2, "verify", "actor")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("brainstore.networks", "expected MODULE:CLASS"),
        (":ActorCritic", "expected MODULE:CLASS"),
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("brainstore.networks:Nothing", "has no attribute 'Nothing'"),
    ],
)
def test_a_network_that_is_not_there_is_wrong_usage(
    zoo: BrainManager, name: str, problem: str
) -> None:
    save(zoo, 0, golden=golden_of(0))
    result = run("verify", "actor", "--network", name)
    assert result.exit_code == 2
    assert problem in result.stderr


def test_a_network_may_lie_in_the_current_folder(zoo: BrainManager) -> None:
    save(zoo, 0, golden=golden_of(0))
    Path("my_network.py").write_text("from brainstore.networks import ActorCritic as Mine\n")
    done = process("verify", "actor", "--network", "my_network:Mine", JAX_PLATFORMS="cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok   golden output 0" in done.stdout


def test_a_default_tolerance_lets_another_order_of_sums_pass(zoo: BrainManager) -> None:
    params = {"w": np.random.default_rng(0).standard_normal(4096, np.float32)}

    def forwards(params: Any, obs: jax.Array) -> jax.Array:
        return obs @ params["w"].reshape(4, -1).sum(1)

    def backwards(params: Any, obs: jax.Array) -> jax.Array:
        return obs @ jnp.cumsum(params["w"].reshape(4, -1)[:, ::-1], 1)[:, -1]

    zoo.save("sum", params, golden=Golden.of(forwards, params, OBS))
    zoo.attach_export("sum", backwards, OBS)
    assert zoo.verify("sum").holds
