"""Who saved a version, from which code, with which libraries."""

from __future__ import annotations

import functools
import getpass
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

GIT_TIMEOUT_S = 5.0


@functools.cache
def author() -> str:
    """Return `user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def provenance() -> dict[str, Any]:
    """Return what a manifest records of its origin; what cannot be told is left out."""
    modules = {name: sys.modules.get(name) for name in ("jax", "flax", "optax", "numpy")}
    return {
        **{name: str(module.__version__) for name, module in modules.items() if module},
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        **_git(Path.cwd()),
        **_wandb(),
    }


@functools.cache
def _git(folder: Path) -> dict[str, Any]:
    # Once per process and folder: the code that runs was loaded when it began.
    commit = _git_output(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    status = _git_output(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, **({} if status is None else {"git_dirty": bool(status)})}


def _git_output(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _wandb() -> dict[str, Any]:
    run = getattr(sys.modules.get("wandb"), "run", None)
    run_id = getattr(run, "id", None) or os.environ.get("WANDB_RUN_ID")
    return {"wandb_run": str(run_id)} if run_id else {}
