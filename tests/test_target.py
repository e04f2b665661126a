from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from trees import (
    SavedLeaf,
    assert_equal,
    load,
    load_as,
    save,
)

from brainstore.errors import BadParams
from brainstore.pytree import (
    flatten,
    match,
)


@flax.struct.dataclass
class Policy:
    weights: Any
    name: str = flax.struct.field(pytree_node=False, default="none")


def paths(tree: Any) -> list[str]:
    return [leaf.path for leaf in flatten(tree).leaves]


def specs(tree: Any) -> list[SavedLeaf]:
    return save(tree).read()


def test_all_misfits_are_told_in_one_error():
    saved = {"a": jnp.ones((2, 3)), "b": jnp.ones(2, jnp.int32), "old": jnp.ones(2), "same": 1}
    target = {"a": jnp.ones((3, 2)), "b": jnp.ones(2), "new": jnp.ones(4), "same": 1}
    with pytest.raises(BadParams) as caught:
        match(specs(saved), target)
    assert str(caught.value).splitlines()[:5] == [
        "params: the saved leaves do not fit the target, at 4 of them:",
        "  a: expected float32[3, 2], found float32[2, 3]",
        "  b: expected float32[2], found int32[2]",
        "  new: expected float32[4], found nothing saved",
        "  old: expected nothing, found float32[2]",
    ]
    assert "strict=False" in str(caught.value)


def test_without_strict_the_target_keeps_what_was_not_saved():
    saved = save({"a": jnp.ones(2), "gone": jnp.ones(3)})
    own = jnp.zeros(5)
    found = load_as(saved, {"a": jnp.zeros(2), "new": own, "n": 7}, strict=False)
    assert found["a"].tolist() == [1, 1]
    assert found["new"] is own
    assert found["n"] == 7


def test_without_strict_an_abstract_leaf_that_was_not_saved_is_still_missing():
    target = {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(BadParams, match=r"a: expected float32\[2\], found nothing saved"):
        match(specs({}), target, strict=False)


def test_only_the_needed_leaves_are_asked_for():
    saved = specs({"a": 1, "b": 2, "c": 3})
    assert match(saved, {"c": 0, "a": 0}, strict=False).needed == (0, 2)


def test_a_target_converts_between_floating_dtypes():
    saved = save({"w": jnp.array([1.5, -2.0]), "h": jnp.ones(1, jnp.bfloat16)})
    target = {
        "w": jax.ShapeDtypeStruct((2,), jnp.bfloat16),
        "h": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    found = load_as(saved, target)
    assert found["w"].dtype == jnp.bfloat16
    assert found["w"].tolist() == [1.5, -2.0]
    assert found["h"].dtype == jnp.float32


def test_dtype_overrides_the_target_and_rounds_once():
    saved = save({"w": jnp.array([1 / 3])})
    found = load_as(saved, {"w": jnp.zeros(1, jnp.bfloat16)}, dtype="float32")
    assert found["w"].dtype == jnp.float32
    assert found["w"][0] == jnp.float32(1 / 3)


def test_python_scalars_and_arrays_of_their_kind_stand_for_each_other():
    saved = save({"step": 5, "lr": 0.5, "count": jnp.int32(7)})
    found = load_as(saved, {"step": jnp.int32(0), "lr": jnp.float32(0), "count": 0})
    assert (found["step"].dtype, found["step"]) == (jnp.int32, 5)
    assert (found["lr"].dtype, found["lr"]) == (jnp.float32, 0.5)
    assert found["count"] == 7
    assert type(found["count"]) is int


@pytest.mark.parametrize(("saved", "own"), [(1, 1.0), (1.0, 1), (True, 1), (1, True), (1j, 1.0)])
def test_scalars_of_another_kind_do_not_fit(saved, own):
    with pytest.raises(BadParams, match="s: expected"):
        match(specs({"s": saved}), {"s": own})


def test_an_integer_too_large_for_the_target_is_refused():
    with pytest.raises(BadParams, match=r"step: the saved integer 5000000000 does not fit.*int32"):
        load_as(save({"step": 5_000_000_000}), {"step": jnp.int32(0)})


def test_a_numpy_scalar_in_the_target_gives_a_numpy_scalar():
    found = load_as(
        save({"a": np.float32(0.5), "b": jnp.float32(2)}), {"a": np.float64(0), "b": np.float32(0)}
    )
    assert type(found["a"]) is np.float64
    assert type(found["b"]) is np.float32


def test_keys_fit_only_keys_of_their_kind():
    saved = specs({"k": jax.random.key(0)})
    with pytest.raises(BadParams, match=r"k: expected key<rbg>\[\], found key<threefry2x32>\[\]"):
        match(saved, {"k": jax.random.key(0, impl="rbg")})
    assert match(saved, {"k": jax.eval_shape(lambda: jax.random.key(0))}).needed == (0,)


def test_a_target_leaf_that_is_no_array_is_named():
    with pytest.raises(BadParams, match="target: a is of type str"):
        match(specs({"a": 1}), {"a": "text"})


@pytest.mark.parametrize("as_abstract", [False, True])
def test_a_train_state_comes_back_with_its_optimizer(as_abstract):
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    tx = optax.chain(optax.clip(1.0), optax.adamw(1e-3))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    trained = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    target = jax.eval_shape(lambda: state) if as_abstract else state
    found = load_as(save(trained), target)
    assert type(found) is TrainState
    assert found.apply_fn == model.apply
    assert found.tx is tx
    assert found.step == 1
    assert found.apply_gradients(grads=params).step == 2
    assert jax.tree.structure(found.opt_state) == jax.tree.structure(trained.opt_state)
    assert_equal(found.opt_state, trained.opt_state)
    assert_equal(found.params, trained.params)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(3, 1, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])

    def __call__(self, x):
        return self.heads[0](self.drop(self.norm(self.dense(x))))


def test_a_module_is_its_state_and_comes_back_as_a_plain_dict():
    net = Net(nnx.Rngs(0))
    found = load(save(net))
    assert "dense/kernel" in paths(net)
    assert "heads/0/bias" in paths(net)
    assert paths(net) == paths(nnx.state(net))
    assert_equal(found, nnx.to_pure_dict(nnx.state(net)))


def test_a_module_can_be_filled_from_what_was_saved():
    net, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(1))
    x = jnp.ones((4, 2))
    net(x)
    state = load_as(save(net), other)
    assert type(state) is type(nnx.state(net))
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(other))
    nnx.update(other, state)
    assert jnp.array_equal(net(x), other(x))


def test_an_abstract_module_is_a_target():
    net = Net(nnx.Rngs(0))
    target = nnx.eval_shape(lambda: Net(nnx.Rngs(1)))
    assert_equal(load_as(save(net), nnx.state(target)), nnx.state(net))


def test_modules_may_stand_inside_a_tree():
    net = Net(nnx.Rngs(0))
    tree = {"actor": net, "steps": 3}
    assert paths(tree)[0] == "actor/dense/bias"
    found = load_as(save(tree), tree)
    assert found["steps"] == 3
    assert_equal(found["actor"], nnx.state(net))


def test_an_nnx_optimizer_comes_back():
    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adamw(1e-3), wrt=nnx.Param)
    found = load_as(save(nnx.state(optimizer)), nnx.state(optimizer))
    assert_equal(found, nnx.state(optimizer))


def test_boxed_parameters_come_back_boxed_with_a_target_and_plain_without():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    boxed = nn.Dense(3, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 2)))
    plain = nn.unbox(boxed)
    assert paths(boxed) == ["params/bias", "params/kernel"]
    assert_equal(load(save(boxed)), plain)
    found = load_as(save(boxed), boxed)
    assert found["params"]["kernel"].names == (None, "model")
    assert_equal(found, boxed)
    assert_equal(load_as(save(plain), boxed), boxed)


def test_boxed_and_plain_parameters_have_the_same_leaves():
    array = jnp.ones(2)
    boxed = {"w": nn.Partitioned(array, names=("x",)), "v": nnx.Param(array)}
    assert flatten(boxed).structure == flatten({"w": array, "v": array}).structure


def test_a_flax_dataclass_comes_back_with_its_static_fields():
    found = load_as(save(Policy({"w": jnp.ones(2)}, "good")), Policy({"w": jnp.zeros(2)}, "mine"))
    assert found.name == "mine"
    assert found.weights["w"].tolist() == [1, 1]
