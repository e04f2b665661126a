"""Running the command line: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from brainstore import BrainManager
from brainstore.cli import verbs

PARAMS = {"encoder": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}}


def run(*arguments: str | Path, **options: Any) -> Result:
    """Run a verb in this process; anything but an exit code of its own is an error."""
    result = CliRunner().invoke(verbs, [str(each) for each in arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ok(*arguments: str | Path, **options: Any) -> str:
    """Run a verb that must succeed; return what it printed."""
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def measureless(text: str) -> str:
    """The text without how far off an output is, which depends on the machine."""
    return re.sub(r"at most \S+ off, \S+ times", "at most X off, Y times", text)


def parsed(*arguments: str | Path) -> Any:
    """Run a verb with --json; return what that says."""
    return json.loads(ok(*arguments, "--json"))


def refused(code: int, *arguments: str | Path, **options: Any) -> str:
    """Run a verb that must exit with `code` and print one error; return its line."""
    result = run(*arguments, **options)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def process(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb as people do, in a process of its own, its output in a pipe."""
    command = [sys.executable, "-m", "brainstore", *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def filled(folder: Path) -> BrainManager:
    """Return a zoo with ppo_swarm 1 and 2 (prod names 1), and dial 1."""
    zoo = BrainManager(folder)
    known = {"brain_type": "ppo", "input_dim": 100, "hidden_dim": 256, "output_dim": 2}
    zoo.save("ppo_swarm", PARAMS, {**known, "metrics": {"loss": 0.5, "return": 7.25}})
    better = {"encoder": {**PARAMS["encoder"], "bias": np.ones(3, np.float32)}}
    zoo.save(
        "ppo_swarm",
        better,
        {**known, "training_steps": 2_400_000, "metrics": {"return": 7.5}, "tags": ["wide"]},
        parents={"ppo_swarm:1": "fine_tuned"},
        files={"notes.md": b"hello"},
        groups={"step": {"n": np.int32(3)}},
    )
    zoo.save("dial", PARAMS, {"brain_type": "dial", "metrics": {"success": float("nan")}})
    zoo.alias("ppo_swarm:1", "prod")
    return zoo
