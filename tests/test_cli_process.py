"""The command line in a process of its own: how fast it starts, pipes, signals, warnings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import PARAMS, filled, process

from brainstore import BrainManager

HEAVY = ("jax", "numpy", "fsspec", "botocore", "aiohttp", "asyncio", "rich", "ml_dtypes", "s3fs")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small zoo, which BRAINSTORE_ZOO names."""
    monkeypatch.setenv("BRAINSTORE_ZOO", str(tmp_path / "zoo"))
    filled(tmp_path / "zoo").close()
    return tmp_path / "zoo"


@pytest.mark.parametrize("verb", [["ls"], ["ls", "--json"], ["show", "dial"], ["log"], ["--help"]])
def test_looking_imports_nothing_heavy(zoo: Path, verb: list[str]) -> None:
    code = (
        "import sys\n"
        "from brainstore.cli import verbs\n"
        f"verbs({verb!r}, standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "[]\n"


def test_both_modules_run_the_same_program(zoo: Path) -> None:
    done = process("ls")
    assert (done.returncode, done.stderr) == (0, "")
    again = subprocess.run(
        [sys.executable, "-m", "brainstore.cli", "ls", "--columns", "name,version"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert again.stdout.splitlines()[0].split() == ["NAME", "VERSION"]


@pytest.mark.parametrize("verb", [["ls"], ["show", "dial"], ["log"], ["doctor"], ["--help"]])
def test_a_pipe_gets_plain_text(zoo: Path, verb: list[str]) -> None:
    done = process(*verb)
    assert done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert not set("│─┃━┏╭") & set(done.stdout)


def test_a_pipe_gets_whole_names_however_long(zoo: Path) -> None:
    name = "/".join(["segment"] * 12)
    with BrainManager(zoo) as manager:
        manager.save(name, PARAMS)
    assert name in process("ls", COLUMNS="40").stdout


def test_a_stream_that_is_not_utf8_gets_no_traceback(zoo: Path) -> None:
    done = process("ls", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert "100?256?2" in done.stdout


def test_a_reader_that_left_is_no_error(zoo: Path) -> None:
    command = [sys.executable, "-m", "brainstore", "show", "ppo_swarm", "--leaves"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    with started.stderr:
        assert started.stderr.read() == b""
    assert started.wait(60) == 141


def test_streams_that_are_closed_are_no_error(zoo: Path) -> None:
    command = [sys.executable, "-m", "brainstore", "ls"]
    for closing in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_130_without_a_traceback(zoo: Path) -> None:
    code = (
        "import signal, threading\n"
        "from brainstore import manager\n"
        "def slow(*_, **__):\n"
        "    print('here', flush=True)\n"
        "    while True:\n"
        # A signal that comes just before a wait without end begins is not heard in it.
        "        threading.Event().wait(0.1)\n"
        "manager.BrainManager.table = slow\n"
        "import sys; sys.argv = ['brainstore', 'ls']\n"
        "from brainstore.cli import main\n"
        "main()\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with started:
        assert started.stdout is not None
        assert started.stdout.readline() == "here\n"
        os.kill(started.pid, signal.SIGINT)
        try:
            _, told = started.communicate(timeout=60)
        finally:
            started.kill()
    assert (started.returncode, told) == (130, "interrupted\n")


@pytest.mark.parametrize("module", ["click", "brainstore.cli.look", "brainstore.manager"])
def test_ctrl_c_while_it_starts_is_130_without_a_traceback(zoo: Path, module: str) -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['brainstore', 'ls']\n"
        "from brainstore.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_warnings_are_lines_on_stderr(zoo: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.zeros(2, np.float32))
    (tmp_path / "meta.json").write_text('{"name": "old_name"}')
    done = process("save", "walker", tmp_path / "w.npz", "--meta", tmp_path / "meta.json")
    assert (done.returncode, done.stdout) == (0, "walker_v1\n")
    [line] = done.stderr.splitlines()
    assert line.startswith("warning: meta.name is 'old_name'")


def test_the_program_itself_asks_before_it_deletes(zoo: Path) -> None:
    done = process("rm", "dial")
    assert done.returncode == 2
    assert "--yes" in done.stderr
