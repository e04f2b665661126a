"""DIAL pairs as versions of a zoo."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from brainstore.dial.config import NAMES, DIALConfig
from brainstore.dial.fitting import Verdict, judge
from brainstore.errors import BadParams
from brainstore.manager import BrainManager, require_manager
from brainstore.meta import BrainMeta

BRAIN_TYPE = "dial"
CHECK = "dial_check"
HALVES = ("encoder", "decoder")


@dataclass(frozen=True, eq=False, slots=True)
class DIALBrainPair:
    """Both halves of a pair, the widths they agree on, and what is known about it."""

    encoder_params: Any
    decoder_params: Any
    vocab_size: int
    payload_dim: int
    context_dim: int
    meta: BrainMeta = field(default_factory=BrainMeta)


class DIALBrainManager:
    """Saves and loads DIAL pairs in a zoo. Holds nothing of its own.

    A pair is a version like any other: params {"encoder": …, "decoder": …}, the three
    widths in `meta.config`. So aliases, parents, sync and all else work on it, and each
    half loads alone: `manager.load("comms:prod#encoder")`.
    """

    def __init__(self, manager: BrainManager) -> None:
        require_manager(manager)
        self.manager = manager

    def save_dial(
        self,
        name: str,
        encoder_params: Any,
        decoder_params: Any,
        config: object,
        meta: BrainMeta | Mapping[str, Any] | None = None,
        *,
        encoder: Any = None,
        decoder: Any = None,
        **options: Any,
    ) -> str:
        """Commit both halves as the next version of `name`; return its full name.

        One commit: no reader, anywhere, ever sees one half without the other. Nothing is
        written unless the halves fit the config and each other. That is judged by tracing
        the networks, where given, and by the widths of kernels otherwise; how it was
        judged is kept in `meta.config["dial_check"]`: "networks", "kernels" or "unchecked".

        Args:
            name: the name of the model.
            encoder_params, decoder_params: any pytrees.
            config: an object or a mapping with vocab_size, payload_dim and context_dim.
            meta: as for `BrainManager.save`; brain_type is "dial" unless it says otherwise.
            encoder: a network with `apply(params, obs)`, such as a linen module; an nnx
                module; or a function of params and obs. It gives messages, [...,
                vocab_size + payload_dim], or token logits and payload as a pair.
            decoder: the same of `(params, message, context)`, where rows of the context
                have context_dim values; or of both in one array; or of the message alone.
            options: of `BrainManager.save`, such as parents, aliases and groups.

        Raises:
            BadParams: the halves do not fit, with the widths found and expected; or the
                config lacks a width. And all that `BrainManager.save` raises.

        Warns:
            UserWarning: whether they fit cannot be told; they are saved all the same.
        """
        widths, given = DIALConfig.of(config), BrainMeta.of(meta)
        halves = dict(zip(HALVES, (encoder_params, decoder_params), strict=True))
        networks = dict(zip(HALVES, (encoder, decoder), strict=True))
        obs_dim = options.get("input_dim", given.input_dim)
        verdict = judge(halves, networks, widths, obs_dim=obs_dim)
        record = _record(given, widths, verdict)
        _warn_of_doubt(name, verdict)
        saved = self.manager.save(name, halves, record, **options)
        if isinstance(meta, BrainMeta):
            meta.name, meta.version = record.name, record.version
        return saved

    def load_dial(
        self, name: str, version: int | str | None = None, **options: Any
    ) -> DIALBrainPair:
        """Return the pair that `name` names: a name, or any reference to a version.

        Args:
            name: such as comms, comms:3, comms:prod, or s3://team/zoo::comms.
            version: a number, or an alias, if `name` has none.
            options: of `BrainManager.load`, such as device, dtype and as_numpy.

        Raises:
            BadParams: that version is no DIAL pair. And all that `BrainManager.load` raises.
        """
        params, meta = self.manager.load(name, version, **options)
        is_pair = isinstance(params, Mapping) and set(params) == set(HALVES)
        if not is_pair or not set(NAMES) <= set(meta.config):
            raise BadParams(
                f"{name}: {meta.full_name} is no DIAL pair: expected params with "
                f"{' and '.join(HALVES)}, and a config with {', '.join(NAMES)}; found "
                f"{_found(params)}, and a config with {_listed(meta.config)}. Load it with "
                "BrainManager.load; pairs are saved with save_dial"
            )
        widths = DIALConfig.of(meta.config)
        encoder_params, decoder_params = (params[half] for half in HALVES)
        return DIALBrainPair(encoder_params, decoder_params, **asdict(widths), meta=meta)


def _record(given: BrainMeta, widths: DIALConfig, verdict: Verdict) -> BrainMeta:
    """The metadata of a pair: as given, with its widths and how they were judged."""
    others = [
        f"{name}={given.config[name]!r} and {value}"
        for name, value in asdict(widths).items()
        if given.config.get(name, value) != value
    ]
    if others:
        raise BadParams(f"meta.config and config contradict each other: {'; '.join(others)}")
    config = {**given.config, **asdict(widths), CHECK: verdict.by}
    return replace(given, config=config, brain_type=given.brain_type or BRAIN_TYPE)


def _warn_of_doubt(name: str, verdict: Verdict) -> None:
    if verdict.doubt:
        warnings.warn(
            f"{name}: whether the halves fit is unchecked: {verdict.doubt}. Give save_dial "
            "encoder= and decoder= to have them checked",
            UserWarning,
            stacklevel=3,
        )


def _found(params: Any) -> str:
    if isinstance(params, Mapping):
        return f"params with {_listed(params)}"
    return f"a {type(params).__name__}"


def _listed(mapping: Mapping[Any, Any]) -> str:
    names = [str(key) for key in mapping]
    return ", ".join([*names[:5], *(["…"] if names[5:] else [])]) or "nothing"
