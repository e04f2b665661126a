"""What the command line exits with; see `docs/cli.md`."""

from __future__ import annotations

USAGE, NOT_FOUND, CONFLICT, CORRUPT, GATE, UNAVAILABLE = 2, 3, 4, 5, 6, 7
OTHER, INTERRUPTED, BROKEN_PIPE = 1, 130, 141
