"""The verb migrate."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
from command_line import ok, parsed, refused, run
from dial_encoders import DialEncoder, FlaxEncoder
from torch_files import Asks, pickled, saved, write_archive

from brainstore import BrainManager


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a checkpoint, old.pt, and the zoo ./brains."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAINSTORE_ZOO", raising=False)
    torch.manual_seed(3)
    saved(tmp_path / "old.pt", {"model": DialEncoder().state_dict(), "epoch": 3})
    (tmp_path / "map.toml").write_text(
        'layers = [\n  { torch = "net.0", flax = "Dense_0", rule = "linear" },\n'
        '  { torch = "net.2", flax = "Dense_1", rule = "linear" },\n]\n'
    )
    return tmp_path


def test_the_verb_saves_and_says_what_became_what(here: Path) -> None:
    options = ["--name", "dial_encoder", "--brain-type", "dial_encoder", "--map", "map.toml"]
    printed = ok("migrate", "old.pt", *options, "--tag", "v2", "--alias", "prod", "--notes", "old")
    assert printed.splitlines() == [
        "TORCH                    RULE    FLAX     LEAVES",
        "net.0.weight net.0.bias  linear  Dense_0  kernel[8,64] bias[64]",
        "net.2.weight net.2.bias  linear  Dense_1  kernel[64,36] bias[36]",
        "left out: epoch",
        "4 tensors → 4 leaves, 2,916 parameters, by the map",
        "dial_encoder_v1",
    ]
    params, meta = BrainManager("brains").load("dial_encoder:prod")
    assert set(params["params"]) == {"Dense_0", "Dense_1"}
    assert (meta.brain_type, meta.tags, meta.notes) == ("dial_encoder", ["v2"], "old")
    assert (meta.input_dim, meta.hidden_dim, meta.output_dim) == (8, 64, 36)


def test_a_dry_run_of_the_verb_saves_nothing(here: Path) -> None:
    printed = ok("migrate", "old.pt", "--name", "dial_encoder", "--dry-run")
    assert "would be saved as the next version of dial_encoder; nothing was done" in printed
    assert "by names and shapes alone" in printed
    assert not (here / "brains").exists()


def test_the_verb_in_json(here: Path) -> None:
    found = parsed("migrate", "old.pt", "--name", "dial", "--output-dim", "35", "-n")
    assert (found["full_name"], found["version"], found["dry_run"]) == (None, None, True)
    assert found["dims"] == {"input_dim": 8, "hidden_dim": 64, "output_dim": 36}
    assert found["report"]["root"] == "model"
    found = parsed("migrate", "old.pt", "--name", "dial", "--output-dim", "35")
    assert (found["full_name"], found["version"]) == ("dial_v1", 1)
    assert BrainManager("brains").load("dial")[1].output_dim == 35


def test_the_verb_keeps_a_checkpoint_as_it_is_and_converts_the_version_later(here: Path) -> None:
    assert "by their own names, as is\nold_v1" in ok(
        "migrate", "old.pt", "--name", "old", "--as-is"
    )
    ok("migrate", "old:1", "--name", "dial", "--map", "map.toml")
    assert BrainManager("brains").manifest("dial").parents[0].name == "old"
    assert "no such file" in run("migrate", "gone.pt", "--name", "x", "--as-is").output


def test_the_verb_takes_the_shapes_of_a_version(here: Path) -> None:
    variables = FlaxEncoder().init(jax.random.key(0), jnp.zeros((1, 8)))
    BrainManager("brains").save("ours", variables)
    printed = ok("migrate", "old.pt", "--name", "dial", "--target", "ours")
    assert "by the target's shapes" in printed
    assert set(BrainManager("brains").load("dial")[0]["params"]) == {"Dense_0", "Dense_1"}


def test_the_verb_refuses_with_one_error_and_saves_nothing(here: Path) -> None:
    write_archive(here / "bad.pt", pickled(Asks("os", "system", "touch canary")))
    (here / "bad.toml").write_text("layer = []")
    (here / "text.pt").write_text("hello")
    torch.save({"w": torch.ones(1)}, here / "legacy.pt", _use_new_zipfile_serialization=False)
    assert "asks for os.system" in refused(2, "migrate", "bad.pt", "--name", "x")
    assert "Did you mean layers?" in refused(
        2, "migrate", "old.pt", "--name", "x", "--map", "bad.toml"
    )
    assert "no checkpoint" in refused(2, "migrate", "text.pt", "--name", "x")
    assert "save it again" in refused(1, "migrate", "legacy.pt", "--name", "x")
    assert "'../x'" in refused(2, "migrate", "old.pt", "--name", "../x")
    assert not (here / "canary").exists()
    assert not (here / "brains").exists()


def test_a_checkpoint_that_is_not_there_is_said_to_be_no_file_and_no_version(here: Path) -> None:
    printed = refused(3, "migrate", "lost.pt", "--name", "x")
    assert "lost.pt: there is no such file, nor such a version" in printed
    assert "there is no zoo here" in printed
