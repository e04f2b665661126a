"""A function of params and inputs -> the files of a program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from brainstore import pytree
from brainstore.architecture import Apply, called
from brainstore.errors import BadParams
from brainstore.programs.form import (
    DESCRIPTION,
    PLATFORMS,
    PROGRAM,
    Description,
    Signature,
    abstract,
    expiry,
    first_line,
    jaxlib_version,
    require_flatbuffers,
    signature,
)
from brainstore.pytree.walk import walk
from brainstore.records import now

_KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
_BATCH = "b"
_exporting = threading.Lock()  # the setting below is one for all threads


def export(
    apply_fn: Apply,
    structure: Any,
    specs: Mapping[str, Any],
    inputs: Any,
    platforms: Sequence[str] = PLATFORMS,
) -> dict[str, bytes]:
    """Return the files of a version that can run without the code of `apply_fn`.

    Args:
        apply_fn: `apply_fn(params, …)`; called with tracers only, see `architecture.called`.
        structure: of the params, as recorded.
        specs: shape and dtype of each of their leaves, by path, in the manifest's order.
        inputs: arrays led by a batch dimension, whose size does not matter.
        platforms: where it is to run: some of cpu, cuda, rocm, tpu.

    Raises:
        BadParams: JAX cannot export the function for these platforms and any batch.
        Unsupported: the package flatbuffers, which JAX needs for it, is not installed.
    """
    _require_platforms(platforms)
    require_flatbuffers()

    def program(leaves: list[Any], given: Any) -> Any:
        outputs = called(apply_fn, pytree.unflatten(structure, leaves), given)
        # Classes of the caller's would need their code again.
        plain, values = walk(outputs, "outputs")
        return pytree.unflatten(plain, [value for _, value in values])

    exported, body = _exported(program, list(specs.values()), inputs, tuple(platforms))
    description = _describe(exported, specs)
    _require_rows(description.outputs)
    return {PROGRAM: body, DESCRIPTION: description.encode_readable()}


def _exported(
    program: Callable[..., Any], specs: list[Any], inputs: Any, platforms: tuple[str, ...]
) -> tuple[Any, bytes]:
    import jax

    batch = jax.export.symbolic_shape(_BATCH)[0]
    rows = jax.tree.map(lambda x: abstract(x, (batch, *x.shape[1:]) if x.shape else ()), inputs)
    try:
        with _no_source_places():
            exported = jax.export.export(jax.jit(program), platforms=platforms)(specs, rows)
            return exported, bytes(exported.serialize())
    except Exception as error:
        raise BadParams(
            f"apply_fn cannot be exported for {', '.join(platforms)} and any number of rows: "
            f"{type(error).__name__}: {first_line(error)}. It must be a pure function of JAX "
            "operations, whose outputs are arrays, without branches on values, callbacks, or "
            "fixed numbers of rows; nothing was saved"
        ) from error


@contextmanager
def _no_source_places() -> Iterator[None]:
    """Inside, programs do not tell which lines of which files they come from.

    So the same network gives the same program, from wherever it is saved, and no path of
    the saver's machine travels with it.
    """
    import jax

    config: Any = jax.config
    with _exporting:
        before = config.jax_traceback_in_locations_limit
        config.update("jax_traceback_in_locations_limit", 0)
        try:
            yield
        finally:
            config.update("jax_traceback_in_locations_limit", before)


def _require_rows(outputs: Sequence[Signature]) -> None:
    """Raise BadParams unless the batch leads outputs, or is not in them."""
    for output in outputs:
        symbols = [size for size in output.shape if isinstance(size, str)]
        if symbols and (symbols != [_BATCH] or output.shape[0] != _BATCH):
            raise BadParams(
                f"apply_fn: output {output} depends on the number of rows {_BATCH} in another way "
                "than having as many; return one result for each row"
            )


def _require_platforms(platforms: Sequence[str]) -> None:
    unknown = sorted(set(platforms) - set(_KNOWN_PLATFORMS))
    if isinstance(platforms, str) or not platforms or unknown:
        raise BadParams(
            f"platforms: expected some of {', '.join(_KNOWN_PLATFORMS)}, found {platforms!r:.80}"
        )


def _describe(exported: Any, specs: Mapping[str, Any]) -> Description:
    import jax

    created_at = now()
    (leaves, inputs), _ = exported.in_tree.unflatten(exported.in_avals)
    outputs = exported.out_tree.unflatten(exported.out_avals)
    return Description(
        jax=jax.__version__,
        jaxlib=jaxlib_version(),
        calling_convention_version=exported.calling_convention_version,
        platforms=exported.platforms,
        nr_devices=exported.nr_devices,
        created_at=created_at,
        expires_at=expiry(created_at),
        params=tuple(signature(path, leaf) for path, leaf in zip(specs, leaves, strict=True)),
        inputs=tuple(signature(path, leaf) for path, leaf in walk(inputs, "inputs")[1]),
        outputs=tuple(signature(path, leaf) for path, leaf in walk(outputs, "outputs")[1]),
    )
