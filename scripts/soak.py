"""Prints what long tests have counted, as a table in Markdown: one line for each kind of case."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

COLUMNS = ("cases", "operations", "faults", "lost")


def main(path: str) -> None:
    """Print the table of the JSON lines in the file; see `tally` in tests/conftest.py."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        numbers = {key: value for key, value in found.items() if isinstance(value, int)}
        sums[found["what"]].update(numbers)
    print(f"| what | {' | '.join(COLUMNS)} | besides |")
    print(f"| --- | {' | '.join('---:' for _ in COLUMNS)} | --- |")
    for what, counts in sorted(sums.items()):
        cells = [f"{counts[column]:,}" if column in counts else "" for column in COLUMNS]
        cells[-1] = cells[-1] or "0"
        more = ", ".join(f"{n:,} {key}" for key, n in counts.items() if key not in COLUMNS)
        print(f"| {what} | {' | '.join(cells)} | {more} |")


if __name__ == "__main__":
    main(sys.argv[1])
