"""The README's examples, run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import S3Place

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHARED_ZOO = "s3://team/zoo"


@pytest.fixture
def place(tmp_path: Path, s3_by_environment: S3Place, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """An empty current folder, a bucket reached by the ordinary AWS settings, and a clone."""
    shutil.copytree(ROOT / "brains", tmp_path / "clone/brains")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BRAINSTORE_ZOO", raising=False)
    return s3_by_environment


@pytest.mark.s3
def test_the_examples_run_in_the_order_in_which_they_stand(place: S3Place) -> None:
    names: dict[str, Any] = {}
    for kind, text in BLOCKS:
        text = text.replace(SHARED_ZOO, place.url)
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
        if kind == "sh":
            for line in text.splitlines():
                if line.startswith("brainstore "):
                    brainstore(line.partition("#")[0], place.url)
        if kind == "console":
            check_console(text)


def check_console(text: str) -> None:
    for command, expected in re.findall(r"\$ (.*)\n((?:(?!\$ ).*\n)*)", text):
        # What names its zoo shows that of the repository.
        folder = "clone" if "--zoo" in command else "."
        assert timeless(brainstore(command, "brains", folder)) == timeless(expected)


def brainstore(command: str, zoo: str, folder: str = ".") -> str:
    """Run a line that begins with `brainstore`, in the zoo that the README has by then."""
    program, *arguments = command.split()
    assert program == "brainstore"
    done = subprocess.run(
        [sys.executable, "-m", "brainstore", *arguments],
        env=os.environ | {"BRAINSTORE_ZOO": zoo},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def timeless(text: str) -> list[list[str]]:
    """The words of each line, whoever ran it, whenever."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +\S+@\S+", "WHEN WHO", text)
    return [re.sub(r"\d+ (s|min)\b", "AGE", line).split() for line in text.splitlines()]


def test_every_script_that_the_readme_names_is_there() -> None:
    for name in set(re.findall(r"scripts/(\w+)", README)):
        assert (ROOT / "scripts" / name).exists(), name


def test_every_page_that_the_readme_links_is_there() -> None:
    for page in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / page).exists(), page
