"""The steps of the demo that need no training; `scripts/demo` runs the whole."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from conftest import S3Place

from brainstore import BrainManager, BrainstoreError
from brainstore.cache import Cache
from brainstore.demo import elsewhere, ppo, swarm
from brainstore.demo.story import MODEL, metrics_of, stored_bytes


@pytest.fixture
def manager(s3_place: S3Place, tmp_path: Path) -> BrainManager:
    """A bucket with an untrained brain under `prod`, and an empty cache."""
    manager = BrainManager(
        s3_place.url, storage_options=s3_place.storage_options, cache=Cache(tmp_path)
    )
    params = ppo.start(seed=0).params
    seen = swarm.evaluate(ppo.policy(params), safety_radius=elsewhere.WIDER_RADIUS)
    manager.save(MODEL, params, metrics=metrics_of(seen), aliases=["prod"])
    return manager


@pytest.mark.s3
def test_a_flipped_bit_in_the_cache_is_refused_and_fetched_again(
    manager: BrainManager, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING, "brainstore"):
        elsewhere.survive_corruption(manager)
    assert "is damaged; dropped, and fetched again" in caplog.text
    assert "was fetched again, and acts as recorded" in capsys.readouterr().out
    assert stored_bytes(manager) > 4 * 92_421  # float32
    manager.close()


@pytest.mark.s3
def test_params_that_do_not_play_as_recorded_are_noticed(manager: BrainManager) -> None:
    params, meta = manager.load(MODEL)
    meta.metrics["return"] += 1
    with pytest.raises(BrainstoreError, match="expected the return"):
        elsewhere.expect_recorded(params, meta, elsewhere.WIDER_RADIUS)
    manager.close()
