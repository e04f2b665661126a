"""A network's class and the metadata of a version -> the network as a function of its params.

Flax is never imported here: who names a class of it has done so.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from brainstore import dtypes
from brainstore.errors import BadParams
from brainstore.groups import PARAMS
from brainstore.meta import BrainMeta
from brainstore.pytree.structure import shown
from brainstore.pytree.walk import walk
from brainstore.records import Leaf, Manifest

Params = Any
Apply = Callable[..., Any]
"""`apply(params, …)` gives the network's outputs; params are in the form that `load` gives."""

_DIMS = {"obs_dim": "input_dim", "action_dim": "output_dim", "hidden_dim": "hidden_dim"}


@dataclass(frozen=True)
class Network:
    """A network without params: a pure function, for jit, vmap, grad and scan."""

    apply: Apply
    obs_shape: tuple[int, ...]


def called(function: Apply, params: Params, inputs: Any) -> Any:
    """Return `function(params, …)`: a tuple of inputs goes by position, a dict by keyword."""
    if isinstance(inputs, tuple):
        return function(params, *inputs)
    return function(params, **inputs) if isinstance(inputs, dict) else function(params, inputs)


def traced(function: Apply, *arguments: Any, where: str) -> Any:
    """Return the shapes that a network's function gives; nothing is computed.

    Raises:
        BadParams: the network does not take the last argument.
    """
    import jax

    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        taken = ", ".join(_typed(spec) for _, spec in walk(arguments[-1], "inputs")[1])
        raise BadParams(
            f"{where}: the network does not take {taken} ({type(error).__name__}: {error}). "
            "A class is played on rows of obs_dim numbers; any other network with the program "
            "that apply_fn= and example_obs= save"
        ) from error


def rebuilt(
    network_class: Callable[..., Any],
    manifest: Manifest,
    owner: str,
    given: Mapping[str, Any],
    *,
    inputs: Any = None,
) -> Network:
    """Return the network that a version's params belong to.

    Its class is given the dims of the metadata under the names obs_dim, action_dim and
    hidden_dim, as far as it takes them; over these, the `network_kwargs` saved with the
    version; over these, `given`. Nothing is computed: only shapes are.

    Args:
        network_class: makes a linen Module, or, given `rngs` too, an nnx Module, which is
            put into its evaluation mode.
        manifest: of the version.
        owner: names the version in errors.
        inputs: what the network takes, see `called`; else one row of obs_dim floats.

    Raises:
        BadParams: the class cannot be built so, is of another brain type, or its params
            have other paths, shapes or dtypes than the saved ones; all are listed.
    """
    meta = BrainMeta.of_manifest(manifest)
    _require_class(network_class, meta, owner)
    if meta.brain_type:
        owner = f"{owner} (a brain of type {meta.brain_type!r})"
    arguments = _arguments(network_class, meta, given)
    takes_rngs = _takes(network_class, "rngs", among_any=False)
    module = _built(network_class, arguments, owner, takes_rngs=takes_rngs)
    obs_dim = arguments.get("obs_dim", meta.input_dim)
    if inputs is None:
        inputs = _row(obs_dim, owner)
    make = _nnx_apply if is_nnx(module) else _linen_apply
    where = f"{owner} and {label(network_class)}"
    return Network(make(module, manifest.groups[PARAMS].leaves, inputs, where), (obs_dim,))


def _require_class(network_class: object, meta: BrainMeta, owner: str) -> None:
    if not callable(network_class) or _is_module(network_class):
        raise BadParams(
            f"network_class: expected a class, such as ActorCritic, or a function that makes the "
            f"network, found {type(network_class).__name__}; its params come from {owner}"
        )
    expected = getattr(network_class, "brain_type", None)
    if isinstance(expected, str) and meta.brain_type not in ("", expected):
        raise BadParams(
            f"{owner} is a brain of type {meta.brain_type!r}, and {label(network_class)} is for "
            f"type {expected!r}; choose another version or another class"
        )


def _is_module(value: object) -> bool:
    linen = sys.modules.get("flax.linen")
    return is_nnx(value) or (linen is not None and isinstance(value, linen.Module))


def is_nnx(value: object) -> bool:
    """Whether it is an nnx Module."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def label(network_class: object) -> str:
    """Return the name of a class or function, for people."""
    return str(getattr(network_class, "__qualname__", None) or network_class)


def _arguments(
    network_class: Callable[..., Any], meta: BrainMeta, given: Mapping[str, Any]
) -> dict[str, Any]:
    dims = {name: getattr(meta, field) for name, field in _DIMS.items()}
    known = {name: dim for name, dim in dims.items() if dim and _takes(network_class, name)}
    return {**known, **meta.network_kwargs, **given}


def _takes(function: Callable[..., Any], name: str, *, among_any: bool = True) -> bool:
    """Whether it has an argument of this name; `among_any`: or takes any name at all."""
    while isinstance(function, functools.partial):
        function = function.func
    # The class of nnx classes hides the arguments of their `__init__`.
    made_by = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        parameters = inspect.signature(made_by).parameters.values()
    except (TypeError, ValueError):
        return among_any
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    return any(each.name == name for each in parameters) or (takes_any and among_any)


def _built(
    network_class: Callable[..., Any],
    arguments: Mapping[str, Any],
    owner: str,
    *,
    takes_rngs: bool,
) -> Any:
    try:
        module = _abstract(network_class, arguments) if takes_rngs else network_class(**arguments)
    except TypeError as error:
        texts = ", ".join(f"{key}={value!r:.40}" for key, value in arguments.items())
        raise BadParams(
            f"{label(network_class)}({texts}) cannot be built for {owner}: {error}. The arguments "
            "come from its input_dim, output_dim, hidden_dim and network_kwargs; give what is "
            "missing as keyword arguments, or save it with the version"
        ) from error
    if not _is_module(module):
        raise BadParams(
            f"network_class: {label(network_class)} made a {type(module).__name__}; expected a "
            "Module of flax.linen or flax.nnx"
        )
    return module


def _abstract(network_class: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    from flax import nnx

    return nnx.eval_shape(lambda: network_class(**arguments, rngs=nnx.Rngs(0)))


def _row(obs_dim: Any, owner: str) -> Any:
    import jax

    if not hasattr(obs_dim, "__index__") or obs_dim < 1:
        raise BadParams(
            f"{owner} does not say how long an observation is: its input_dim is {obs_dim!r}. Give "
            "obs_dim=, or save the version with input_dim="
        )
    return jax.ShapeDtypeStruct((1, int(obs_dim)), "float32")  # type: ignore[no-untyped-call]


def _linen_apply(module: Any, leaves: Sequence[Leaf], inputs: Any, where: str) -> Apply:
    """Return `module.apply`, for params that were saved as {"params": …}, or bare."""
    import jax

    wanted = traced(lambda x: called(module.init, jax.random.key(0), x), inputs, where=where)
    if PARAMS in _top_keys(leaves):
        _require_fit(walk(wanted, PARAMS)[1], leaves, where)
        return module.apply  # type: ignore[no-any-return]
    others = sorted(set(wanted) - {PARAMS})
    if others:
        raise BadParams(
            f"{where}: the network also has {', '.join(others)}, and the version has bare params; "
            f"save all that `init` returns: {{'params': …, {others[0]!r}: …}}"
        )
    _require_fit(walk(wanted.get(PARAMS, {}), PARAMS)[1], leaves, where)
    return lambda params, *args, **kwargs: module.apply({PARAMS: params}, *args, **kwargs)


def _top_keys(leaves: Sequence[Leaf]) -> set[str]:
    return {leaf.path.partition("/")[0] for leaf in leaves}


def _nnx_apply(module: Any, leaves: Sequence[Leaf], inputs: Any, where: str) -> Apply:
    """Return the call of a module of this graph, in evaluation mode, whose state is params."""
    from flax import nnx

    module.eval()
    state = nnx.state(module)
    is_wrapped = _top_keys(leaves) == {PARAMS} and PARAMS not in state
    if is_wrapped:
        leaves = [msgspec.structs.replace(x, path=x.path.partition("/")[2]) for x in leaves]
    saved = {leaf.path for leaf in leaves}
    random = {path for path, _ in walk(nnx.state(module, nnx.RngState), PARAMS)[1]}
    wanted = [
        (path, x) for path, x in walk(state, PARAMS)[1] if path in saved or path not in random
    ]
    _require_fit(wanted, leaves, where)
    apply = of_state(module)
    if is_wrapped:
        return lambda params, *args, **kwargs: apply(params[PARAMS], *args, **kwargs)
    return apply


def of_state(module: Any) -> Apply:
    """Return the call of an nnx module as a function of its state as nested dicts.

    The state may lack random streams: they are fixed then, for calls that draw from none.
    """
    import jax
    from flax import nnx

    graphdef, random, _ = nnx.split(module, nnx.RngState, ...)  # type: ignore[misc]  # its own
    streams = jax.tree.map(_fixed, nnx.to_pure_dict(random))

    def apply(params: Params, *args: Any, **kwargs: Any) -> Any:
        return nnx.merge(graphdef, _completed(params, streams))(*args, **kwargs)

    return apply


def _fixed(stream: Any) -> Any:
    from jax import dtypes, numpy, random

    is_key = numpy.issubdtype(stream.dtype, dtypes.prng_key)
    return numpy.full(stream.shape, random.key(0) if is_key else 0, stream.dtype)


def _completed(params: Any, streams: Any) -> Any:
    """Return params with the random streams that they lack."""
    if not isinstance(streams, Mapping):
        return streams if params is None else params
    known = {} if params is None else params
    lacking = {key: _completed(known.get(key), child) for key, child in streams.items()}
    return {**known, **lacking}


def _require_fit(wanted: Sequence[tuple[str, Any]], leaves: Sequence[Leaf], where: str) -> None:
    problems = list(_misfits(dict(wanted), {leaf.path: leaf for leaf in leaves}))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise BadParams(
            f"{where} do not fit, at {len(problems)} of the params:\n{lines}\n"
            "Choose the class and the arguments that the version was trained with"
        )


def _misfits(wanted: Mapping[str, Any], saved: Mapping[str, Leaf]) -> Iterator[str]:
    for path, spec in wanted.items():
        found = saved.get(path)
        if found is None:
            yield f"{shown(path)}: the network expects {_typed(spec)}, found nothing saved"
        elif tuple(found.shape) != tuple(spec.shape) or not _is_alike(found.dtype, spec.dtype):
            yield f"{shown(path)}: the network expects {_typed(spec)}, found {_typed(found)}"
    for path, leaf in saved.items():
        if path not in wanted:
            yield f"{shown(path)}: the network expects nothing, found {_typed(leaf)}"


def _is_alike(saved: str, wanted: Any) -> bool:
    """True for two floating dtypes: params keep the one that they were saved in."""
    name = str(wanted)
    if name.startswith("key<"):
        return saved.startswith("key<")
    return saved == name or (dtypes.is_floating(saved) and dtypes.is_floating(name))


def _typed(spec: Any) -> str:
    return f"{spec.dtype}{list(spec.shape)}"
