"""The example zoo: small brains of four tasks, each trained from a seed.

Every version holds the figures of its evaluation beside those of what it has to beat, a
report that says that it does, what it must do for a few inputs, and a program that runs
without its code. A brain that does not beat what it has to is not saved. What is made, by
station of the factory:

    s1  ppo_swarm:1              a policy for the swarm
    s2  ppo_swarm:2              the same, fine-tuned for a wider safety radius
    s3  dial_encoder:1           a speaker, untrained, migrated from PyTorch
        dial_encoder:2, dial_decoder:1, and dial:1: it and a listener, trained, and the pair
    s4  transformer_context      where a neighbour goes next, learned from ppo_swarm:1
    s5  swarm_fusion             ppo_swarm:1 and 2, frozen, under a trained gate

The same seeds on the same machine give the same params.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from brainstore import BrainManager, Check, DIALBrainManager, QualityReport
from brainstore.demo import foresight, fusion, ppo, signals, swarm
from brainstore.demo.elsewhere import FINE_TUNING_RATE, FINE_TUNING_UPDATES, WIDER_RADIUS
from brainstore.demo.story import AGENT_STEPS, headline, metrics_of, say, stored_bytes
from brainstore.errors import AlreadyExists, GateFailed
from brainstore.migrate import migrate

CHECKPOINT = Path("tests/checkpoints/dial_encoder.pt")
SWARM_UPDATES = 40
LAYOUTS = 32
ROUNDS = 8_192
EXAMPLES = 8

Params = Any
Metrics = Mapping[str, float]


def main(url: str = "brains") -> None:
    """Make the zoo at `url`.

    Raises:
        AlreadyExists: it has versions; nothing is trained.
        GateFailed: a brain does not beat what it has to; the ones before it are saved.
    """
    with BrainManager(url) as manager:
        if found := manager.list_models():
            raise AlreadyExists(f"{url}: expected an empty zoo, found {found[0]}; move it away")
        nav = swarm_policy(manager)
        wide = swarm_policy_for_wider_radius(manager, nav)
        dial_pair(manager)
        context(manager, nav)
        swarm_fusion(manager, nav, wide)
        prove(manager)
        say(f"{len(manager.list_models())} versions, {stored_bytes(manager):,} bytes of blobs")


def swarm_policy(manager: BrainManager) -> Params:
    """Train and save ppo_swarm:1; return its params."""
    headline("ppo_swarm:1")
    params = ppo.train(ppo.start(seed=0), SWARM_UPDATES).params
    rivals = {"random": swarm.random_policy, "greedy": swarm.greedy_policy}
    metrics = _swarm_metrics(ppo.policy(params), rivals, swarm.SAFETY_RADIUS)
    beats = ["return > random_return", "return > greedy_return", "colliding < greedy_colliding"]
    meta = _swarm_meta(ppo.HIDDEN_DIM, SWARM_UPDATES, swarm.SAFETY_RADIUS)
    _save(
        manager,
        "ppo_swarm",
        params,
        metrics,
        beats,
        n=LAYOUTS,
        station="s1",
        apply_fn=ppo.NETWORK.apply,
        example_obs=_observations(),
        **meta,
    )
    return params


def swarm_policy_for_wider_radius(manager: BrainManager, nav: Params) -> Params:
    """Fine-tune ppo_swarm:1, save ppo_swarm:2, and return its params."""
    headline("ppo_swarm:2")
    params = ppo.train(
        ppo.start(seed=1, params=nav),
        FINE_TUNING_UPDATES,
        safety_radius=WIDER_RADIUS,
        learning_rate=FINE_TUNING_RATE,
    ).params
    rivals = {"greedy": swarm.greedy_policy, "parent": ppo.policy(nav)}
    metrics = _swarm_metrics(ppo.policy(params), rivals, WIDER_RADIUS)
    beats = ["return > greedy_return", "return > parent_return", "colliding < parent_colliding"]
    meta = _swarm_meta(ppo.HIDDEN_DIM, FINE_TUNING_UPDATES, WIDER_RADIUS)
    _save(
        manager,
        "ppo_swarm",
        params,
        metrics,
        beats,
        n=LAYOUTS,
        station="s2",
        parents={"ppo_swarm:1": "fine_tuned"},
        apply_fn=ppo.NETWORK.apply,
        example_obs=_observations(),
        **meta,
    )
    return params


def dial_pair(manager: BrainManager) -> None:
    """Migrate a speaker, train it with a listener; save all, and dial, the pair."""
    headline("dial_encoder, dial_decoder, dial")
    state = signals.start(seed=0, encoder=migrated_speaker(manager))
    params = signals.train(state, signals.STEPS).params
    metrics = _signal_metrics(params)
    beats = [f"success > {rival}" for rival in ("chance", "shuffled", "token_only", "payload_only")]
    for half, network in _SIGNAL_NETWORKS.items():
        _save(
            manager,
            f"dial_{half}",
            params[half],
            metrics,
            beats,
            n=ROUNDS,
            station="s3",
            parents={"dial_encoder:1": "fine_tuned"} if half == "encoder" else {},
            apply_fn=network.apply,
            example_obs=_signal_examples(params)[half],
            **_signal_meta(network, signals.STEPS),
        )
    saved = DIALBrainManager(manager).save_dial(
        "dial",
        params["encoder"],
        params["decoder"],
        signals.CONFIG,
        **_SIGNAL_NETWORKS,
        metrics=metrics,
        training_steps=signals.STEPS,
        station="s3",
        report=_report("s3", metrics, beats, ROUNDS),
        frozen_experts={half: f"dial_{half}" for half in _SIGNAL_NETWORKS},
    )
    say(f"{saved}: both in one version")


def migrated_speaker(manager: BrainManager) -> Params:
    """Save dial_encoder:1, from a checkpoint of PyTorch made for this; return its params."""
    migration = migrate(CHECKPOINT)
    params = signals.start(seed=0, encoder=migration.params).params
    metrics = _signal_metrics(params)
    check = Check("success", metrics["success"], "<", 2 * signals.CHANCE)
    report = QualityReport(station="s3", checks=[check], n=ROUNDS, seeds=[0])
    saved = migration.save(
        manager,
        "dial_encoder",
        metrics=metrics,
        station="s3",
        report=report,
        apply_fn=signals.ENCODER.apply,
        example_obs=_signal_examples(params)["encoder"],
        brain_type="dial",
        notes="untrained; migrated from a PyTorch checkpoint that tests/checkpoints/make.py made",
    )
    say(f"{saved}: {report}")
    return migration.params


def context(manager: BrainManager, nav: Params) -> None:
    """Train and save transformer_context on recorded flights of ppo_swarm:1."""
    headline("transformer_context:1")
    policy, network = ppo.policy(nav), foresight.NETWORK
    tracks = foresight.record(policy, seed=1)
    params = foresight.train(tracks, seed=0)
    metrics = asdict(foresight.evaluate(params, policy))
    beats = ["error < straight_error", "last_error < straight_last_error"]
    _save(
        manager,
        "transformer_context",
        params,
        metrics,
        beats,
        n=foresight.TEST_WINDOWS,
        station="s4",
        parents={"ppo_swarm:1": "recorded"},
        apply_fn=network.apply,
        example_obs=_frames(tracks),
        brain_type="transformer",
        input_dim=network.obs_dim,
        output_dim=network.action_dim,
        hidden_dim=network.hidden_dim,
        network_kwargs={
            "frames": network.frames,
            "layers": network.layers,
            "heads": network.heads,
        },
        training_steps=foresight.STEPS,
        notes=f"the next {foresight.HORIZON} positions of a neighbour, from {network.frames}",
    )


def swarm_fusion(manager: BrainManager, nav: Params, wide: Params) -> None:
    """Train a gate over both policies, and save the whole as swarm_fusion."""
    headline("swarm_fusion:1")
    fresh, network = fusion.start(0, nav, wide), fusion.NETWORK
    fused = fusion.train(fresh, fusion.UPDATES, seed=0, safety_radius=WIDER_RADIUS)
    rivals = {"even": fusion.even_policy(fused)}
    rivals |= {name: ppo.policy(expert) for name, expert in fused["experts"].items()}
    metrics = _swarm_metrics(fusion.policy(fused), rivals, WIDER_RADIUS)
    beats = [f"return > {rival}_return" for rival in rivals]
    experts = {"experts/nav": "ppo_swarm:1", "experts/wide": "ppo_swarm:2"}
    _save(
        manager,
        "swarm_fusion",
        fused,
        metrics,
        beats,
        n=LAYOUTS,
        station="s5",
        parents=dict.fromkeys(experts.values(), "fused"),
        apply_fn=_apply_fused,
        example_obs=_observations(),
        frozen_experts=experts,
        network_kwargs={
            "expert_names": list(network.expert_names),
            "gate_dim": network.gate_dim,
        },
        **_swarm_meta(network.hidden_dim, fusion.UPDATES, WIDER_RADIUS),
    )


def _save(
    manager: BrainManager,
    name: str,
    params: Params,
    metrics: Metrics,
    beats: Sequence[str],
    *,
    n: int,
    station: str,
    **options: Any,
) -> None:
    """Save a brain that beats what it has to beat, such as "return > greedy_return".

    Raises:
        GateFailed: it does not; it is not saved.
    """
    report = _report(station, metrics, beats, n)
    if not report.is_passed:
        raise GateFailed(f"{name}: {report}")
    saved = manager.save(name, params, metrics=metrics, station=station, report=report, **options)
    say(f"{saved}: {report}")


def _report(station: str, metrics: Metrics, beats: Sequence[str], n: int) -> QualityReport:
    parts = [beat.split() for beat in beats]
    checks = [Check(metric, metrics[metric], sign, metrics[rival]) for metric, sign, rival in parts]
    return QualityReport(station=station, checks=checks, n=n, seeds=[0])


def prove(manager: BrainManager) -> None:
    """Say of every frozen expert that it is the version it is said to be.

    Raises:
        GateFailed: one is not, bit for bit.
    """
    for name in ("swarm_fusion", "dial"):
        for proof in manager.prove(name):
            if not proof.is_proved:
                raise GateFailed(f"{name}: {proof.path} is not {proof.expert}: {proof.verdict}")
            say(f"{name}: {proof.path} is {proof.expert}, {proof.verdict}")


def _observations() -> jax.Array:
    """What some agents of a new world see."""
    return swarm.observe(swarm.reset(jax.random.key(0)))[:EXAMPLES]


def _frames(tracks: foresight.Tracks) -> jax.Array:
    """The first frames of some agents of the first world."""
    return foresight.frames(tracks[0, : foresight.FRAMES, :EXAMPLES].swapaxes(0, 1))


def _signal_examples(params: Params) -> dict[str, Any]:
    """What a speaker sees, and what a listener then has before it, by half."""
    objects, target = signals.rounds(jax.random.key(0), EXAMPLES)
    seen = signals.told(objects, target)
    message: Any = signals.ENCODER.apply(params["encoder"], seen)
    return {"encoder": seen, "decoder": (signals.send(message), objects)}


def _apply_fused(fused: fusion.Fused, obs: jax.Array) -> Any:
    return fusion.NETWORK.apply({"params": fused}, obs)


def _swarm_metrics(
    policy: swarm.Policy, rivals: Mapping[str, swarm.Policy], safety_radius: float
) -> dict[str, float]:
    """How the policy does in the fixed layouts, and with a prefix, how its rivals do."""
    metrics = metrics_of(swarm.evaluate(policy, layouts=LAYOUTS, safety_radius=safety_radius))
    for name, rival in rivals.items():
        seen = metrics_of(swarm.evaluate(rival, layouts=LAYOUTS, safety_radius=safety_radius))
        metrics |= {f"{name}_{key}": value for key, value in seen.items()}
    return metrics


def _swarm_meta(hidden_dim: int, updates: int, safety_radius: float) -> dict[str, Any]:
    return {
        "brain_type": "ppo",
        "input_dim": swarm.OBS_DIM,
        "output_dim": swarm.ACTION_DIM,
        "hidden_dim": hidden_dim,
        "training_steps": updates * AGENT_STEPS,
        "notes": f"safety radius {safety_radius}",
    }


_SIGNAL_NETWORKS: Mapping[str, Any] = {"encoder": signals.ENCODER, "decoder": signals.DECODER}


def _signal_metrics(params: Params) -> dict[str, float]:
    return {**asdict(signals.evaluate(params, count=ROUNDS)), "chance": signals.CHANCE}


def _signal_meta(network: Any, steps: int) -> dict[str, Any]:
    is_decoder = network is signals.DECODER
    return {
        "brain_type": "dial",
        "input_dim": network.obs_dim,
        "output_dim": network.action_dim,
        "hidden_dim": network.hidden_dim,
        "network_kwargs": {"context_dim": network.context_dim} if is_decoder else {},
        "training_steps": steps,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
