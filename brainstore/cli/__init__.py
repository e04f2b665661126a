"""The command line: arguments, one call, what it prints, and an exit code.

`brainstore ls` must start fast: the verbs import JAX, rich and the like where they need
them, never at the top of a module.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from brainstore.cli.codes import INTERRUPTED


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
        # In here, so that Ctrl-C is heard while it imports, too.
        _all_verbs()(prog_name="brainstore")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


def _all_verbs() -> Any:
    from brainstore.cli import app, care, change, factory, garbage, look, migrate, move  # noqa: F401  # add verbs

    return app.verbs


def __getattr__(name: str) -> Any:
    if name != "verbs":
        raise AttributeError(f"module 'brainstore.cli' has no attribute {name!r}")
    return _all_verbs()
