from __future__ import annotations

import enum
import os
import subprocess
import sys
import textwrap
import warnings
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import (
    QUICK,
    Point,
    arrays,
    assert_equal,
    bits,
    keys,
    load,
    load_as,
    save,
    trees,
)

from brainstore import dtypes, tensors
from brainstore.errors import BadParams, Corrupt
from brainstore.pytree import (
    HostLeaf,
    abstract,
    flatten,
    place,
    register,
    subtree,
    unflatten,
)

register(Point)


@pytest.fixture(autouse=True)
def _no_x64():
    assert not jax.config.jax_enable_x64


def paths(tree: Any) -> list[str]:
    return [leaf.path for leaf in flatten(tree).leaves]


@given(trees)
@QUICK
def test_a_tree_comes_back_bit_for_bit(tree):
    with jax.enable_x64(True):
        saved = save(tree)
        structure = msgspec.json.decode(
            msgspec.json.encode(saved.flat.structure, order="deterministic")
        )
        found = unflatten(structure, place([leaf.host for leaf in saved.read()]))
        assert_equal(found, tree)


@given(trees)
@QUICK
def test_leaves_stand_in_the_order_of_jax_and_have_paths_of_their_own(tree):
    with jax.enable_x64(True):
        leaves = flatten(tree).leaves
        assert [bits(leaf) for leaf in jax.tree.leaves(tree)] == [
            (leaf.tensor.dtype, leaf.tensor.shape, b"".join(leaf.tensor.chunks()))
            for leaf in leaves
        ]
        assert len({leaf.path for leaf in leaves}) == len(leaves)


@given(trees)
@QUICK
def test_a_tree_is_its_own_target(tree):
    with jax.enable_x64(True):
        assert_equal(load_as(save(tree), tree), tree)


@given(trees)
@QUICK
def test_an_abstract_tree_is_a_target_that_changes_nothing(tree):
    with jax.enable_x64(True):
        saved = save(tree)
        assert_equal(load_as(saved, abstract(saved.flat.structure, saved.read())), load(saved))


@given(trees, st.data())
@QUICK
def test_every_path_names_its_leaf(tree, data):
    with jax.enable_x64(True):
        flat = flatten(tree)
        for n, leaf in enumerate(flat.leaves):
            assert subtree(flat.structure, leaf.path) == ("*", slice(n, n + 1)) or leaf.path == ""


@pytest.mark.parametrize("dtype", [d for d in dtypes.LOGICAL_DTYPES if not dtypes.is_wide(d)])
def test_every_dtype_of_jax_comes_back_as_a_jax_array(dtype):
    array = jnp.asarray(np.array([[0, 1], [1, 0]]).astype(dtypes.numpy_dtype(dtype)))
    [found] = load(save([array]))
    assert isinstance(found, jax.Array)
    assert found.dtype == array.dtype == dtype
    assert bits(found) == bits(array)


@given(arrays())
@QUICK
def test_numpy_arrays_come_back_bit_for_bit_with_as_numpy(array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        [found] = load(save([array]), as_numpy=True)
        assert isinstance(found, np.ndarray)
        assert bits(found) == bits(array)


def test_scalars_come_back_as_what_they_were():
    tree = [True, 3, -(2**63), 2**64 - 1, 0.1, 1j, np.float64(0.1), np.int32(4), np.bool_(True)]
    found = load(save(tree))
    assert found == tree
    assert [type(leaf) for leaf in found] == [type(leaf) for leaf in tree]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_prng_keys_come_back_as_keys(impl):
    tree = {
        "one": jax.random.key(3, impl=impl),
        "many": jax.random.split(jax.random.key(3, impl=impl), 4),
    }
    found = load(save(tree))
    assert jax.random.key_impl(found["one"]) == jax.random.key_impl(tree["one"])
    assert jax.random.bits(found["one"]) == jax.random.bits(tree["one"])
    assert_equal(found, tree)


@given(keys())
@QUICK
def test_any_prng_key_comes_back(key):
    assert_equal(load(save(key)), key)


def test_keys_come_as_their_data_with_as_numpy():
    key = jax.random.key(3)
    found = load(save(key), as_numpy=True)
    assert found.dtype == np.uint32
    assert found.tolist() == jax.random.key_data(key).tolist()


def test_the_tree_and_its_arrays_are_not_changed():
    array = np.arange(6.0, dtype=np.float32)
    inner = [array]
    tree = {"a": inner, "b": {}}
    save(tree)
    assert tree == {"a": inner, "b": {}}
    assert tree["a"] is inner
    assert array.flags.writeable
    assert array.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_jax_array_on_the_cpu_is_not_copied():
    array = jnp.arange(1024.0)
    tensor = flatten(array).leaves[0].tensor
    assert tensor.array.ctypes.data == array.unsafe_buffer_pointer()


def test_an_aligned_view_becomes_a_jax_array_without_a_copy(tmp_path):
    import mmap

    tensor = tensors.Tensor.of(np.arange(1 << 20, dtype=np.float32))
    (tmp_path / "blob").write_bytes(b"".join(tensors.encode(tensor)))
    with (tmp_path / "blob").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    entry = tensors.parse_header(mapped)["tensor"]
    view = tensors.view(mapped, entry, "float32", (1 << 20,))
    [found] = place([HostLeaf("a", "float32", view)])
    assert found.unsafe_buffer_pointer() == view.ctypes.data
    assert jax.jit(lambda x: x + 1, donate_argnums=0)(found)[1] == 2
    assert view[1] == 1


def test_neither_module_imports_jax():
    program = "import brainstore.tensors, brainstore.pytree, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


def test_paths_join_keys_and_escape_what_would_confuse():
    tree = {"a/b": 1, "a%2Fb": 2, "a": {"b": 3, "": 4}, "#": [5, {7: 6}], "": 8, "\n": 9}
    assert sorted(paths(tree)) == sorted(
        ["a%2Fb", "a%252Fb", "a/b", "a/%", "%23/0", "%23/1/7", "%", "%0A"]
    )


def test_a_tree_may_be_one_leaf():
    flat = flatten(np.float32(2))
    assert (flat.structure, flat.leaves[0].path, len(flat)) == ("*", "", 1)
    assert load(save(np.float32(2))) == np.float32(2)


def test_a_tree_may_have_no_leaf():
    tree = {"a": [], "b": (None, {})}
    assert len(flatten(tree)) == 0
    assert load(save(tree)) == tree


def test_enum_keys_come_back_as_their_values():
    tree = {"a": {Colour.RED: 1}, "b": {Level.LOW: 2}}
    assert paths(tree) == ["a/red", "b/1"]
    assert load(save(tree)) == {"a": {"red": 1}, "b": {1: 2}}


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        ("text", "str"),
        (object(), "object"),
        (len, "builtin_function_or_method"),
        (b"bytes", "bytes"),
        ({1, 2}, "set"),
        (np.array([object()]), "object"),
        (np.array(["a"]), "<U1"),
        (np.datetime64("2020-01-01"), "datetime64"),
        (2**64, "64 bits"),
        (-(10**400), "64 bits"),
    ],
)
def test_a_leaf_that_is_no_array_is_named(leaf, found):
    with pytest.raises(BadParams, match=rf"opt_state: a/0: .*{found}"):
        flatten({"a": [leaf]}, where="opt_state")


def test_a_cyclic_tree_is_refused():
    tree: dict[str, Any] = {"a": []}
    tree["a"].append(tree)
    with pytest.raises(BadParams, match="a/0: contains itself"):
        flatten(tree)


def test_a_cyclic_node_of_another_class_is_refused():
    point = OrderedDict(x=1)
    point["y"] = point
    with pytest.raises(BadParams, match="y: contains itself"):
        flatten(point)


def test_one_object_at_two_places_is_no_cycle():
    shared = {"w": 1}
    assert load(save([shared, shared])) == [shared, shared]


def test_a_tree_nested_too_deep_is_refused():
    tree: Any = 1
    for _ in range(2000):
        tree = [tree]
    with pytest.raises(BadParams, match="128 levels"):
        flatten(tree)


def test_the_deepest_tree_that_saves_also_loads():
    tree: Any = 1
    for _ in range(129):
        tree = [tree]
    assert load(save(tree)) == tree
    with pytest.raises(BadParams):
        save([tree])


@pytest.mark.parametrize("key", [None, object(), "\ud800", 2**63, np.int32(1), frozenset()])
def test_a_key_that_cannot_be_recorded_is_refused(key):
    with pytest.raises(BadParams, match="a: the key"):
        flatten({"a": {key: 1}})


def test_keys_of_several_types_are_refused_as_by_jax():
    with pytest.raises(BadParams, match="params: the tree: JAX cannot flatten this dict"):
        flatten({"a": 1, 2: 2})


def test_leaves_of_one_path_are_refused():
    class Twins:
        pass

    key = jax.tree_util.DictKey("same")
    jax.tree_util.register_pytree_with_keys(
        Twins, lambda _: ([(key, 1), (key, 2)], None), lambda *_: Twins()
    )
    with pytest.raises(BadParams, match="same"):
        flatten(Twins())


def test_a_deleted_array_is_named():
    array = jnp.ones(3)
    array.delete()
    with pytest.raises(BadParams, match=r"params: w: was deleted.*donated"):
        flatten({"w": array})


def test_a_traced_array_is_refused():
    with pytest.raises(BadParams, match="outside of jit"):
        jax.jit(lambda x: flatten({"w": x}) and x)(1.0)


def test_saving_64_bit_arrays_warns_once_and_names_them():
    tree = {
        "a": np.zeros(2),
        "b": np.zeros(2, np.int64),
        "c": 1.0,
        "d": np.float64(1),
        "e": jnp.ones(1),
    }
    with pytest.warns(UserWarning, match=r"a \(float64\), b \(int64\)\. ") as caught:
        flatten(tree)
    assert len(caught) == 1


def test_loading_64_bit_arrays_names_them_and_the_ways_out():
    leaf = HostLeaf("a/b", "float64", np.zeros(2))
    with pytest.raises(BadParams, match=r"a/b \(float64\).*as_numpy.*dtype=.*jax_enable_x64"):
        place([leaf])
    assert place([leaf], as_numpy=True)[0].dtype == np.float64
    assert place([leaf], dtype="float32")[0].dtype == jnp.float32
    with jax.enable_x64(True):
        assert place([leaf])[0].dtype == jnp.float64


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16)])
def test_dtype_converts_floating_arrays_only(dtype):
    tree = {
        "f": jnp.array([3.4e38, jnp.nan]),
        "i": jnp.ones(2, int),
        "k": jax.random.key(0),
        "s": 0.1,
    }
    found = load(save(tree), dtype=dtype)
    assert found["f"].dtype == jnp.bfloat16
    assert found["i"].dtype == jnp.int32
    assert found["s"] == 0.1
    assert_equal(found["k"], tree["k"])


@pytest.mark.parametrize("dtype", ["int8", "float33", "O", "complex64", object(), "finfo"])
def test_dtype_must_be_floating(dtype):
    with pytest.raises(BadParams, match="dtype"):
        place([], dtype=dtype)


def test_a_scalar_that_contradicts_its_record_is_corrupt():
    for leaf in (
        HostLeaf("a", "float32", np.float32([1]), "float"),
        HostLeaf("a", "float32", np.asarray(np.float32(1)), "int"),
        HostLeaf("a", "float32", np.asarray(np.float32(1)), "list"),
    ):
        with pytest.raises(Corrupt, match="a: recorded as a scalar"):
            place([leaf])


def test_an_unknown_kind_of_key_is_named():
    leaf = HostLeaf("rng", "key<mine>", np.zeros(2, np.uint32))
    with pytest.raises(BadParams, match="rng: JAX makes no PRNG key of the kind 'mine'"):
        place([leaf])
    assert place([leaf], as_numpy=True)[0].tolist() == [0, 0]


def test_device_and_sharding_together_are_refused():
    device = jax.devices()[0]
    with pytest.raises(BadParams, match="device= and sharding="):
        place([], device=device, sharding=jax.sharding.SingleDeviceSharding(device))


def test_a_device_may_be_chosen():
    device = jax.devices()[0]
    assert load(save(jnp.ones(3)), device=device).devices() == {device}


SHARDED = """
    import sys
    sys.path.insert(0, "tests")
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from brainstore.errors import BadParams
    from brainstore.pytree import flatten
    from trees import assert_equal, bits, load, load_as, save

    assert len(jax.devices()) == 4
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    plain = {"w": jnp.arange(16.0).reshape(8, 2), "k": jax.random.split(jax.random.key(0), 4)}
    spread = jax.device_put(plain, rows)

    saved = save(spread)
    assert saved.packing.blobs[0].digest == save(plain).packing.blobs[0].digest

    gathered = load(saved)
    assert gathered["w"].devices() == {jax.devices()[0]}
    assert_equal(gathered, plain)

    for sharding in (rows, [rows, whole]):
        found = load(saved, sharding=sharding)
        assert found["w"].sharding == (rows if sharding is rows else whole)
        assert found["k"].sharding == rows
        assert_equal(found, plain)
    assert load(saved, device=jax.devices()[2])["w"].devices() == {jax.devices()[2]}

    as_spread = load_as(saved, spread)
    assert as_spread["w"].sharding == rows and as_spread["k"].sharding == rows
    half = jax.ShapeDtypeStruct((8, 2), jnp.bfloat16, sharding=rows)
    found = load_as(saved, {"w": half, "k": plain["k"]})
    assert found["w"].sharding == rows and found["w"].dtype == jnp.bfloat16
    assert found["k"].devices() == {jax.devices()[0]}
    assert load_as(saved, spread, sharding=whole)["w"].sharding == whole

    try:
        load(save(jnp.ones(3)), sharding=rows)
    except BadParams as error:
        assert "placed" in str(error)
    else:
        raise AssertionError("3 rows on 4 devices")
"""


def test_arrays_are_saved_from_and_loaded_onto_several_devices():
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(SHARDED)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
