"""The example zoo: what is refused, what lies in the repository, and, with --soak, its making."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from command_line import measureless, ok

from brainstore import AlreadyExists, BrainManager, DIALBrainManager, GateFailed
from brainstore.demo import ppo, signals, swarm, zoo
from brainstore.fsck import fsck
from brainstore.networks import (
    ActorCritic,
    DIALDecoder,
    DIALEncoder,
    GatedFusion,
    TransformerContext,
)

MAX_BYTES = 5_000_000
CLASSES = {
    "dial_decoder": DIALDecoder,
    "dial_encoder": DIALEncoder,
    "ppo_swarm": ActorCritic,
    "swarm_fusion": GatedFusion,
    "transformer_context": TransformerContext,
}
KEPT = Path(__file__).parent.parent / "brains"
PAGE = KEPT.parent / "docs" / "examples.md"


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    with BrainManager(tmp_path / "brains") as manager:
        yield manager


def test_a_zoo_that_has_versions_is_left_alone(manager: BrainManager) -> None:
    manager.save("other", {"w": jnp.ones(2)})
    with pytest.raises(AlreadyExists, match="expected an empty zoo, found other_v1"):
        zoo.main(manager.zoo.url)
    assert manager.list_models() == ["other_v1"]


@pytest.mark.parametrize(
    ("beats", "is_saved"),
    [
        (["error < rival_error"], True),
        (["error < rival_error", "return > rival_return"], False),
        (["error > rival_error"], False),
        (["error < error"], False),
        (["error > error"], False),
    ],
)
def test_only_a_brain_that_beats_all_it_has_to_is_saved(
    manager: BrainManager, beats: list[str], is_saved: bool
) -> None:
    metrics = {"error": 1.0, "rival_error": 2.0, "return": 1.0, "rival_return": 2.0}
    params = {"w": jnp.ones(2)}
    if is_saved:
        zoo._save(manager, "brain", params, metrics, beats, n=1, station="s1")
        assert manager.table()[0]["metrics"] == metrics
        assert [str(report) for report in manager.reports("brain")] == [
            "s1 passed: error 1 < 2",
        ]
    else:
        with pytest.raises(GateFailed, match="brain: "):
            zoo._save(manager, "brain", params, metrics, beats, n=1, station="s1")
        assert manager.list_models() == []


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[BrainManager]:
    """A copy of the zoo in the repository, since opening one may write to it."""
    shutil.copytree(KEPT, tmp_path / "kept" / "brains")
    with BrainManager(tmp_path / "kept" / "brains") as manager:
        yield manager


def test_the_zoo_in_the_repository_is_whole_and_small(kept: BrainManager) -> None:
    # Git keeps no modes.
    assert {finding.kind for finding in fsck(kept.zoo)} <= {"writable"}
    assert sum(path.stat().st_size for path in KEPT.rglob("*") if path.is_file()) < MAX_BYTES
    assert kept.list_models() == [
        "dial_v1",
        "dial_decoder_v1",
        "dial_encoder_v1",
        "dial_encoder_v2",
        "ppo_swarm_v1",
        "ppo_swarm_v2",
        "swarm_fusion_v1",
        "transformer_context_v1",
    ]


def test_the_zoo_in_the_repository_keeps_its_promises(kept: BrainManager) -> None:
    require_promises(kept)


def test_the_swarm_in_the_repository_flies_as_recorded(kept: BrainManager) -> None:
    params, meta = kept.load("ppo_swarm:1")
    seen = swarm.evaluate(ppo.policy(params))
    assert seen.return_ == pytest.approx(meta.metrics["return"], abs=0.01)
    assert meta.metrics["return"] > meta.metrics["greedy_return"] > meta.metrics["random_return"]


def test_the_pair_in_the_repository_is_understood_and_not_by_chance(kept: BrainManager) -> None:
    pair = DIALBrainManager(kept).load_dial("dial")
    params = {"encoder": pair.encoder_params, "decoder": pair.decoder_params}
    seen = signals.evaluate(params, count=2_048)
    assert seen.success == pytest.approx(pair.meta.metrics["success"], abs=0.02)
    assert seen.shuffled < 2 * signals.CHANCE


def test_the_page_shows_what_the_zoo_in_the_repository_says(
    kept: BrainManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(kept.storage_dir).parent)
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["console", "python"]
    for command, expected in re.findall(r"\$ brainstore (.*)\n((?:(?!\$ ).*\n)*)", blocks[0][1]):
        assert measureless(ok(*command.split())) == measureless(expected)
    exec(compile(blocks[1][1], "docs/examples.md", "exec"), {})


def require_promises(manager: BrainManager) -> None:
    """Reports are passed, golden outputs replayed, frozen experts proved."""
    for name in ("swarm_fusion", "dial"):
        proofs = manager.prove(name)
        assert len(proofs) == 2
        assert all(proof.is_proved for proof in proofs)
    for name in manager.list_models():
        assert all(report.is_passed for report in manager.reports(name))
        # By its class: the stored programs expire.
        assert manager.verify(name, CLASSES.get(name.rpartition("_v")[0])).holds, name
    pair = DIALBrainManager(manager).load_dial("dial")
    assert pair.meta.config["dial_check"] == "networks"
    assert pair.meta.metrics["success"] > 0.9


@pytest.mark.soak
def test_the_zoo_that_is_made_is_the_one_in_the_repository(
    manager: BrainManager, kept: BrainManager
) -> None:
    """Up to what another machine adds up in another order."""
    zoo.main(manager.zoo.url)
    require_promises(manager)
    for name in kept.list_models():
        made, known = manager.load(name)[1].metrics, kept.load(name)[1].metrics
        assert made == pytest.approx(known, abs=0.2), name


def test_the_checkpoint_that_it_begins_with_is_what_its_maker_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from checkpoints import make

    kept = torch.load(make.PATH, weights_only=True)
    monkeypatch.setattr(make, "PATH", tmp_path / "again.pt")
    make.main()
    made = torch.load(make.PATH, weights_only=True)
    assert kept["steps"] == made["steps"] == 0
    assert list(kept["model_state_dict"]) == list(made["model_state_dict"])
    for name, tensor in made["model_state_dict"].items():
        assert torch.equal(tensor, kept["model_state_dict"][name]), name
