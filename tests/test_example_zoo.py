"""The example zoo: what is refused, and, with --soak, the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from brainstore import AlreadyExists, BrainManager, DIALBrainManager, GateFailed
from brainstore.demo import zoo

MAX_BYTES = 5_000_000


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


@pytest.mark.soak
def test_the_whole_zoo_is_small_and_its_frozen_parts_are_what_they_were(
    manager: BrainManager,
) -> None:
    zoo.main(manager.zoo.url)
    folder = Path(manager.storage_dir)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    for name in ("swarm_fusion", "dial"):
        proofs = manager.prove(name)
        assert len(proofs) == 2
        assert all(proof.is_proved for proof in proofs)
    for name in manager.list_models():
        assert all(report.is_passed for report in manager.reports(name))
        if name != "dial_v1":
            assert manager.verify(name).holds
    pair = DIALBrainManager(manager).load_dial("dial")
    assert pair.meta.config["dial_check"] == "networks"
    assert pair.meta.metrics["success"] > 0.9


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
