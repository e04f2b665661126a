"""Whatever a state dict and a map hold, it is converted or refused."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import brainstore.migrate
from brainstore.errors import BrainstoreError
from brainstore.migrate import convert
from brainstore.migrate.layers import RULES
from brainstore.migrate.recurrent import CELLS

ANY = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

prefixes = st.sampled_from(["", "0", "2", "net.0", "net.2", "rnn", "attn", "module", "_orig_mod.a"])
ends = st.sampled_from([
    "weight", "bias", "running_mean", "running_var", "num_batches_tracked", "weight_ih_l0",
    "weight_hh_l0", "bias_ih_l0", "bias_hh_l0_reverse", "weight_hr_l0", "weight_ih", "weight_hh",
    "in_proj_weight", "in_proj_bias", "out_proj.weight", "q_proj_weight", "k_proj_weight",
    "v_proj_weight", "bias_k", "weight_g", "weight_v", "weight_orig", "weight_u", "log_std", "",
    "parametrizations.weight.original0", "parametrizations.weight.original1", ".",
])  # fmt: skip
names = st.builds(lambda prefix, end: f"{prefix}.{end}" if prefix else end, prefixes, ends)
arrays = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16]), max_size=4).map(
    lambda shape: np.ones(shape, np.float32)
)
states = st.dictionaries(names, arrays, max_size=8)

options = {
    "flatten": st.sampled_from([[2, 2], [1, 2, 2], [3, 2, 2]]),
    "heads": st.integers(1, 4),
    "groups": st.integers(1, 2),
    "layer": st.integers(0, 1),
    "reverse": st.booleans(),
    "transpose_kernel": st.booleans(),
    "cell": st.sampled_from(CELLS),
}


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    rule = RULES[draw(st.sampled_from(list(RULES)))]
    chosen = [option for option in sorted(rule.options) if draw(st.booleans())]
    torch = draw(prefixes | names | st.lists(prefixes, min_size=1, max_size=2))
    flax = draw(st.sampled_from(["a", "a/b", "Dense_0", ""] if rule.name != "copy" else ["a", "b"]))
    line = {"torch": torch, "flax": flax, "rule": rule.name}
    return line | {option: draw(options[option]) for option in chosen}


maps = st.fixed_dictionaries(
    {},
    optional={
        "layers": st.lists(lines(), max_size=3),
        "drop": st.lists(prefixes, max_size=2),
        "flavour": st.sampled_from(["linen", "nnx"]),
        "root": st.sampled_from(["", "0", "net"]),
    },
)


@ANY
@given(states, st.none() | maps)
def test_any_state_is_converted_or_refused(state: Any, mapping: Any) -> None:
    with contextlib.suppress(BrainstoreError):
        found = convert(state, mapping)
        assert found.report.tensors_read == len(state)


@ANY
@given(states, states, st.none() | maps)
def test_any_target_is_met_or_refused(state: Any, leaves: Any, mapping: Any) -> None:
    renamed = {"weight": "kernel", "running_mean": "scale", "log_std": "embedding"}
    target: dict[str, Any] = {}
    for name, array in leaves.items():
        module, _, leaf = name.rpartition(".")
        target.setdefault(module or "top", {})[renamed.get(leaf, leaf)] = array
    with contextlib.suppress(BrainstoreError):
        found = convert(state, mapping, {"params": target}).variables
        assert set(found["params"]) == set(target)


def test_no_module_of_the_room_imports_torch_flax_or_pickle() -> None:
    for path in Path(brainstore.migrate.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                named = [node.module or ""]
            found = {name.partition(".")[0] for name in named} & {"torch", "flax", "pickle"}
            assert not found, f"{path.name} imports {found}"
