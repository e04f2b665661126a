"""The command line: arguments, one call, what it prints, and an exit code.

`brainstore ls` must start fast: the verbs import JAX, rich and the like where they need
them, never at the top of a module.
"""

from __future__ import annotations

import io
import os
import sys

from brainstore.cli import care, change, look, move
from brainstore.cli.app import INTERRUPTED, verbs

__all__ = ["care", "change", "look", "main", "move", "verbs"]


def main() -> None:
    """Run the command line of this process, and exit."""
    # Closed by whoever started us, as some schedulers do.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that has no "→" shows "?" in its place, not a traceback.
            stream.reconfigure(errors="replace")
    try:
        verbs(prog_name="brainstore")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
