"""The records, frozen: golden files, damage of every kind, and formats of the future.

`BRAINSTORE_WRITE_GOLDEN=1` writes golden files that are missing. One that is there is
never written again: a change of format needs a new one, and old ones keep loading.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainstore.address import Alias, Digest, Fact, Name, parse_fact_key
from brainstore.errors import Corrupt, Unsupported
from brainstore.quality import Check, Condition, Gate, QualityReport, Rule
from brainstore.records import (
    AliasRow,
    Change,
    FactBody,
    GcState,
    Group,
    Intent,
    Leaf,
    Manifest,
    Marker,
    Move,
    Piece,
    Pin,
    Pointer,
    Policy,
    Snapshot,
    StoredFile,
    StoredReport,
    Target,
    Tombstone,
    decode_version,
    now,
)

GOLDEN = Path(__file__).parent / "golden" / "records"
ULID = "01M85C50560SV00T2XCPB2KJ4K"
AT = "2026-11-23T22:33:35.120Z"
BY = "ada@analytical"
A, B, C = (Digest.of(text) for text in (b"a", b"b", b"c"))
PPO, TEAM = Name("ppo_swarm"), Name("team/ppo")

REPORT = QualityReport(
    "s3",
    [Check("return", 7.25, ">=", 7.0), Check("loss", float("inf"), "<", 0.5)],
    n=100,
    seeds=[0, 1],
    by=BY,
    at=AT,
    id=ULID,
)
EARLIER_MANIFEST = Manifest(
    name=TEAM,
    version=3,
    write_id=ULID,
    created_at=AT,
    by=BY,
    meta={"notes": "Grüße", "metrics": {"return": 7.25, "loss": {"$float": "nan"}}, "tags": []},
    groups={
        "params": Group(
            structure={"dict": [["w", 0], ["b", 1], ["s", 2]]},
            leaves=(
                Leaf(path="w", dtype="float32", shape=(1024, 512), digest=A),
                Leaf(path="b", dtype="bfloat16", shape=(512,), digest=B, blob=C, entry=B),
                Leaf(
                    path="s",
                    dtype="int64",
                    shape=(),
                    digest=C,
                    pieces=(Piece(index=((0, 1), (2, 4)), blob=C, entry="x"),),
                    scalar="int",
                ),
            ),
        ),
        "opt_state": Group(structure=None, leaves=()),
    },
    parents=(Pin(name=PPO, version=1, digest=A, relation="fine_tuned"),),
    frozen_experts={"experts/nav": Pin(name=PPO, version=2, digest=B)},
    files={"notes.md": StoredFile(blob=C, size_bytes=12)},
    blobs={A: 2097216, C: 1200},
    provenance={"jax": "0.8.0", "git_dirty": False},
    size_bytes=2098176,
    new_bytes=1200,
)
MANIFEST = msgspec.structs.replace(
    EARLIER_MANIFEST,
    frozen_experts={"experts/nav": Pin(name=PPO, version=2, digest=B, subtree="encoder")},
    station="s3",
    report=REPORT,
)
EARLIER = (GOLDEN / "manifest_before_stations.json").read_bytes()
"""A manifest from before there were stations and reports."""

TOMBSTONE = Tombstone(
    name=TEAM,
    version=3,
    write_id="01M85C5056C3GNW55TJ0NF648F",
    generation=1,
    at=AT,
    by=BY,
    why="diverged",
    replaced_write_id=ULID,
    replaced_digest=Digest.of(EARLIER),
    record=msgspec.Raw(EARLIER),
)
FENCE = Tombstone(name=PPO, version=9, write_id=ULID, generation=1, at=AT, by=BY, why="gc")
POINTER = Pointer(
    name=PPO,
    ref=Alias("prod"),
    version=3,
    digest=A,
    newest=0,
    generation=2,
    write_id=ULID,
    moves=(
        Move(from_version=None, to_version=2, to_digest=B, at=AT, by=BY, write_id="w1", why=""),
        Move(from_version=2, to_version=3, to_digest=A, at=AT, by=BY, write_id=ULID, why="better"),
    ),
)
UNSET = Pointer(name=PPO, ref=Alias("latest"), version=None, digest=None, newest=4, generation=9,
                write_id=ULID)  # fmt: skip
GATE = Gate(
    policy=A,
    generation=2,
    rules=(Rule("prod", stations=["s3"]),),
    reports=(ULID, "01M85C5056C3GNW55TJ0NF648F"),
)
PROMOTED = msgspec.structs.replace(
    POINTER,
    moves=(
        msgspec.structs.replace(
            POINTER.moves[0], gate=Gate(policy=B, generation=1, is_forced=True)
        ),
        msgspec.structs.replace(POINTER.moves[1], gate=GATE, undoes="w1"),
    ),
)
STORED_REPORT = StoredReport(name=PPO, version=3, digest=A, at=AT, by=BY, report=REPORT)
POLICY = Policy(
    generation=2,
    write_id=ULID,
    rules=(
        Rule(
            Alias("prod"),
            "team/*",
            ["s3", "s4"],
            [Condition("return", ">=", 7.0), Condition("loss", "<", float("inf"), "s4")],
            604800,
            True,
        ),
        Rule(Alias("candidate"), stations=["s3"]),
    ),
    changes=(
        Change(generation=1, at=AT, by=BY, write_id="w1"),
        Change(generation=2, at=AT, by=BY, write_id=ULID, why="stricter"),
    ),
)
INTENT = Intent(
    write_id=ULID,
    created_at=AT,
    by=BY,
    targets=(Target(name=PPO, version=4), Target(name=TEAM, version=1)),
    digests=(A, B),
)
SYNC_INTENT = msgspec.structs.replace(INTENT, exact=True)
GC_STATE = GcState(state="deleting", generation=7, condemned=(A, C), write_id=ULID)
MARKER = Marker(zoo_id=ULID, created_at=AT, store={"create": True, "swap": True, "race": 16})
FACT_BODY = FactBody(row=EARLIER_MANIFEST.row(A), at=AT, by=BY)
SNAPSHOT = Snapshot(
    folded_at=AT,
    models={"team/ppo_v3": EARLIER_MANIFEST.row(A), "ppo_swarm_v1": {"name": "ppo_swarm"}},
    aliases={"ppo_swarm": {"prod": AliasRow(version=1, generation=2),
                           "old": AliasRow(version=None, generation=5)}},
    tombstones={"ppo_swarm_v2": 1},
)  # fmt: skip

RECORDS: dict[str, Any] = {
    "manifest": MANIFEST,
    "tombstone": TOMBSTONE,
    "fence": FENCE,
    "pointer": POINTER,
    "pointer_unset": UNSET,
    "pointer_promoted": PROMOTED,
    "report": STORED_REPORT,
    "policy": POLICY,
    "intent": INTENT,
    "intent_of_a_sync": SYNC_INTENT,
    "gc_state": GC_STATE,
    "marker": MARKER,
    "snapshot": SNAPSHOT,
    "fact_body": FACT_BODY,
}
READABLE = {
    "pointer",
    "pointer_unset",
    "pointer_promoted",
    "policy",
    "report",
    "gc_state",
    "marker",
    "snapshot",
}
FACTS = [
    Fact(ULID, "save", TEAM, 3),
    Fact(ULID, "delete", PPO, 3, 1),
    Fact(ULID, "restore", PPO, 3, 2),
    Fact(ULID, "move", PPO, 3, 2, Alias("prod")),
    Fact(ULID, "move", PPO, 0, 3, Alias("prod")),
]


def _encode(kind: str) -> bytes:
    record = RECORDS[kind]
    return record.encode_readable() if kind in READABLE else record.encode()


def _decode(kind: str, body: bytes) -> Any:
    return type(RECORDS[kind]).decode(body, "here")


def _golden(name: str, body: bytes) -> bytes:
    path = GOLDEN / name
    if not path.exists() and os.environ.get("BRAINSTORE_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return path.read_bytes()


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_still_written_as_it_was(kind: str) -> None:
    assert _encode(kind) == _golden(f"{kind}.json", _encode(kind))


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_written_then_is_still_read_and_written_back_the_same(kind: str) -> None:
    body = _golden(f"{kind}.json", _encode(kind))
    found = _decode(kind, body)
    assert found == RECORDS[kind]
    assert (found.encode_readable() if kind in READABLE else found.encode()) == body


def test_a_manifest_from_before_stations_and_reports_is_still_read() -> None:
    found = decode_version(EARLIER, "here")
    assert found == EARLIER_MANIFEST
    assert isinstance(found, Manifest)
    assert (found.station, found.report, found.made_at) == (None, None, None)
    assert "station" not in found.row(A)
    assert MANIFEST.row(A)["station"] == "s3"


def test_records_of_collections_from_before_write_ids_are_still_read() -> None:
    state = GcState.decode((GOLDEN / "gc_state_before_write_ids.json").read_bytes(), "here")
    assert state == msgspec.structs.replace(GC_STATE, write_id="")
    intent = Intent.decode((GOLDEN / "intent_before_syncs.json").read_bytes(), "here")
    # A collector that does not know whether it is a sync's takes it for a save's.
    assert intent == INTENT
    assert not intent.exact


def test_keys_of_facts_are_still_what_they_were() -> None:
    body = json.dumps([fact.key for fact in FACTS], indent=1).encode() + b"\n"
    stored = _golden("fact_keys.json", body)
    assert stored == body
    assert [parse_fact_key(key) for key in json.loads(stored)] == FACTS


def test_no_golden_record_is_forgotten() -> None:
    known = {f"{kind}.json" for kind in RECORDS}
    known |= {"fact_keys.json", "manifest_before_stations.json"}
    known |= {"gc_state_before_write_ids.json", "intent_before_syncs.json"}
    assert {path.name for path in GOLDEN.iterdir()} == known


@pytest.mark.parametrize("kind", RECORDS)
def test_names_and_digests_are_checked_types_once_decoded(kind: str) -> None:
    found = _decode(kind, _encode(kind))
    if kind == "manifest":
        assert type(found.name) is Name
        assert all(type(digest) is Digest for digest in found.blobs)
        leaf = found.groups["params"].leaves[1]
        assert type(leaf.digest) is Digest
        assert leaf.blobs() == [C]
        assert found.groups["params"].leaves[0].blobs() == [A]
        assert found.groups["params"].leaves[2].blobs() == [C]


def test_the_manifest_in_a_tombstone_is_kept_byte_for_byte() -> None:
    found = decode_version(TOMBSTONE.encode(), "here")
    assert isinstance(found, Tombstone)
    assert bytes(found.record) == EARLIER
    assert found.write_ids == {ULID}
    assert not found.is_fence
    assert found.is_deleted
    assert decode_version(FENCE.encode(), "here").is_fence


def test_the_same_record_is_the_same_bytes_in_whatever_order_it_was_made() -> None:
    again = msgspec.structs.replace(
        MANIFEST,
        groups=dict(reversed(MANIFEST.groups.items())),
        blobs=dict(reversed(MANIFEST.blobs.items())),
        meta=dict(reversed(MANIFEST.meta.items())),
    )
    assert again.encode() == MANIFEST.encode()


@pytest.mark.parametrize("kind", RECORDS)
def test_fields_of_the_future_are_passed_over(kind: str) -> None:
    later = {**json.loads(_encode(kind)), "brand_new": {"x": [1, None]}}
    assert _decode(kind, json.dumps(later).encode()) == _decode(
        kind, json.dumps(json.loads(_encode(kind))).encode()
    )


@pytest.mark.parametrize("kind", RECORDS)
def test_a_newer_format_is_refused_whatever_it_holds(kind: str) -> None:
    for rest in ({}, {"name": 5, "kind": "hologram"}, json.loads(_encode(kind))):
        body = json.dumps({**rest, "format": 2}).encode()
        with pytest.raises(Unsupported, match=r"here has format 2.*pip install"):
            _decode(kind, body)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_cut_anywhere_is_corrupt(kind: str) -> None:
    body = _encode(kind).rstrip()
    for length in range(len(body)):
        with pytest.raises(Corrupt, match="here"):
            _decode(kind, body[:length])


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data())
def test_a_damaged_record_is_corrupt_or_another_record_but_never_a_surprise(
    kind: str, data: st.DataObject
) -> None:
    body = bytearray(_encode(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        found = _decode(kind, bytes(body))
    except (Corrupt, Unsupported):
        return
    assert type(found) is type(RECORDS[kind])


@given(st.sampled_from(sorted(RECORDS)), st.binary(max_size=60))
def test_any_bytes_are_corrupt(kind: str, body: bytes) -> None:
    with pytest.raises(Corrupt):
        _decode(kind, body)
    with pytest.raises(Corrupt):
        decode_version(body, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(RECORDS)), st.data())
def test_a_field_of_the_wrong_type_is_corrupt_or_harmless(kind: str, data: st.DataObject) -> None:
    record = json.loads(_encode(kind))
    field = data.draw(st.sampled_from(sorted(record)))
    record[field] = data.draw(json_values)
    with contextlib.suppress(Corrupt, Unsupported):
        _decode(kind, json.dumps(record).encode())


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("manifest", ["name"], "../../etc"),
        ("manifest", ["name"], "PPO"),
        ("manifest", ["groups", "params", "leaves", 0, "digest"], "blake3:../../etc"),
        ("manifest", ["groups", "params", "leaves", 1, "blob"], "blake3:" + "A" * 64),
        ("manifest", ["parents", 0, "name"], "con"),
        ("manifest", ["frozen_experts", "experts/nav", "digest"], "x"),
        ("manifest", ["files", "notes.md", "blob"], "x"),
        ("manifest", ["blobs"], {"../x": 3}),
        ("manifest", ["kind"], "hologram"),
        ("manifest", ["version"], "3"),
        ("pointer", ["ref"], "../latest"),
        ("pointer", ["digest"], "blake3:"),
        ("intent", ["digests", 0], "../../x"),
        ("intent", ["targets", 0, "name"], "a/../b"),
        ("manifest", ["report", "checks", 0, "op"], "~"),
        ("manifest", ["report", "station"], ""),
        ("report", ["name"], "../../etc"),
        ("report", ["digest"], "x"),
        ("report", ["report", "checks", 0, "value"], "7"),
        ("report", ["report", "checks", 1, "value"], {"$float": "7"}),
        ("report", ["report", "at"], "yesterday"),
        ("policy", ["rules", 0, "alias"], "latest"),
        ("policy", ["rules", 0, "alias"], "../prod"),
        ("policy", ["rules", 1], {"alias": "prod"}),
        ("policy", ["rules", 0, "checks", 0, "threshold"], {"$float": "nan"}),
        ("pointer_promoted", ["moves", 1, "gate", "policy"], "x"),
        ("gc_state", ["state"], "asleep"),
        ("gc_state", ["condemned", 0], "*"),
        ("snapshot", ["models"], []),
    ],
)
def test_a_hostile_record_stops_at_the_gate(kind: str, path: list[Any], value: object) -> None:
    record = json.loads(_encode(kind))
    inner = record
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(Corrupt, match="fsck"):
        _decode(kind, json.dumps(record).encode())


def test_a_record_nested_without_end_is_corrupt() -> None:
    for body in (b"[" * 100_000, b'{"format":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"):
        with pytest.raises(Corrupt):
            Intent.decode(body, "here")


def test_a_pointer_keeps_its_last_32_moves() -> None:
    pointer = UNSET
    for number in range(1, 41):
        pointer = pointer.moved(number, A, newest=number, by=BY, why="", write_id=f"w{number}")
    assert pointer.generation == UNSET.generation + 40
    assert [move.to_version for move in pointer.moves] == list(range(9, 41))
    assert [move.from_version for move in pointer.moves] == list(range(8, 40))


def test_now_is_utc_in_rfc_3339() -> None:
    assert len(now()) == len(AT)
    assert now().endswith("Z")
