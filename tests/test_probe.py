"""The probe passes stores that decide conditions, and catches those that do not."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from conftest import S3Place

from brainstore.errors import Unsupported
from brainstore.storage import open_store
from brainstore.storage.base import ABSENT, ANYTHING, Expect, Token
from brainstore.storage.memory import MemoryStore
from brainstore.storage.probe import probe


class CreateOverwrites(MemoryStore):
    def put(self, key, body, *, expect=ANYTHING):
        return super().put(key, body, expect=ANYTHING if expect is ABSENT else expect)


class CreateReportsButOverwrites(MemoryStore):
    def put(self, key, body, *, expect=ANYTHING):
        try:
            return super().put(key, body, expect=expect)
        finally:
            if expect is ABSENT:
                super().put(key, body)


class SwapOverwrites(MemoryStore):
    def put(self, key, body, *, expect=ANYTHING):
        is_there = self.get(key) is not None
        return super().put(
            key, body, expect=expect if expect is ABSENT or not is_there else ANYTHING
        )


class SwapCreates(MemoryStore):
    def put(self, key, body, *, expect=ANYTHING):
        is_there = self.get(key) is not None
        return super().put(key, body, expect=expect if expect is ABSENT or is_there else ANYTHING)


class SwapNeverWorks(MemoryStore):
    def put(self, key, body, *, expect=ANYTHING):
        return super().put(
            key, body, expect=Token("x") if not isinstance(expect, Expect) else expect
        )


class SwapDoesNothing(MemoryStore):
    def put(self, key, body, *, expect=ANYTHING):
        return (
            Token("x") if not isinstance(expect, Expect) else super().put(key, body, expect=expect)
        )


class ChecksThenActs(MemoryStore):
    """Right when alone; among racers, it looks first and writes later."""

    races = "create"

    def put(self, key, body, *, expect=ANYTHING):
        found = self.get(key)
        is_race = key.endswith(f"race-{self.races}") and body.startswith(b"racer")
        if not is_race:
            return super().put(key, body, expect=expect)
        time.sleep(0.05)
        return super().put(key, body) if (found is None) == (expect is ABSENT) else Token("x")


class SwapsRace(ChecksThenActs):
    races = "swap"


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (CreateOverwrites, "creating an object that exists"),
        (CreateReportsButOverwrites, "creating an object that exists"),
        (SwapOverwrites, "a swap from a stale state"),
        (SwapCreates, "a swap of a missing object"),
        (SwapNeverWorks, "a swap from the current state"),
        (SwapDoesNothing, "a swap from the current state"),
        (ChecksThenActs, "a race of 16 creates"),
        (SwapsRace, "a race of 16 swaps"),
    ],
)
def test_a_store_that_ignores_a_condition_is_refused(
    kind: type[MemoryStore], step: str, tmp_path: Path
) -> None:
    store = kind(f"memory://{tmp_path}")
    with pytest.raises(Unsupported, match=f"Tried: {step}.*Seen: .*"):
        probe(store)
    assert list(store.list("")) == []


def test_the_evidence_tells_what_was_tried_and_when(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    evidence = probe(store)
    assert evidence == {
        "create": True,
        "swap": True,
        "race": 16,
        "probed_at": evidence["probed_at"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", evidence["probed_at"])
    assert list(store.list("")) == []


def test_memory_passes() -> None:
    probe(MemoryStore())


def test_seaweed_passes(s3_place: S3Place) -> None:
    store = open_store(s3_place.url, s3_place.storage_options)
    assert probe(store)["race"] == 16
    assert list(store.list("")) == []
    store.close()
