"""The examples of docs/factory.md, run as they stand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from test_readme import check_console

from brainstore import BrainManager
from brainstore.factory.policy import rules_of

PAGE = (Path(__file__).parent.parent / "docs" / "factory.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_run_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = ""
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "docs/factory.md", "exec"), names)
            printed = capsys.readouterr().out
        elif kind == "console":
            check_console(text)
        elif kind == "text":
            assert printed == text
    policy = BrainManager("brains").policy()
    assert policy is not None
    [told] = [text for kind, text in BLOCKS if kind == "toml"]
    assert rules_of(tomllib.loads(told)) == policy.rules


def test_every_section_that_the_page_lists_is_there() -> None:
    headings = {re.sub(r"[^a-z -]", "", line.lower()).replace(" ", "-")
                for line in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)}  # fmt: skip
    assert set(re.findall(r"\]\(#([a-z-]+)\)", PAGE)) <= headings
