"""The examples of docs/inference.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command_line import measureless, ok

PAGE = (Path(__file__).parent.parent / "docs" / "inference.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_run_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAINSTORE_ZOO", raising=False)
    names: dict[str, Any] = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "docs/inference.md", "exec"), names)
        if kind == "console":
            check_console(text)
    printed = capsys.readouterr().out
    assert "ppo_swarm:1 1 ppo\n" in printed
    assert "obs: expected float32[..., 8], found int64[5, 8]. Convert it:" in printed


def check_console(text: str) -> None:
    for command, expected in re.findall(r"\$ brainstore (.*)\n((?:(?!\$ ).*\n)*)", text):
        assert measureless(ok(*command.split())) == measureless(expected)


def test_every_link_within_the_page_leads_somewhere() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == anchors
