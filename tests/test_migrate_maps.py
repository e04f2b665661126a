"""Maps: what they may say, and everything that can be wrong with one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from brainstore.errors import BadParams
from brainstore.migrate import convert, convert_torch_to_flax

LINEAR = {"torch": "0", "flax": "Dense_0", "rule": "linear"}


def mlp(*widths: int) -> torch.nn.Sequential:
    """Return linear layers of these widths, a ReLU between them."""
    layers: list[torch.nn.Module] = []
    for one, other in pairwise(widths):
        layers += [torch.nn.Linear(one, other), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def refused(state: Any, mapping: Any = None, target: Any = None) -> str:
    with pytest.raises(BadParams) as caught:
        convert_torch_to_flax(state, mapping, target)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_map_of_toml_says_all_of_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "map.toml",
        """
        root = "agent.policy"
        drop = ["decoder", "step"]
        layers = [
          { torch = "0", flax = "encoder/first", rule = "linear" },
          { torch = "2", flax = "encoder/second", rule = "linear" },
        ]
        """,
    )
    policy = {**mlp(8, 16, 4).state_dict(), "step": torch.tensor(5)}
    policy |= {f"decoder.{name}": each for name, each in mlp(4, 8).state_dict().items()}
    checkpoint = {"agent": {"policy": policy, "critic": mlp(8, 1).state_dict()}, "epoch": 3}
    for mapping in (path, str(path)):
        found = convert(checkpoint, mapping)
        assert set(found.params["params"]["encoder"]) == {"first", "second"}
    assert found.report.root == "agent.policy"
    assert found.report.dropped == ["decoder.0.weight", "decoder.0.bias", "step"]
    assert found.report.how == "map"


BAD_MAPS = [
    ("layer = []", "unknown key 'layer'.*Did you mean layers"),
    ("layers = 3", "layers is 3, expected a list"),
    ("layers = [3]", r"layers\[0\] is 3, expected a table"),
    ("layers = [{}]", r"layers\[0\]: rule is None, expected one of linear"),
    ('layers = [{ rule = "liner" }]', "Did you mean linear"),
    ('layers = [{ rule = "linear" }]', "needs torch and flax"),
    ('layers = [{ rule = "linear", torch = "0" }]', "needs torch and flax"),
    ('layers = [{ rule = "linear", torch = 0, flax = "a" }]', "torch: expected a prefix"),
    ('layers = [{ rule = "linear", torch = "0", flax = 1 }]', "flax is 1, expected a path"),
    ('layers = [{ rule = "linear", torch = "0", flax = "a//b" }]', "expected a path"),
    ('layers = [{ rule = "linear", torch = "0", flax = "a", head = 2 }]', "unknown key 'head'"),
    ('layers = [{ rule = "linear", torch = "0", flax = "a", heads = 2 }]', "unknown key 'heads'"),
    ('layers = [{ rule = "linear", torch = "0", flax = "a", flatten = 9 }]', "flatten is 9"),
    ('layers = [{ rule = "linear", torch = "0", flax = "a", flatten = [0, 1] }]', "flatten is"),
    ('layers = [{ rule = "attention", torch = "0", flax = "a", heads = true }]', "heads is True"),
    ('layers = [{ rule = "lstm", torch = "0", flax = "a", layer = -1 }]', "layer is -1"),
    ('layers = [{ rule = "lstm", torch = "0", flax = "a", reverse = 1 }]', "reverse is 1"),
    ('layers = [{ rule = "lstm", torch = "0", flax = "a", cell = "LSTM" }]', "linen.LSTMCell"),
    ("root = 3", "root is 3"),
    ("drop = 3", "drop: expected a prefix"),
    ('flavour = "haiku"', "expected linen or nnx"),
    ("root = ", "cannot be read as a map"),
    ("\x00", "cannot be read as a map"),
]


@pytest.mark.parametrize(("text", "problem"), BAD_MAPS)
def test_a_map_that_is_not_one_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path / "map.toml", text)
    with pytest.raises(BadParams, match=rf"(?s)map\.toml.*{problem}"):
        convert_torch_to_flax(mlp(2, 2).state_dict(), path)


def test_a_map_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'root = "\xe9"')
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    for name in ("latin.toml", "large.toml", "missing.toml", ""):
        with pytest.raises(BadParams, match=str(tmp_path / name)):
            convert_torch_to_flax(mlp(2, 2).state_dict(), tmp_path / name)
    with pytest.raises(BadParams, match="expected a TOML file or a dict"):
        convert_torch_to_flax(mlp(2, 2).state_dict(), 5)  # type: ignore[arg-type]


def test_all_problems_of_a_map_are_listed_at_once() -> None:
    state = {**mlp(4, 3, 3, 2).state_dict(), "log_std": torch.zeros(2)}
    lines = [
        LINEAR,
        {"torch": "2", "flax": "conv", "rule": "conv"},
        {"torch": "9", "flax": "gone", "rule": "linear"},
        {"torch": "0", "flax": "again", "rule": "linear"},
    ]
    problem = refused(state, {"layers": lines, "drop": ["decoder"]})
    assert "drop: there is no tensor 'decoder'" in problem
    assert "2.weight has the shape [3, 3]; rule conv expects 3 or 4 or 5 dimensions" in problem
    assert "9.weight is missing, which rule linear needs; under '9' there is nothing" in problem
    assert "0.weight, 0.bias is mapped twice" in problem
    assert "unmapped: 4.weight, 4.bias, log_std. Map them, or drop them" in problem


def test_what_a_rule_has_no_use_for_is_refused() -> None:
    state = torch.nn.BatchNorm1d(4).state_dict()
    lines = [{"torch": "", "flax": "norm", "rule": "layer_norm"}]
    problem = refused(state, {"layers": lines})
    assert (
        "rule layer_norm has no use for num_batches_tracked, running_mean, running_var" in problem
    )


def test_paths_of_a_map_are_those_below_the_collection() -> None:
    lines = [{**LINEAR, "flax": "params/Dense_0"}]
    assert "below params; leave that out" in refused(mlp(4, 4).state_dict(), {"layers": lines})


def test_two_lines_cannot_make_the_same_leaf() -> None:
    state = mlp(4, 4, 4).state_dict()
    for path in ("a", "a/kernel"):
        lines = [{**LINEAR, "flax": "a"}, {"torch": "2", "flax": path, "rule": "linear"}]
        assert "is made twice" in refused(state, {"layers": lines})
