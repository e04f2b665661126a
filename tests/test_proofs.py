"""Frozen experts: proved leaf by leaf, by bytes and not by claims."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import msgspec
import numpy as np
import pytest
from zoos import WrappedStore, opened, params

from brainstore import BadParams, BrainManager, Corrupt
from brainstore.address import Name, manifest_key
from brainstore.factory.proofs import Proof
from brainstore.storage.memory import MemoryStore

EXPERT = params(1)


@pytest.fixture
def zoo() -> Iterator[BrainManager]:
    """A zoo with an expert, nav:1."""
    with opened(MemoryStore()) as zoo:
        zoo.save("nav", EXPERT)
        yield zoo


def leaf_paths(tree: Any) -> tuple[str, ...]:
    prefix = "params/" if "params" in tree else ""
    return (f"{prefix}dense/bias", f"{prefix}dense/kernel")


def proof_of(zoo: BrainManager, tree: Any, ref: str = "nav:1", path: str = "experts/nav") -> Proof:
    zoo.save("swarm", {"experts": {"nav": tree}, "head": params(9)}, frozen_experts={path: ref})
    [proof] = zoo.prove("swarm")
    return proof


def test_an_expert_whose_leaves_are_all_identical_is_proved(zoo: BrainManager) -> None:
    proof = proof_of(zoo, EXPERT)
    assert proof.is_proved
    assert proof.identical == ("dense/bias", "dense/kernel")
    assert (proof.changed, proof.missing, proof.added, proof.constant) == ((), (), (), ())
    assert proof.verdict == "proved: 2 leaves identical"
    assert json.loads(json.dumps(proof.to_dict()))["is_proved"] is True


@pytest.mark.parametrize(
    ("tree", "differences"),
    [
        ({"dense": {**EXPERT["dense"], "bias": np.float32([9, 9])}}, "changed dense/bias"),
        ({"dense": {"kernel": EXPERT["dense"]["kernel"]}}, "missing dense/bias"),
        ({**EXPERT, "lora": np.float32([1, 2])}, "added lora"),
        (
            {"dense": {**EXPERT["dense"], "bias": EXPERT["dense"]["bias"].astype(np.float16)}},
            "changed dense/bias",
        ),
        (
            {"dense": {**EXPERT["dense"], "kernel": EXPERT["dense"]["kernel"].T}},
            "changed dense/kernel",
        ),
    ],
)
def test_a_save_warns_of_leaves_that_differ_and_they_are_not_proved(
    zoo: BrainManager, tree: Any, differences: str
) -> None:
    with pytest.warns(UserWarning, match=differences) as warned:
        proof = proof_of(zoo, tree)
    assert warned[0].filename == __file__
    assert proof.differences() == differences
    assert not proof.is_proved


def test_the_same_bits_under_another_dtype_are_not_the_same_leaf() -> None:
    bits = np.arange(6, dtype=np.uint8)
    with opened(MemoryStore()) as zoo:
        zoo.save("nav", {"w": bits})
        with pytest.warns(UserWarning, match="changed w"):
            proof = proof_of(zoo, {"w": bits.view(ml_dtypes.float8_e3m4)})
        assert not proof.is_proved


CONSTANT = {
    "zeros": np.zeros((3, 4), np.float32),
    "ones": np.ones(1000, ml_dtypes.bfloat16),
    "nans": np.full(5, np.nan, np.float32),
    "one": np.float32([3.5]),
    "scalar": np.float32(3.5),
    "none": np.zeros((0, 4), np.int8),
    "large": np.full(3_000_000, 7, np.uint8),
}


def test_constant_leaves_are_no_evidence() -> None:
    with opened(MemoryStore()) as zoo:
        zoo.save("nav", CONSTANT)
        proof = proof_of(zoo, CONSTANT)
        assert proof.constant == proof.identical == tuple(sorted(CONSTANT))
        assert not proof.is_proved
        assert proof.verdict.startswith("only constant leaves, which are no evidence: large")


@pytest.mark.parametrize(
    "leaf",
    [
        np.float32([0.0, -0.0]),
        np.array([0x7FC00001, 0x7FC00002], np.uint32).view(np.float32),
        np.concatenate([np.zeros(9_000_000, np.uint8), np.uint8([1])]),
        np.arange(4).astype(ml_dtypes.int4),
        np.complex64([1, 1j]),
        np.array([[True, True], [True, False]]),
    ],
)
def test_elements_with_other_bits_are_evidence(leaf: np.ndarray[Any, Any]) -> None:
    with opened(MemoryStore()) as zoo:
        zoo.save("nav", {"w": leaf, "zero": np.zeros(3, np.float32)})
        proof = proof_of(zoo, {"w": leaf, "zero": np.zeros(3, np.float32)})
        assert proof.constant == ("zero",)
        assert proof.is_proved
        assert proof.verdict == "proved: 2 leaves identical, 1 of them constant"


def test_keys_count_by_the_key() -> None:
    one, two = {"rng": jax.random.key(1)}, {"rng": jax.random.split(jax.random.key(1))}
    with opened(MemoryStore()) as zoo:
        zoo.save("nav", one)
        zoo.save("nav", two)
        assert proof_of(zoo, one, "nav:1").constant == ("rng",)
        assert proof_of(zoo, two, "nav:2").is_proved


def test_a_part_of_an_expert_can_be_meant(zoo: BrainManager) -> None:
    proof = proof_of(zoo, EXPERT["dense"], "nav:1#dense")
    assert (proof.expert, proof.is_proved) == ("nav:1#dense", True)
    assert proof_of(zoo, EXPERT["dense"]["bias"], "nav:1#dense/bias").identical == ("",)
    with pytest.raises(KeyError, match="conv"):
        proof_of(zoo, EXPERT, "nav:1#conv")


@pytest.mark.parametrize(
    ("expert", "tree"), [({"params": EXPERT}, EXPERT), (EXPERT, {"params": EXPERT})]
)
def test_the_outer_params_of_linen_on_one_side_alone_make_no_difference(
    expert: Any, tree: Any
) -> None:
    with opened(MemoryStore()) as zoo:
        zoo.save("nav", expert)
        proof = proof_of(zoo, tree)
        assert proof.is_proved
        assert proof.identical == leaf_paths(tree)


def test_what_else_stands_beside_params_is_not_passed_over() -> None:
    with opened(MemoryStore()) as zoo:
        zoo.save("nav", {"params": EXPERT, "batch_stats": {"mean": np.float32([1, 2])}})
        with pytest.warns(UserWarning, match="missing batch_stats/mean, params/dense/bias"):
            assert not proof_of(zoo, EXPERT).is_proved


def test_all_params_can_be_an_expert(zoo: BrainManager) -> None:
    zoo.save("copy", EXPERT, frozen_experts={"": "nav:1"})
    [proof] = zoo.prove("copy")
    assert (proof.path, proof.is_proved) == ("", True)


def test_a_subtree_that_the_params_lack_is_refused(zoo: BrainManager) -> None:
    with pytest.raises(BadParams, match="experts/arm"):
        proof_of(zoo, EXPERT, path="experts/arm")


def test_an_expert_that_is_gone_proves_nothing_until_it_is_back(zoo: BrainManager) -> None:
    proof_of(zoo, EXPERT)
    zoo.delete("nav:1", force=True)
    [proof] = zoo.prove("swarm")
    assert (proof.is_resolved, proof.is_proved, proof.identical) == (False, False, ())
    assert "deleted" in proof.verdict
    zoo.undelete("nav:1")
    assert zoo.prove("swarm")[0].is_proved


def edit(zoo: BrainManager, name: str, change: Any) -> None:
    """Rewrite the manifest of version 1 as a hostile writer would."""
    manifest = zoo.manifest(f"{name}:1")
    key = manifest_key(Name(name), 1)
    zoo.zoo.store.put(key, change(manifest).encode())


def test_an_expert_that_was_replaced_is_not_the_one_that_is_pinned(zoo: BrainManager) -> None:
    proof_of(zoo, EXPERT)
    edit(zoo, "nav", lambda manifest: msgspec.structs.replace(manifest, by="somebody else"))
    [proof] = zoo.prove("swarm")
    assert not proof.is_resolved
    assert "is pinned as" in proof.verdict


def test_a_manifest_that_only_claims_the_digests_proves_nothing(zoo: BrainManager) -> None:
    with pytest.warns(UserWarning, match="changed"):
        proof_of(zoo, params(2))
    [expert] = [zoo.manifest("nav:1").groups["params"].leaves]
    claimed = {f"experts/nav/{leaf.path}": leaf.digest for leaf in expert}

    def lie(manifest: Any) -> Any:
        group = manifest.groups["params"]
        leaves = tuple(
            msgspec.structs.replace(leaf, digest=claimed.get(leaf.path, leaf.digest))
            for leaf in group.leaves
        )
        groups = {"params": msgspec.structs.replace(group, leaves=leaves)}
        return msgspec.structs.replace(manifest, groups=groups)

    edit(zoo, "swarm", lie)
    with pytest.raises(Corrupt, match="its manifest says"):
        zoo.prove("swarm:1")


def test_a_version_without_experts_has_nothing_to_prove(zoo: BrainManager) -> None:
    assert zoo.prove("nav:1") == []


def test_only_leaves_that_match_are_read() -> None:
    store = WrappedStore(MemoryStore())
    large = np.arange(400_000, dtype=np.float32)
    with opened(store) as zoo:
        zoo.save("nav", {"same": large, "other": large + 1})
        with pytest.warns(UserWarning, match="changed other"):
            zoo.save(
                "swarm",
                {"nav": {"same": large, "other": large + 2}, "head": large + 3},
                frozen_experts={"nav": "nav:1"},
            )
        leaves = {leaf.path: leaf for leaf in zoo.manifest("swarm").groups["params"].leaves}
        store.calls.clear()
        [proof] = zoo.prove("swarm")
        read = {call.key for call in store.calls if call.room == "blob"}
        assert proof.identical == ("same",)
        assert {key[-64:] for key in read} == {leaves["nav/same"].digest.hex}
