"""A network as a StableHLO program beside the params: it runs without the network's code.

`jax.export` writes and reads the program; this package decides its form, says for how long
JAX promises to read it, and lets vmap through, which an exported program lacks. The
program takes the leaves of the params, in the order of the manifest, and the inputs, each
led by one dimension of any size, `b`.
"""

from brainstore.programs.form import (
    DESCRIPTION,
    PLATFORMS,
    PROGRAM,
    WINDOW_DAYS,
    Description,
    abstract,
)
from brainstore.programs.reading import describe, opened
from brainstore.programs.running import Program
from brainstore.programs.writing import export

__all__ = [
    "DESCRIPTION",
    "PLATFORMS",
    "PROGRAM",
    "WINDOW_DAYS",
    "Description",
    "Program",
    "abstract",
    "describe",
    "export",
    "opened",
]
