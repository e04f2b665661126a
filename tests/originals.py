"""Trees of plain files as the original brain manager wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.flax import save_file as flax_save_file

META = {
    "name": "ppo_swarm",
    "version": 1,
    "brain_type": "ppo",
    "input_dim": 4,
    "output_dim": 2,
    "hidden_dim": 3,
    "created_at": "2025-03-01T12:00:00",
    "training_steps": 1000,
    "source_checkpoint": None,
    "notes": "the first",
}


def dense(seed: float) -> dict[str, jax.Array]:
    return {
        "params/dense_0/kernel": jnp.arange(12, dtype=jnp.float32).reshape(4, 3) + seed,
        "params/dense_0/bias": jnp.full((3,), seed, jnp.bfloat16),
        "log_std": jnp.zeros(2),
    }


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    return {
        "params": {
            "dense_0": {
                "kernel": flat["params/dense_0/kernel"],
                "bias": flat["params/dense_0/bias"],
            }
        },
        "log_std": flat["log_std"],
    }


def write_original(folder: Path, versions: dict[str, dict[str, Any]], **changes: Any) -> None:
    """Write a tree as the original did; `versions` holds flat params by full name."""
    models = {}
    for full_name, flat in versions.items():
        name, _, number = full_name.rpartition("_v")
        meta = {**META, "name": name, "version": int(number), **changes}
        place = folder / name / f"v{number}"
        place.mkdir(parents=True)
        flax_save_file(dict(flat), place / "params.safetensors")
        (place / "meta.json").write_text(json.dumps(meta))
        models[full_name] = meta
        latest = folder / name / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(f"v{number}")
    newest = {full_name.rpartition("_v")[0]: full_name for full_name in models}
    registry = {"models": models, "latest": newest}
    (folder / "registry.json").write_text(json.dumps(registry, indent=2))
