"""The part of the demo that another machine plays: it knows the zoo's URL and nothing else."""

from __future__ import annotations

import logging
import os
import sys
import time

from brainstore import BrainManager, BrainMeta
from brainstore.address import Digest
from brainstore.cache import Cache
from brainstore.demo import ppo, swarm
from brainstore.demo.story import (
    AGENT_STEPS,
    MODEL,
    figures,
    headline,
    metrics_of,
    say,
    stored_bytes,
)
from brainstore.errors import BrainstoreError
from brainstore.records import Leaf

WIDER_RADIUS = 0.08
FINE_TUNING_UPDATES = 20
FINE_TUNING_RATE = 5e-4


def main(url: str) -> None:
    """Load, act, fine-tune, move `prod`, survive a corrupted cache, and roll back."""
    logging.basicConfig(level=logging.WARNING, format="   log: %(message)s")
    manager = BrainManager(url)
    headline("On another machine, with an empty cache: load the latest, and act")
    params = act(manager)
    headline(f"Fine-tune it for a wider safety radius, {WIDER_RADIUS}, and ship that")
    fine_tune(manager, params)
    headline("Flip one bit of the cached params of prod, and load them again")
    survive_corruption(manager)
    headline("Roll prod back")
    say(f"{MODEL}:prod is {manager.rollback(MODEL, 'prod')} again")
    account(manager)
    manager.close()


def act(manager: BrainManager) -> ppo.Params:
    """Load `latest` twice, cold and warm, and check that it plays as recorded."""
    for cache in ("cold", "warm"):
        requests, began = manager.zoo.store.requests.total(), time.perf_counter()
        params, meta = manager.load(f"{MODEL}:latest")
        spent_ms = 1000 * (time.perf_counter() - began)
        requests = manager.zoo.store.requests.total() - requests
        say(f"{meta.full_name}, cache {cache}: {requests} requests, {spent_ms:.0f} ms")
    seen = expect_recorded(params, meta, swarm.SAFETY_RADIUS)
    say(f"recorded return {meta.metrics['return']:.4f}, and here {seen.return_:.4f}")
    manager.alias(f"{MODEL}:{meta.version}", "prod")
    say(f"{MODEL}:prod is {meta.full_name}")
    return params


def fine_tune(manager: BrainManager, params: ppo.Params) -> None:
    """Train on, save the child with its parent, and move `prod` to it."""
    parent = manager.resolve(MODEL)
    rivals = {
        "greedy": swarm.evaluate(swarm.greedy_policy, safety_radius=WIDER_RADIUS),
        str(parent): swarm.evaluate(ppo.policy(params), safety_radius=WIDER_RADIUS),
    }
    state = ppo.train(
        ppo.start(seed=1, params=params),
        FINE_TUNING_UPDATES,
        safety_radius=WIDER_RADIUS,
        learning_rate=FINE_TUNING_RATE,
    )
    seen = swarm.evaluate(ppo.policy(state.params), safety_radius=WIDER_RADIUS)
    meta = BrainMeta(
        brain_type="ppo",
        input_dim=swarm.OBS_DIM,
        output_dim=swarm.ACTION_DIM,
        hidden_dim=ppo.HIDDEN_DIM,
        training_steps=FINE_TUNING_UPDATES * AGENT_STEPS,
        notes=f"safety radius {WIDER_RADIUS}",
        metrics=metrics_of(seen),
    )
    requests = manager.zoo.store.requests.total()
    saved = manager.save(MODEL, state.params, meta, parents={str(parent): "fine_tuned"})
    requests = manager.zoo.store.requests.total() - requests
    for name, rival in {**rivals, f"{MODEL}:{meta.version}": seen}.items():
        say(f"{name:>12}: {figures(rival)}")
    say(f"{saved} saved from {parent} in {requests} requests, intent and look-ups included")
    manager.alias(f"{MODEL}:{meta.version}", "prod", expected=parent.version)
    say(f"{MODEL}:prod moved from {parent.version} to {meta.version}")


def expect_recorded(params: ppo.Params, meta: BrainMeta, radius: float) -> swarm.Evaluation:
    """Return how the params play; they must play as their metadata says.

    Raises:
        BrainstoreError: they do not.
    """
    seen = swarm.evaluate(ppo.policy(params), safety_radius=radius)
    # Another machine may add in another order; the same one gives the same bits.
    if abs(seen.return_ - meta.metrics["return"]) > 0.01:
        raise BrainstoreError(
            f"{meta.full_name}: expected the return {meta.metrics['return']}, found {seen.return_}"
        )
    return seen


def survive_corruption(manager: BrainManager) -> None:
    """Load `prod`, damage it in the cache, and load it again: refused, fetched, as recorded.

    Raises:
        BrainstoreError: the damage was not noticed.
    """
    manager.load(MODEL, "prod")
    [blob] = {leaf.blob or leaf.digest for leaf in _params_leaves(manager)}
    flip_bit(manager.zoo.cache or Cache(), blob)
    before = manager.zoo.store.requests["GetObject"]
    params, meta = manager.load(MODEL, "prod")
    if manager.zoo.store.requests["GetObject"] - before < 2:
        raise BrainstoreError(f"{meta.full_name}: the damaged blob was not fetched again")
    expect_recorded(params, meta, WIDER_RADIUS)
    say(f"{meta.full_name} was fetched again, and acts as recorded")


def _params_leaves(manager: BrainManager) -> tuple[Leaf, ...]:
    return manager.manifest(MODEL, "prod").groups["params"].leaves


def flip_bit(cache: Cache, digest: Digest) -> None:
    """Flip one bit in the middle of a cached blob."""
    [victim] = [cached for cached in cache.ls() if cached.digest == digest]
    victim.path.chmod(0o644)
    with open(victim.path, "r+b") as stream:
        stream.seek(victim.size_bytes // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def account(manager: BrainManager) -> None:
    """Say what the zoo takes, and what this machine asked of it."""
    saved = sum(row["size_bytes"] for row in manager.table())
    stored = stored_bytes(manager)
    say(f"{saved:,} bytes saved in {len(manager.list_models())} versions, {stored:,} stored")
    requests = manager.zoo.store.requests
    kinds = ", ".join(f"{count} {kind}" for kind, count in requests.most_common())
    say(f"this machine sent {requests.total()} requests: {kinds}")


if __name__ == "__main__":
    main(sys.argv[1])
