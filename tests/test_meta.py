"""BrainMeta: what is coerced, what is refused, and that it comes back as it was."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstore import BadParams, BrainManager, BrainMeta
from brainstore.address import Digest, Name
from brainstore.meta import plain, unmarked
from brainstore.records import Group, Manifest


class Color(Enum):
    RED = "red"


class Kind(str, Enum):  # noqa: UP042  # not the same: its `str` is "Kind.PPO"
    PPO = "ppo"


@dataclass
class Config:
    lr: float
    layers: tuple[int, ...]


def manifest_of(meta: BrainMeta) -> Manifest:
    manifest = Manifest(
        name=Name("ppo"),
        version=3,
        write_id="w",
        created_at="",
        by="",
        meta=meta.record(),
        groups={"params": Group(structure=None, leaves=())},
        blobs={Digest.of(b""): 0},
    )
    return Manifest.decode(manifest.encode(), "here")


def test_the_owners_fields_come_first_in_his_order() -> None:
    meta = BrainMeta("ppo", 2, "ppo", 8, 4, 64, "2026-01-01T00:00:00Z", 1000, "ckpt", "good")
    assert [each.name for each in fields(meta)] == [
        "name", "version", "brain_type", "input_dim", "output_dim", "hidden_dim", "created_at",
        "training_steps", "source_checkpoint", "notes", "metrics", "config", "tags",
        "network_kwargs",
    ]  # fmt: skip
    assert (meta.full_name, meta.notes, meta.training_steps) == ("ppo_v2", "good", 1000)


def test_created_at_is_now_in_utc() -> None:
    made = datetime.fromisoformat(BrainMeta().created_at)
    assert abs((datetime.now(UTC) - made).total_seconds()) < 3600


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float32(1.5), 1.5),
        (np.array(3), 3),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (ml_dtypes.bfloat16(2), 2.0),
        (np.str_("x"), "x"),
        (Path("a/b"), "a/b"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (Color.RED, "red"),
        (Kind.PPO, "ppo"),
        (Config(0.1, (1, 2)), {"lr": 0.1, "layers": [1, 2]}),
        ({1: (2, 3), "x": {3}}, {"1": [2, 3], "x": [3]}),
        pytest.param({"b", "a"}, ["a", "b"], id="set"),
        (None, None),
        ("é\n\x00", "é\n\x00"),
        (2**70, 2**70),
    ],
    ids=repr,
)
def test_values_become_plain_ones(given: Any, expected: Any) -> None:
    found = plain(given, "meta.config")
    assert found == expected
    assert type(found) is type(expected)
    back = BrainMeta.of_manifest(manifest_of(BrainMeta(config={"x": given})))
    assert back.config == {"x": expected}


def test_a_jax_scalar_is_a_number() -> None:
    import jax.numpy as jnp

    assert BrainMeta(metrics={"loss": jnp.float32(0.5)}).metrics == {"loss": 0.5}
    assert BrainMeta(training_steps=jnp.int32(7)).training_steps == 7
    assert BrainMeta(hidden_dim=64.0).hidden_dim == 64


@pytest.mark.parametrize(
    "fields",
    [
        {"config": {"w": np.zeros(3)}},
        {"config": {"f": print}},
        {"config": {(1, 2): 3}},
        {"config": {"text": "\ud800"}},
        {"notes": "\ud800"},
        {"config": {"\ud800": 1}},
        {"metrics": {"loss": "low"}},
        {"metrics": [1]},
        {"tags": [1]},
        {"tags": "prod"},
        {"input_dim": 1.5},
        {"input_dim": True},
        {"input_dim": "8"},
        {"notes": 5},
        {"notes": None},
        {"version": -1},
        {"source_checkpoint": 5},
    ],
    ids=ascii,
)
def test_what_cannot_be_stored_is_refused_by_its_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"meta\.|version") as caught:
        BrainMeta(**fields)
    assert str(caught.value).startswith((f"meta.{next(iter(fields))}", "version"))


def test_a_field_set_to_nonsense_later_is_refused_by_the_save() -> None:
    meta = BrainMeta()
    meta.metrics["x"] = np.zeros(2)
    with pytest.raises(BadParams, match=r"meta\.metrics\['x'\]"):
        meta.record()


def test_an_unknown_field_of_a_dict_is_named() -> None:
    with pytest.raises(BadParams, match="learning_rate"):
        BrainMeta.of({"learning_rate": 1})
    with pytest.raises(BadParams, match="found int"):
        BrainMeta.of(5)
    assert BrainMeta.of({"notes": "x"}).notes == "x"
    assert BrainMeta.of(None).notes == ""
    meta = BrainMeta()
    assert BrainMeta.of(meta) is meta


numbers = st.floats(allow_nan=False) | st.integers(-(2**63), 2**64 - 1)
texts = st.text(max_size=10)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.builds(
        BrainMeta,
        notes=texts,
        training_steps=st.integers(0, 2**63),
        metrics=st.dictionaries(texts, numbers, max_size=4),
        config=st.dictionaries(texts, values, max_size=4),
        network_kwargs=st.dictionaries(texts, values, max_size=2),
        tags=st.lists(texts, max_size=3),
        source_checkpoint=st.none() | texts,
    )
)
def test_meta_comes_back_from_a_manifest_as_it_was(meta: BrainMeta) -> None:
    found = BrainMeta.of_manifest(manifest_of(meta))
    meta.name, meta.version = "ppo", 3
    assert found == meta


def test_nan_and_infinities_come_back_and_are_json_on_the_way() -> None:
    meta = BrainMeta(metrics={"a": math.nan, "b": math.inf, "c": -math.inf}, notes="nan")
    json.loads(manifest_of(meta).encode(), parse_constant=pytest.fail)
    found = BrainMeta.of_manifest(manifest_of(meta))
    assert math.isnan(found.metrics["a"])
    assert (found.metrics["b"], found.metrics["c"], found.notes) == (math.inf, -math.inf, "nan")
    assert unmarked({"$float": "nan", "x": 1}) == {"$float": "nan", "x": 1}


def test_what_is_nested_without_end_is_refused() -> None:
    config: dict[str, Any] = {"deep": {"er": [0]}}
    assert BrainMeta.of_manifest(manifest_of(BrainMeta(config=config))).config == config
    config["deep"]["er"][0] = config
    with pytest.raises(BadParams, match="contain itself"):
        BrainMeta(config=config)


def test_fields_of_a_later_version_are_passed_over() -> None:
    manifest = manifest_of(BrainMeta(notes="x"))
    manifest.meta["mood"] = "good"
    assert BrainMeta.of_manifest(manifest).notes == "x"


def test_the_record_leaves_name_and_version_to_the_manifest() -> None:
    assert not {"name", "version"} & set(BrainMeta("ppo", 3).record())


def test_zoo_version_and_meta_show_themselves_in_a_notebook(tmp_path: Path) -> None:
    zoo = BrainManager(tmp_path)
    zoo.save("x", {"w": np.ones(2, np.float32)}, notes="<b>first</b>", metrics={"return": 1.5})
    version, meta = zoo.resolve("x"), zoo.load("x", as_numpy=True)[1]
    for shown in (zoo._repr_html_(), meta._repr_html_()):
        assert "&lt;b&gt;first&lt;/b&gt;" in shown
        assert "return 1.5" in shown
    assert str(version.digest) in version._repr_html_()
