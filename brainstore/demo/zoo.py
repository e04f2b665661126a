"""The example zoo: small brains of four tasks, each trained from a seed.

Every version holds the figures of its evaluation beside those of what it has to beat; one
that does not beat it is not saved. What is made, by station of the factory:

    s1  ppo_swarm:1              a policy for the swarm
    s2  ppo_swarm:2              the same, fine-tuned for a wider safety radius
    s3  dial_encoder, dial_decoder, and dial: a speaker, a listener, and both as a pair
    s4  transformer_context      where a neighbour goes next, learned from ppo_swarm:1
    s5  swarm_fusion             ppo_swarm:1 and 2, frozen, under a trained gate

The same seeds on the same machine give the same params.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from brainstore import BrainManager, DIALBrainManager
from brainstore.demo import foresight, fusion, ppo, signals, swarm
from brainstore.demo.elsewhere import FINE_TUNING_RATE, FINE_TUNING_UPDATES, WIDER_RADIUS
from brainstore.demo.story import AGENT_STEPS, headline, metrics_of, say, stored_bytes
from brainstore.errors import AlreadyExists, GateFailed

SWARM_UPDATES = 40
LAYOUTS = 32
ROUNDS = 8_192

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
        say(f"{len(manager.list_models())} versions, {stored_bytes(manager):,} bytes of blobs")


def swarm_policy(manager: BrainManager) -> Params:
    """Train and save ppo_swarm:1; return its params."""
    headline("ppo_swarm:1")
    params = ppo.train(ppo.start(seed=0), SWARM_UPDATES).params
    rivals = {"random": swarm.random_policy, "greedy": swarm.greedy_policy}
    metrics = _swarm_metrics(ppo.policy(params), rivals, swarm.SAFETY_RADIUS)
    beats = ["return > random_return", "return > greedy_return", "colliding < greedy_colliding"]
    meta = _swarm_meta(ppo.HIDDEN_DIM, SWARM_UPDATES, swarm.SAFETY_RADIUS)
    _save(manager, "ppo_swarm", params, metrics, beats, n=LAYOUTS, **meta)
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
    parents = {"ppo_swarm:1": "fine_tuned"}
    _save(manager, "ppo_swarm", params, metrics, beats, n=LAYOUTS, parents=parents, **meta)
    return params


def dial_pair(manager: BrainManager) -> None:
    """Train a speaker and a listener; save dial_encoder, dial_decoder, and dial, the pair."""
    headline("dial_encoder, dial_decoder, dial")
    params = signals.train(signals.start(seed=0), signals.STEPS).params
    metrics = _signal_metrics(params)
    beats = [f"success > {rival}" for rival in ("chance", "shuffled", "token_only", "payload_only")]
    for half, network in _SIGNAL_NETWORKS.items():
        meta = _signal_meta(network, signals.STEPS)
        _save(manager, f"dial_{half}", params[half], metrics, beats, n=ROUNDS, **meta)
    saved = DIALBrainManager(manager).save_dial(
        "dial",
        params["encoder"],
        params["decoder"],
        signals.CONFIG,
        **_SIGNAL_NETWORKS,
        metrics=metrics,
        training_steps=signals.STEPS,
        frozen_experts={half: f"dial_{half}" for half in _SIGNAL_NETWORKS},
    )
    say(f"{saved}: both in one version")


def context(manager: BrainManager, nav: Params) -> None:
    """Train and save transformer_context on recorded flights of ppo_swarm:1."""
    headline("transformer_context:1")
    policy, network = ppo.policy(nav), foresight.NETWORK
    params = foresight.train(foresight.record(policy, seed=1), seed=0)
    metrics = asdict(foresight.evaluate(params, policy))
    beats = ["error < straight_error", "last_error < straight_last_error"]
    _save(
        manager,
        "transformer_context",
        params,
        metrics,
        beats,
        n=foresight.TEST_WINDOWS,
        parents={"ppo_swarm:1": "recorded"},
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
        parents=dict.fromkeys(experts.values(), "fused"),
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
    **options: Any,
) -> None:
    """Save a brain that beats what it has to beat, such as "return > greedy_return".

    Raises:
        GateFailed: it does not; it is not saved.
    """
    for beat in beats:
        metric, sign, rival = beat.split()
        ahead = metrics[metric] - metrics[rival]
        if not (ahead > 0 if sign == ">" else ahead < 0):
            raise GateFailed(f"{name}: expected {beat}, found {metrics[metric]}, {metrics[rival]}")
    saved = manager.save(name, params, metrics=metrics, **options)
    say(f"{saved}: {', '.join(f'{key} {value:.3f}' for key, value in metrics.items())}")


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
