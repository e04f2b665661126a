"""Whether the halves of a DIAL pair fit its config and each other.

A network that is given is traced (`jax.eval_shape`: nothing is computed). Without one, the
widths of kernels tell: where messages leave the encoder, and where they enter the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brainstore import pytree
from brainstore.architecture import is_nnx, of_state
from brainstore.dial.config import DIALConfig
from brainstore.errors import BadParams
from brainstore.pytree.walk import walk

NETWORKS, KERNELS, UNCHECKED = "networks", "kernels", "unchecked"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How halves that may be saved were judged: `by` networks, kernels, or not at all.

    `doubt` says why not; it is empty otherwise.
    """

    by: str
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one half shows: that it fits, or a problem, or why that cannot be told."""

    by: str
    problem: str = ""
    doubt: str = ""


def judge(
    halves: Mapping[str, Any], networks: Mapping[str, Any], widths: DIALConfig, *, obs_dim: int = 0
) -> Verdict:
    """Return how the halves, which fit or may fit, were judged.

    Args:
        halves: params of the "encoder" and of the "decoder".
        networks: those given, by the same names; None where there is none.
        widths: what both must agree with.
        obs_dim: width of an observation, or 0 where it is to be told by the encoder.

    Raises:
        BadParams: they do not fit; all that does not is named, with its numbers.
    """
    for name in halves:
        _require_half(name, halves[name], networks[name])
    encoder, decoder = halves["encoder"], halves["decoder"]
    findings = [
        _kernels_of_encoder(encoder, widths)
        if networks["encoder"] is None
        else _network_of_encoder(networks["encoder"], encoder, widths, obs_dim),
        _kernels_of_decoder(decoder, widths)
        if networks["decoder"] is None
        else _network_of_decoder(networks["decoder"], decoder, widths),
    ]
    if problems := [each.problem for each in findings if each.problem]:
        raise BadParams(f"the DIAL pair does not fit: {'; '.join(problems)}. Nothing was saved")
    doubt = "; ".join(each.doubt for each in findings if each.doubt)
    by = KERNELS if any(each.by == KERNELS for each in findings) else NETWORKS
    return Verdict(UNCHECKED, doubt) if doubt else Verdict(by)


def _require_half(name: str, params: Any, network: Any) -> None:
    if not walk(params, name)[1]:
        raise BadParams(f"{name}_params: expected a tree of arrays, found none in it")
    if isinstance(network, type):
        raise BadParams(
            f"{name}: expected a network, such as {network.__name__}(…), found the class "
            f"{network.__name__}"
        )


# By tracing


def _network_of_encoder(network: Any, params: Any, widths: DIALConfig, obs_dim: int) -> _Finding:
    obs_dim = getattr(network, "obs_dim", 0) or obs_dim or _single(_Kernels.of(params).first)
    if not obs_dim:
        return _Finding(NETWORKS, doubt="nothing tells what the encoder observes; set input_dim")
    try:
        outputs = _traced(network, params, (1, obs_dim))
    except Exception as error:  # noqa: BLE001  # whatever a network raises says that it does not fit
        return _Finding(NETWORKS, f"the encoder does not take obs [1, {obs_dim}]: {_short(error)}")
    found = [shape[-1] for shape in outputs if shape]
    expected = [widths.message_dim], [widths.vocab_size, widths.payload_dim]
    fits = found[:1] == expected[0] or found[:2] == expected[1]
    return _Finding(NETWORKS, "" if fits else _wrong_encoder(found, widths))


def _network_of_decoder(network: Any, params: Any, widths: DIALConfig) -> _Finding:
    refusals: list[tuple[bool, str]] = []
    for shapes in _ways_in(widths):
        try:
            outputs = _traced(network, params, *shapes)
        except Exception as error:  # noqa: BLE001  # see above
            given = " and ".join(str(list(each)) for each in shapes)
            refusals.append((isinstance(error, TypeError), f"{given}: {_short(error)}"))
            continue
        takes_context = sum(shape[-1] for shape in shapes) > widths.message_dim
        gives_context = any(shape[-1:] == (widths.context_dim,) for shape in outputs)
        return _Finding(NETWORKS, doubt=_unseen_context(takes_context or gives_context, widths))
    # Most type errors only say that this many arrays are not the way to call it.
    tried = "; nor ".join(text for _, text in sorted(refusals, key=lambda each: each[0])[:2])
    return _Finding(NETWORKS, f"the decoder takes no message of {widths}: not {tried}")


def _ways_in(widths: DIALConfig) -> Iterator[Sequence[tuple[int, ...]]]:
    """The shapes that a decoder may be called with: what it is given, in the usual orders."""
    context, whole = widths.context_dim, [(1, widths.message_dim)]
    apart = [(1, widths.vocab_size), (1, widths.payload_dim)]
    messages = [whole, apart] if widths.vocab_size and widths.payload_dim else [whole]
    if context:
        for message in messages:
            yield [*message, (1, context)]
            yield [*message, (1, 1, context)]
        yield [(1, widths.message_dim + context)]
    yield from messages


def _traced(network: Any, params: Any, *shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of what the network gives for float32 inputs of these shapes."""
    import jax
    import jax.numpy as jnp

    typed: Callable[..., Any] = jax.ShapeDtypeStruct
    inputs = [typed(shape, jnp.float32) for shape in shapes]
    if is_nnx(network):
        outputs = jax.eval_shape(of_state(network), _as_loaded(params), *inputs)
    elif not hasattr(network, "apply"):
        outputs = jax.eval_shape(network, params, *inputs)
    else:
        is_bare = isinstance(params, Mapping) and "params" not in params
        outputs = jax.eval_shape(network.apply, {"params": params} if is_bare else params, *inputs)
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(outputs)]


def _as_loaded(params: Any) -> Any:
    structure, leaves = walk(params, "")
    return pytree.unflatten(structure, [leaf for _, leaf in leaves])


def _single(widths: set[int]) -> int:
    return next(iter(widths)) if len(widths) == 1 else 0


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


# By kernels


def _kernels_of_encoder(params: Any, widths: DIALConfig) -> _Finding:
    kernels = _Kernels.of(params)
    if not kernels.last:
        return _Finding(KERNELS, doubt="no kernel is plainly the last of the encoder")
    heads = {widths.vocab_size, widths.payload_dim} <= kernels.given and widths.payload_dim > 0
    fits = widths.message_dim in kernels.last or (heads and widths.vocab_size in kernels.last)
    return _Finding(KERNELS, "" if fits else _wrong_encoder(sorted(kernels.last), widths))


def _kernels_of_decoder(params: Any, widths: DIALConfig) -> _Finding:
    kernels, message, context = _Kernels.of(params), widths.message_dim, widths.context_dim
    if kernels.has_tables or not kernels.taken:
        return _Finding(KERNELS, doubt="no kernel is plainly the first of the decoder")
    if message + context in kernels.first:
        return _Finding(KERNELS)
    if message in kernels.taken or {widths.vocab_size, widths.payload_dim} <= kernels.taken:
        is_seen = context in kernels.taken | kernels.last
        return _Finding(KERNELS, doubt=_unseen_context(is_seen, widths))
    takes = " and ".join(map(str, sorted(kernels.first or kernels.taken)))
    return _Finding(
        KERNELS,
        f"the decoder takes {takes} values, by its first kernels, and expects no message of "
        f"{widths}, nor one with a context of {context}, {message + context} in all",
    )


def _wrong_encoder(found: Sequence[int], widths: DIALConfig) -> str:
    gives = " and ".join(map(str, found)) or "no"
    return f"the encoder gives {gives} values, and a message has {widths}"


def _unseen_context(is_seen: bool, widths: DIALConfig) -> str:
    if is_seen or not widths.context_dim:
        return ""
    return f"the decoder shows no context of context_dim {widths.context_dim}"


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A matrix of a network, by its layer's path, and how many values it takes and gives."""

    layer: str
    takes: int
    gives: int


@dataclass(frozen=True, slots=True)
class _Kernels:
    """The kernels of one network; `has_tables` where it has embeddings as well."""

    all: Sequence[_Kernel]
    has_tables: bool

    @classmethod
    def of(cls, params: Any) -> _Kernels:
        leaves = [(*_split(path), getattr(leaf, "shape", ())) for path, leaf in walk(params, "")[1]]
        matrices = [(layer, name, shape) for layer, name, shape in leaves if len(shape) >= 2]
        return cls(
            [
                _Kernel(layer, *(shape[:-3:-1] if name in _TRANSPOSED else shape[-2:]))
                for layer, name, shape in matrices
                if name in _PLAIN | _TRANSPOSED
            ],
            any(name == "embedding" for _, name, _ in matrices),
        )

    @property
    def taken(self) -> set[int]:
        return {each.takes for each in self.all}

    @property
    def given(self) -> set[int]:
        return {each.gives for each in self.all}

    @property
    def first(self) -> set[int]:
        """Widths that come from outside: no other kernel gives them. Empty if in doubt."""
        ends = {
            each.takes
            for each in self.all
            if not any(other.gives == each.takes for other in self.all if other is not each)
        }
        return ends or ({self._in_order[0].takes} if self._in_order else _alone(self.taken))

    @property
    def last(self) -> set[int]:
        """Widths that go outside: no other kernel takes them. Empty if in doubt."""
        ends = {
            each.gives
            for each in self.all
            if not any(other.takes == each.gives for other in self.all if other is not each)
        }
        return ends or ({self._in_order[-1].gives} if self._in_order else _alone(self.given))

    @property
    def _in_order(self) -> list[_Kernel]:
        """All of them, where their layers differ in a number only: Dense_0, Dense_1."""
        if len({_NUMBER.sub("", each.layer) for each in self.all}) != 1:
            return []
        return sorted(self.all, key=lambda each: [int(n) for n in _NUMBER.findall(each.layer)])


_NUMBER = re.compile(r"\d+")
_PLAIN = frozenset(["kernel", "w"])
# As in equinox and PyTorch: [out, in].
_TRANSPOSED = frozenset(["weight"])


def _split(path: str) -> tuple[str, str]:
    layer, _, name = path.rpartition("/")
    return layer, name


def _alone(widths: set[int]) -> set[int]:
    return widths if len(widths) == 1 else set()
