"""A model zoo without a server: JAX pytrees in a folder or a bucket.

    from brainstore import BrainManager

    zoo = BrainManager("brains/")                  # or "s3://team/zoo"
    zoo.save("ppo_swarm", params, {"brain_type": "ppo"})
    params, meta = zoo.load("ppo_swarm")

Importing this module imports neither JAX nor any web library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brainstore.errors import (
    AlreadyExists,
    BadParams,
    BadReference,
    BrainstoreError,
    Conflict,
    Corrupt,
    GateFailed,
    NotFound,
    NoZoo,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)

if TYPE_CHECKING:
    from brainstore.dial import DIALBrainManager, DIALBrainPair
    from brainstore.golden import Golden
    from brainstore.inference import BrainInference
    from brainstore.manager import BrainManager, load
    from brainstore.meta import BrainMeta
    from brainstore.migrate import convert_torch_to_flax, migrate_v2_checkpoint
    from brainstore.pytree.structure import register
    from brainstore.quality import Check, Condition, QualityReport, Rule

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists",
    "BadParams",
    "BadReference",
    "BrainInference",
    "BrainManager",
    "BrainMeta",
    "BrainstoreError",
    "Check",
    "Condition",
    "Conflict",
    "Corrupt",
    "DIALBrainManager",
    "DIALBrainPair",
    "GateFailed",
    "Golden",
    "NoZoo",
    "NotFound",
    "QualityReport",
    "ReadOnly",
    "Rule",
    "StoreUnavailable",
    "Unsupported",
    "convert_torch_to_flax",
    "load",
    "migrate_v2_checkpoint",
    "register",
]

_HOMES = {
    "BrainInference": "brainstore.inference",
    "BrainManager": "brainstore.manager",
    "BrainMeta": "brainstore.meta",
    "Check": "brainstore.quality",
    "Condition": "brainstore.quality",
    "DIALBrainManager": "brainstore.dial",
    "DIALBrainPair": "brainstore.dial",
    "Golden": "brainstore.golden",
    "QualityReport": "brainstore.quality",
    "Rule": "brainstore.quality",
    "convert_torch_to_flax": "brainstore.migrate",
    "load": "brainstore.manager",
    "migrate_v2_checkpoint": "brainstore.migrate",
    "register": "brainstore.pytree.structure",
}


def __getattr__(name: str) -> Any:
    # On first use, so that `import brainstore` and `brainstore ls` stay fast.
    if name not in _HOMES:
        raise AttributeError(f"module 'brainstore' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
