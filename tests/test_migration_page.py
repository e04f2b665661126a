"""The examples of docs/migration.md, run as they stand; its tables, held against the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command_line import ok

from brainstore.migrate.layers import RULES
from brainstore.migrate.mapping import LayerMap
from brainstore.migrate.recurrent import CELLS

PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_run_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAINSTORE_ZOO", raising=False)
    names: dict[str, Any] = {}
    for kind, text in BLOCKS:
        if kind == "toml":
            Path("map.toml").write_text(text, encoding="utf-8")
        if kind == "python":
            exec(compile(text, "migration.md", "exec"), names)
        if kind == "console":
            for command, expected in re.findall(r"\$ brainstore (.*)\n((?:(?!\$ ).*\n)*)", text):
                assert words(ok(*command.split())) == words(expected)


def words(text: str) -> list[list[str]]:
    """The words of each line; how wide a column is says nothing."""
    return [line.split() for line in text.splitlines()]


def test_every_kind_of_block_of_the_page_is_run() -> None:
    assert {kind for kind, _ in BLOCKS} == {"python", "console", "toml"}


def test_the_map_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = (text for kind, text in BLOCKS if kind == "toml")
    path = tmp_path / "map.toml"
    path.write_text(text, encoding="utf-8")
    assert len(LayerMap.of(path).lines) == 4


def test_every_rule_option_and_cell_is_on_the_page() -> None:
    table = PAGE.partition("## The rules")[2].partition("## What the Flax layer")[0]
    options = {option for rule in RULES.values() for option in rule.options}
    for name in {*RULES, *options}:
        assert f"`{name}" in table, name
    for cell in CELLS:
        assert f'`"{cell}"`' in table, cell
