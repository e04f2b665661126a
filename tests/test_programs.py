"""Brains that play without their network's code: stored programs, and what is wrong with some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from actors import DIMS, NETWORK, OBS, NnxActor, init, nnx_state, outputs, save

from brainstore import BrainInference, BrainManager, Golden
from brainstore.architecture import called
from brainstore.errors import BadParams, Corrupt, NotFound, Unsupported
from brainstore.networks import ActorCritic
from brainstore.programs import DESCRIPTION, PROGRAM, Program, describe, opened, reading
from brainstore.programs import form as program_form

EXPORTED: dict[str, Any] = {"apply_fn": NETWORK.apply, "example_obs": OBS}


@pytest.fixture
def zoo(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def played(zoo: BrainManager, ref: str, *network_class: Any) -> jax.Array:
    return BrainInference(zoo, ref, *network_class).act(OBS, True)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def blob_files(zoo: BrainManager) -> set[str]:
    assert isinstance(zoo.storage_dir, Path)
    return {path.name for path in (zoo.storage_dir / "blobs").rglob("*") if path.is_file()}


# Playing without the class


def test_a_program_plays_in_a_process_that_never_saw_the_network(
    zoo: BrainManager, tmp_path: Path
) -> None:
    save(zoo, 0, groups={"obs_norm": norm()}, **EXPORTED)
    code = """
import sys
import numpy as np
from brainstore import BrainInference, BrainManager
zoo = BrainManager(sys.argv[1])
brain = BrainInference(zoo, "actor")
obs = np.load(sys.argv[2])
np.save(sys.argv[3], brain.act(obs, deterministic=True))
assert brain.act(obs[0]).shape == (2,)
assert zoo.verify("actor").holds
names = {name.partition(".")[0] for name in sys.modules}
assert not names & {"flax", "optax", "actors"}, names
assert "brainstore.networks" not in sys.modules
"""
    np.save(tmp_path / "obs.npy", OBS)
    files = [str(zoo.storage_dir), str(tmp_path / "obs.npy"), str(tmp_path / "actions.npy")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, *files], check=True, env=environment)
    close(np.load(files[2]), played(zoo, "actor", ActorCritic))


def norm() -> dict[str, Any]:
    return {"mean": np.full(4, 0.5, np.float32), "variance": np.full(4, 2, np.float32)}


@pytest.fixture
def brain(zoo: BrainManager) -> BrainInference:
    save(zoo, 0, **EXPORTED)
    return BrainInference(zoo, "actor")


def test_a_program_acts_like_its_network(zoo: BrainManager, brain: BrainInference) -> None:
    with_class, key = BrainInference(zoo, "actor", ActorCritic), jax.random.key(0)
    for obs in (OBS[0], OBS[:0], np.stack([OBS, -OBS])):
        close(brain.act(obs, True), with_class.act(obs, True))
    close(brain.value(obs), with_class.value(obs))
    close(brain.act(obs, key=key), with_class.act(obs, key=key))


def test_a_program_goes_through_jit_vmap_and_scan(zoo: BrainManager, brain: BrainInference) -> None:
    plain = BrainInference(zoo, "actor", ActorCritic)
    rows, keys = np.stack([OBS, -OBS, 2 * OBS]), jax.random.split(jax.random.key(0), 3)
    several = jax.tree.map(lambda *leaves: np.stack(leaves), init(0), init(1), init(2))
    for axes, params in (((None, 0, 0, None), brain.params), ((0, None, 0, None), several)):
        obs = rows if axes[1] == 0 else OBS
        expected = jax.vmap(plain.policy, axes)(params, obs, keys, False)
        mapped = jax.jit(jax.vmap(brain.policy, axes), static_argnums=3)
        close(mapped(params, obs, keys, False), expected)
    nested = jax.vmap(jax.vmap(brain.policy, (None, 0, None, None)), (0, None, 0, None))
    assert jax.eval_shape(nested, several, rows, keys, True).shape == (3, 3, 5, 2)

    def step(carry: None, obs: jax.Array) -> tuple[None, jax.Array]:
        return carry, brain.policy(brain.params, obs, None, True)

    _, scanned = jax.lax.scan(step, None, rows)
    close(scanned, plain.act(rows, True))


def test_a_program_says_that_it_has_no_derivative(brain: BrainInference) -> None:
    def loss(scale: jax.Array, params: Any) -> jax.Array:
        return (scale * brain.policy(params, OBS, None, True)).sum()

    with pytest.raises(Unsupported, match=r"has no derivative.*network's class"):
        jax.grad(loss, argnums=1)(1.0, brain.params)
    close(jax.grad(loss)(1.0, brain.params), brain.act(OBS, True).sum())


def test_refresh_takes_new_params_of_the_same_program_without_compiling(
    zoo: BrainManager, brain: BrainInference
) -> None:
    brain.act(OBS, True)
    zoo.save("actor", init(1), **DIMS, files=files_of(zoo, "actor:1"))
    greedy = brain._playing.functions.greedy
    assert brain.refresh()
    close(brain.act(OBS, True), jnp.tanh(outputs(1)[0]))
    assert greedy is brain._playing.functions.greedy
    assert greedy._cache_size() == 1  # type: ignore[attr-defined]


def files_of(zoo: BrainManager, ref: str, **changed: Any) -> dict[str, bytes]:
    """Return the files of a version's program, with other values in its description."""
    description = json.loads(zoo.file(ref, DESCRIPTION)) | changed
    return {PROGRAM: zoo.file(ref, PROGRAM), DESCRIPTION: json.dumps(description).encode()}


def test_a_version_without_a_program_says_what_to_do(zoo: BrainManager) -> None:
    save(zoo, 0)
    with pytest.raises(NotFound, match=r"actor:1 has no program.*attach_export"):
        BrainInference(zoo, "actor")
    with pytest.raises(BadParams, match="hidden_dim: arguments of a network"):
        BrainInference(zoo, "actor", hidden_dim=8)


# What is stored


def test_the_description_tells_all_that_a_reader_needs(zoo: BrainManager) -> None:
    save(zoo, 0, **EXPORTED)
    found = json.loads(zoo.file("actor", DESCRIPTION))
    assert (found["jax"], found["platforms"]) == (jax.__version__, ["cpu", "cuda", "tpu"])
    assert found["nr_devices"] == 1
    assert found["inputs"] == [{"path": "", "dtype": "float32", "shape": ["b", 4]}]
    assert [(each["path"], each["shape"]) for each in found["outputs"]] == [
        ("0", ["b", 2]), ("1", [2]), ("2", ["b"]),
    ]  # fmt: skip
    leaves = zoo.manifest("actor").groups["params"].leaves
    assert [(x["path"], tuple(x["shape"])) for x in found["params"]] == [
        (leaf.path, leaf.shape) for leaf in leaves
    ]
    begun, ends = (datetime.fromisoformat(found[x]) for x in ("created_at", "expires_at"))
    assert ends - begun == timedelta(days=180)
    assert abs(datetime.now(UTC) - begun) < timedelta(hours=1)
    convention = jax.export.deserialize(bytearray(zoo.file("actor", PROGRAM)))
    assert found["calling_convention_version"] == convention.calling_convention_version


def test_the_same_network_is_the_same_program_wherever_it_is_saved(zoo: BrainManager) -> None:
    save(zoo, 0, **EXPORTED)
    before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    zoo.attach_export("actor:1", lambda params, obs: NETWORK.apply(params, obs), OBS)
    assert jax.config.jax_traceback_in_locations_limit == before  # type: ignore[attr-defined]
    body = zoo.file("actor:1", PROGRAM)
    assert body == zoo.file("actor:2", PROGRAM)
    assert b".py" not in body


def test_a_renewed_program_of_the_same_network_is_not_compiled_again(
    zoo: BrainManager, brain: BrainInference
) -> None:
    functions = brain._playing.functions
    zoo.attach_export("actor:1", NETWORK.apply, OBS)
    assert brain.refresh()
    assert brain._playing.functions is functions


class Pair(NamedTuple):
    later: Any
    earlier: Any


def test_params_of_other_containers_reach_the_program_in_their_places(zoo: BrainManager) -> None:
    weights = Pair(np.float32([[1, 2]]), {"x": (np.float32([3, 4]), 0.5)})

    def apply(params: Any, obs: jax.Array) -> Any:
        bias, scale = params["earlier"]["x"]
        return {"logits": (obs @ params["later"] + bias) * scale}

    zoo.save("pair", weights, apply_fn=apply, example_obs=np.float32([[2]]), input_dim=1)
    brain = BrainInference(zoo, "pair")
    found = brain.apply(brain.params, jnp.float32([[2], [3]]))
    assert list(found) == ["logits"]
    close(found["logits"], [[2.5, 4], [3, 5]])
    with pytest.raises(BadParams, match="params: expected the structure that load gives"):
        brain.apply({"later": 1}, jnp.ones((1, 1)))
    wrong = jax.tree.map(jnp.asarray, brain.params) | {"later": jnp.zeros((1, 3))}
    misfit = r"later: the program takes float32\[1, 2\], found float32\[1, 3\]"
    with pytest.raises(BadParams, match=misfit):
        brain.apply(wrong, jnp.ones((1, 1)))


def test_several_inputs_go_by_position_or_by_name(zoo: BrainManager) -> None:
    def apply(params: Any, obs: jax.Array, hidden: jax.Array) -> Any:
        return hidden * params["decay"] + obs, obs.sum(-1)

    params, obs, hidden = {"decay": np.float32(0.5)}, OBS, np.ones((5, 4), np.float32)
    for example in ((obs, hidden), {"obs": obs, "hidden": hidden}):
        zoo.save("memory", params, apply_fn=apply, example_obs=example)
        assert zoo.verify("memory").holds
        program = program_of(zoo, "memory")
        one: Any = jax.tree.map(lambda rows: rows[0], example)
        close(called(program.apply, params, one)[0], obs[0] + 0.5)
        uneven = (obs, hidden[:2]) if isinstance(example, tuple) else {**example, "obs": obs[:2]}
        with pytest.raises(BadParams, match="the inputs have different leading dimensions"):
            called(program.apply, params, uneven)
        with pytest.raises(Unsupported, match=r"takes .* one array of observations"):
            BrainInference(zoo, "memory")


def program_of(zoo: BrainManager, ref: str) -> Program:
    version, manifest, owner = zoo.zoo.find(ref)
    return opened(owner.blobs, manifest, str(version))


def test_an_input_without_rows_stays_as_it_is(zoo: BrainManager) -> None:
    def noisy(params: Any, obs: jax.Array, key: jax.Array) -> jax.Array:
        return obs * params + jax.random.normal(key, obs.shape)

    example = (OBS, jax.random.key(0))
    zoo.save("noisy", np.float32(2), apply_fn=noisy, example_obs=example)
    program = program_of(zoo, "noisy")
    close(program.apply(np.float32(2), *example), noisy(2, *example))
    keys = jax.random.split(jax.random.key(1), 3)
    found = jax.vmap(lambda key: program.apply(np.float32(2), OBS, key))(keys)
    close(found, jnp.stack([noisy(2, OBS, key) for key in keys]))
    assert zoo.verify("noisy").holds


def test_inputs_of_a_program_are_checked(brain: BrainInference) -> None:
    with pytest.raises(BadParams, match=r"expected float32\[..., 4\], found float32\[5, 3\]"):
        brain.apply(brain.params, jnp.zeros((5, 3)))
    with pytest.raises(BadParams, match=r"expected float32\[..., 4\], found int32\[5, 4\]"):
        brain.act(jnp.zeros((5, 4), jnp.int32))
    with pytest.raises(BadParams, match="found inputs of the structure"):
        brain.apply(brain.params, (OBS, OBS))


def test_shapes_alone_make_a_program_and_no_golden_behaviour(zoo: BrainManager) -> None:
    save(zoo, 0, apply_fn=NETWORK.apply, example_obs=jax.ShapeDtypeStruct((4,), "float32"))
    assert set(zoo.manifest("actor").groups) == {"params"}
    close(played(zoo, "actor"), jnp.tanh(outputs(0)[0]))


def test_a_version_with_a_program_passes_export_and_import(
    zoo: BrainManager, tmp_path: Path
) -> None:
    save(zoo, 0, **EXPORTED)
    zoo.export_all(tmp_path / "plain")
    with BrainManager(tmp_path / "other") as other:
        zoo.push(other)
        close(
            played(other, "actor"),
            played(zoo, "actor"),
        )
        assert other.verify("actor").holds


# Attaching to a version that is there


def test_attaching_makes_a_version_of_the_same_params_and_stores_none_again(
    zoo: BrainManager,
) -> None:
    moments = {"mu": np.arange(300_000, dtype=np.float32), "key": jax.random.key(0)}
    save(zoo, 0, groups={"opt_state": moments}, files={"notes.md": b"hi"}, notes="first")
    before = blob_files(zoo)
    assert zoo.attach_export("actor:1", NETWORK.apply, OBS, aliases="prod") == "actor_v2"
    old, new = zoo.manifest("actor:1"), zoo.manifest("actor:prod")
    assert new.groups == old.groups
    assert new.meta == old.meta
    assert new.files.items() > old.files.items()
    [parent] = new.parents
    assert (str(parent.name), parent.version, parent.relation) == ("actor", 1, "exported")
    assert parent.digest == zoo.resolve("actor:1").digest
    added = {new.files[name].blob.hex for name in (PROGRAM, DESCRIPTION)}
    assert blob_files(zoo) - before == added
    assert new.new_bytes == sum(new.files[name].size_bytes for name in (PROGRAM, DESCRIPTION))
    assert new.size_bytes == old.size_bytes + new.new_bytes
    assert zoo.load("actor:2", groups="all", as_numpy=True)[0].keys() == old.groups.keys()
    close(
        played(zoo, "actor:2"),
        played(zoo, "actor:1", ActorCritic),
    )


def test_attaching_again_renews_the_program(zoo: BrainManager) -> None:
    save(zoo, 0, **EXPORTED)
    first = zoo.manifest("actor:1")
    zoo.attach_export("actor:1", NETWORK.apply, OBS, platforms=["cpu"])
    second = zoo.manifest("actor:2")
    assert set(second.files) == set(first.files)
    assert first.files[PROGRAM].blob not in second.blobs
    replaced = sum(file.size_bytes for file in first.files.values())
    added = sum(file.size_bytes for file in second.files.values())
    assert second.size_bytes == first.size_bytes - replaced + added
    assert json.loads(zoo.file("actor:2", DESCRIPTION))["platforms"] == ["cpu"]
    assert zoo.verify("actor:2").holds


def test_the_network_of_a_playing_brain_can_be_attached(zoo: BrainManager) -> None:
    zoo.save("nnx", nnx_state(), **DIMS)
    brain = BrainInference(zoo, "nnx", NnxActor)
    zoo.attach_export(brain.ref, brain.apply, OBS, golden=True)
    close(BrainInference(zoo, "nnx").act(OBS, True), brain.act(OBS, True))
    assert zoo.verify("nnx").holds
    assert zoo.verify("nnx", NnxActor).holds


def test_a_function_that_behaves_otherwise_is_not_attached(zoo: BrainManager) -> None:
    save(zoo, 0, golden=Golden(OBS, outputs(0)))
    with pytest.raises(
        BadParams, match=r"does not give the golden outputs.*\n  golden output 0: at"
    ):
        zoo.attach_export("actor", lambda params, obs: NETWORK.apply(params, -obs), OBS)
    assert zoo.list_models() == ["actor_v1"]
    zoo.attach_export("actor", NETWORK.apply, OBS)
    assert zoo.verify("actor").holds


def test_golden_behaviour_can_be_replaced_when_attaching(zoo: BrainManager) -> None:
    save(zoo, 0, golden=Golden(OBS, outputs(0)))
    zoo.attach_export("actor:1", NETWORK.apply, 2 * OBS, golden=True)
    golden = zoo.load("actor:2", groups="golden")[0]["golden"]
    close(golden["inputs"], 2 * OBS)
    assert zoo.manifest("actor:2").size_bytes == sum(
        leaf.nbytes if hasattr(leaf, "nbytes") else 8
        for leaf in jax.tree.leaves(zoo.load("actor:2", groups="all")[0])
    ) + sum(file.size_bytes for file in zoo.manifest("actor:2").files.values())


@pytest.mark.s3
def test_attaching_in_a_bucket_keeps_what_is_there(s3_place: Any, tmp_path: Path) -> None:
    options = s3_place.storage_options
    with BrainManager(s3_place.url, storage_options=options, cache=tmp_path / "cache") as zoo:
        save(zoo, 0)
        zoo.attach_export("actor", NETWORK.apply, OBS, golden=True)
    with BrainManager(s3_place.url, storage_options=options, cache=tmp_path / "other") as zoo:
        assert zoo.verify("actor:2").holds
        assert BrainInference(zoo, "actor").act(OBS).shape == (5, 2)


# What cannot be exported


def doubled(params: Any, obs: jax.Array) -> jax.Array:
    return jnp.concatenate([obs, obs])


@pytest.mark.parametrize(
    ("apply", "problem"),
    [
        (lambda params, obs: obs if obs.sum() > 0 else -obs, "TracerBoolConversionError"),
        (lambda params, obs: obs.reshape(-1, 3), "InconclusiveDimensionOperation"),
        (lambda params, obs: (obs, "text"), "returned a value of type"),
        (lambda params, obs: jax.pure_callback(np.sin, obs, obs), "NotImplementedError"),
        (lambda params, obs: params["nowhere"], "KeyError"),
        (doubled, r"output .*float32\[2\*b, 4\] depends on the number of rows"),
    ],
)
def test_a_function_that_cannot_be_exported_is_refused_and_nothing_saved(
    zoo: BrainManager, apply: Any, problem: str
) -> None:
    with pytest.raises(BadParams, match=problem):
        save(zoo, 0, apply_fn=apply, example_obs=OBS)
    assert zoo.list_models() == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"apply_fn": NETWORK.apply}, "give example_obs as well"),
        ({"example_obs": OBS}, "go with apply_fn"),
        ({"golden": True}, "go with apply_fn"),
        ({"apply_fn": "apply", "example_obs": OBS}, "expected a function.*found str"),
        ({"apply_fn": NETWORK.apply, "example_obs": OBS.astype(object)}, "dtype object"),
        ({"apply_fn": NETWORK.apply, "example_obs": OBS[:, :3]}, "expected rows of 4"),
        ({"golden": {"inputs": OBS}}, "expected a Golden, True or False, found dict"),
        ({"golden": 0}, "expected a Golden, True or False, found int"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    zoo: BrainManager, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadParams, match=problem):
        save(zoo, 0, **options)
    assert zoo.list_models() == []


def test_golden_of_shapes_alone_is_refused(zoo: BrainManager) -> None:
    shapes = jax.ShapeDtypeStruct((5, 4), "float32")
    with pytest.raises(BadParams, match="example_obs has shapes only"):
        save(zoo, 0, apply_fn=NETWORK.apply, example_obs=shapes, golden=True)
    assert zoo.list_models() == []


@pytest.mark.parametrize("platforms", [["gpu"], [], "cpu", ["cpu", "abacus"]])
def test_unknown_platforms_are_refused(zoo: BrainManager, platforms: Any) -> None:
    save(zoo, 0)
    with pytest.raises(BadParams, match="expected some of cpu, cuda, tpu, rocm"):
        zoo.attach_export("actor", NETWORK.apply, OBS, platforms=platforms)
    with pytest.raises(BadParams, match="both are needed"):
        zoo.attach_export("actor", NETWORK.apply, None)
    assert zoo.list_models() == ["actor_v1"]


# Programs that cannot be run


def test_a_program_for_another_platform_is_refused(zoo: BrainManager) -> None:
    save(zoo, 0)
    zoo.attach_export("actor", NETWORK.apply, OBS, platforms=["cuda", "tpu"])
    with pytest.raises(
        Unsupported, match=r"is for cuda, tpu, .*on cpu\. .*, platforms=\['cpu'\]\)$"
    ):
        BrainInference(zoo, "actor")
    assert BrainInference(zoo, "actor", ActorCritic).version == 2


def test_an_expired_program_is_refused_and_its_params_are_not(
    zoo: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(zoo, 0, **EXPORTED)
    past = {"jaxlib": "0.4.1", "expires_at": "2025-01-31T00:00:00.000Z"}
    save(zoo, 0, files=files_of(zoo, "actor:1", **past), golden=Golden(OBS, OBS))
    expired = r"made with jaxlib 0\.4\.1 .* until 2025-01-31.*attach_export"
    for play in (lambda: BrainInference(zoo, "actor"), lambda: zoo.verify("actor")):
        with pytest.raises(Unsupported, match=expired):
            play()
    close(played(zoo, "actor:2", ActorCritic), played(zoo, "actor:1"))
    # The jaxlib that wrote it reads it for ever.
    monkeypatch.setattr(reading, "jaxlib_version", lambda: "0.4.1")
    assert BrainInference(zoo, "actor:2").version == 2


def test_a_calling_convention_that_is_not_known_is_refused(zoo: BrainManager) -> None:
    save(zoo, 0, **EXPORTED)
    save(zoo, 0, files=files_of(zoo, "actor:1", calling_convention_version=99))
    with pytest.raises(Unsupported, match="its calling convention is 99, and this JAX reads 9 to"):
        BrainInference(zoo, "actor")


@pytest.mark.parametrize("body", [b"", b"hello world" * 20, None])
def test_bytes_that_are_no_program_are_refused(zoo: BrainManager, body: bytes | None) -> None:
    save(zoo, 0, **EXPORTED)
    files = files_of(zoo, "actor:1")
    save(zoo, 0, files={**files, PROGRAM: files[PROGRAM][:900] if body is None else body})
    with pytest.raises(Corrupt, match=r"policy.stablehlo of actor:2.* is no program that jax"):
        BrainInference(zoo, "actor")


def test_a_description_that_is_none_is_refused(zoo: BrainManager) -> None:
    save(zoo, 0, **EXPORTED)
    files = files_of(zoo, "actor:1")
    save(zoo, 0, files={**files, DESCRIPTION: b"{}"})
    with pytest.raises(Corrupt, match=r"policy\.json of actor:2"):
        BrainInference(zoo, "actor")
    save(zoo, 0, files=files_of(zoo, "actor:1", format=2))
    with pytest.raises(Unsupported, match=r"policy\.json of actor:3 has format 2"):
        BrainInference(zoo, "actor")


@pytest.mark.parametrize("end", ["", "soon", "2026-11-24", "2026-11-24T00:00:00"])
def test_an_end_of_its_window_that_is_no_time_is_refused(zoo: BrainManager, end: str) -> None:
    save(zoo, 0, **EXPORTED)
    save(zoo, 0, files=files_of(zoo, "actor:1", jaxlib="0.1", expires_at=end))
    with pytest.raises(Corrupt, match=r"policy\.json of actor:2 is damaged: expires_at"):
        BrainInference(zoo, "actor")


def test_the_program_of_another_brain_is_refused(zoo: BrainManager) -> None:
    save(zoo, 0, **EXPORTED)
    zoo.save("other", {"w": np.ones(3, np.float32)}, files=files_of(zoo, "actor:1"))
    with pytest.raises(Corrupt, match="belongs to another brain"):
        BrainInference(zoo, "other")
    foreign = jax.export.export(jax.jit(jnp.sin))(jax.ShapeDtypeStruct((3,), "float32"))
    files = {**files_of(zoo, "actor:1"), PROGRAM: bytes(foreign.serialize())}
    zoo.save("other", {"w": np.ones(3, np.float32)}, files=files)
    with pytest.raises(Corrupt, match="belongs to another brain"):
        BrainInference(zoo, "other")


def test_a_missing_package_is_named(zoo: BrainManager, monkeypatch: pytest.MonkeyPatch) -> None:
    save(zoo, 0, **EXPORTED)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(Unsupported, match="pip install flatbuffers"):
        BrainInference(zoo, "actor")
    with pytest.raises(Unsupported, match="pip install flatbuffers"):
        save(zoo, 0, **EXPORTED)
    assert zoo.list_models() == ["actor_v1"]


def test_a_description_can_be_read_without_running_anything(zoo: BrainManager) -> None:
    save(zoo, 0, **EXPORTED)
    version, manifest, owner = zoo.zoo.find("actor")
    found = describe(owner.blobs, manifest, str(version))
    assert found.expires_at == program_form.expiry(found.created_at)
    assert [str(each) for each in found.inputs] == ["float32[b, 4]"]
    assert str(found.outputs[0]) == "0: float32[b, 2]"
