"""Checkpoints of other frameworks, as versions of a zoo.

    from brainstore.migrate import migrate, migrate_v2_checkpoint, convert_torch_to_flax

Neither torch nor Flax is needed, and nothing that a checkpoint holds is ever run. From file
to version:

    archive, unpickling, torchfile   torch's zip format: records, pickle, tensors
    flaxfile                         Flax's msgpack
    checkpoint, state                any of them, and the state dict that is inside
    mapping, layers, recurrent       the map, and the rule of each kind of layer
    modules, matching                the lines of a map, found from a target or from names
    conversion, report, migration    all of it applied, told, and saved
"""

from brainstore.migrate.checkpoint import Checkpoint, read_checkpoint
from brainstore.migrate.conversion import Conversion, convert, convert_torch_to_flax
from brainstore.migrate.migration import (
    Migration,
    migrate,
    migrate_v2_checkpoint,
    migrate_version,
    shapes_of,
)
from brainstore.migrate.report import Report

__all__ = [
    "Checkpoint",
    "Conversion",
    "Migration",
    "Report",
    "convert",
    "convert_torch_to_flax",
    "migrate",
    "migrate_v2_checkpoint",
    "migrate_version",
    "read_checkpoint",
    "shapes_of",
]
