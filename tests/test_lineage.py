"""Lineages: both ways, by digest, shown where broken, and finite whatever the records say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from zoos import opened, params

from brainstore import BadParams, BrainManager
from brainstore.address import Digest, Name, manifest_key
from brainstore.factory.lineage import Lineage
from brainstore.journal import save_fact
from brainstore.records import Pin
from brainstore.storage.memory import MemoryStore
from brainstore.versions import Version

NOWHERE = Digest.of(b"nowhere")


@pytest.fixture
def zoo() -> Iterator[BrainManager]:
    with opened(MemoryStore()) as zoo:
        yield zoo


@pytest.fixture
def line(zoo: BrainManager) -> BrainManager:
    """A zoo with a line: nav and arm, fused into swarm 1, tuned to 2 and 3, distilled to tiny."""
    nav, arm = params(1), params(2)
    zoo.save("nav", nav, station="s1")
    zoo.save("arm", arm, station="s1")
    zoo.save(
        "swarm",
        {"nav": nav, "arm": arm},
        parents={"nav:1": "fused", "arm:1": "fused"},
        frozen_experts={"nav": "nav:1"},
        station="s2",
    )
    zoo.save("swarm", {"nav": nav, "arm": params(3)}, parents={"swarm:1": "fine_tuned"})
    zoo.save("swarm", {"nav": nav, "arm": params(4)}, parents={"swarm:2": "fine_tuned"})
    zoo.save("tiny", params(5), parents={"swarm:3": "distilled"})
    zoo.save("stranger", params(6))
    return zoo


def plant(zoo: BrainManager, ref: str, pins: Sequence[Pin]) -> Version:
    """Store a manifest as a hostile writer would: no save made it, and it pins what it likes."""
    name, _, number = ref.partition(":")
    template = zoo.manifest("template")
    manifest = msgspec.structs.replace(
        template, name=Name(name), version=int(number), parents=tuple(pins), frozen_experts={}
    )
    body = manifest.encode()
    zoo.zoo.store.put(manifest_key(Name(name), int(number)), body)
    version = Version(Name(name), int(number), Digest.of(body))
    zoo.zoo.registry.journal.record(*save_fact(manifest, version.digest))
    return version


def pin(ref: str, digest: str, relation: str | None = None) -> Pin:
    name, _, number = ref.partition(":")
    return Pin(name=Name(name), version=int(number), digest=Digest(digest), relation=relation)


def names(nodes: Sequence[Any]) -> list[str]:
    return [str(node.version) for node in nodes]


def states(found: Lineage) -> dict[str, str]:
    return {str(node.version): node.state for node in found.nodes.values()}


def test_ancestors_and_descendants_come_nearest_first(line: BrainManager) -> None:
    found = line.lineage("swarm:2")
    assert names(found.ancestors) == ["swarm:1", "arm:1", "nav:1"]
    assert names(found.descendants) == ["swarm:3", "tiny:1"]
    assert found.is_complete
    assert names(line.lineage("nav").descendants) == ["swarm:1", "swarm:2", "swarm:3", "tiny:1"]
    assert names(line.lineage("stranger").ancestors) == []


def test_edges_tell_the_relation_and_the_expert(line: BrainManager) -> None:
    edges = line.lineage("swarm:1").edges
    told = {(str(edge.parent), str(edge.child), edge.label) for edge in edges}
    assert told == {
        ("nav:1", "swarm:1", "expert nav"),
        ("nav:1", "swarm:1", "fused"),
        ("arm:1", "swarm:1", "fused"),
        ("swarm:1", "swarm:2", "fine_tuned"),
        ("swarm:2", "swarm:3", "fine_tuned"),
        ("swarm:3", "tiny:1", "distilled"),
    }


def test_the_text_is_two_trees(line: BrainManager) -> None:
    assert line.lineage("swarm:2").text().splitlines() == [
        "swarm:2",
        "made from",
        "  swarm:1  fine_tuned  [s2]",
        "    arm:1  fused  [s1]",
        "    nav:1  expert nav  [s1]",
        "    nav:1  fused  [s1]",
        "became",
        "  swarm:3  fine_tuned",
        "    tiny:1  distilled",
    ]


def test_the_graph_is_plain_data_whose_edges_name_its_nodes(line: BrainManager) -> None:
    found = json.loads(json.dumps(line.lineage("swarm:2").to_dict()))
    ids = {node["id"] for node in found["nodes"]}
    assert len(ids) == len(found["nodes"]) == 6
    assert {edge["parent"] for edge in found["edges"]} <= ids
    assert {edge["child"] for edge in found["edges"]} <= ids
    assert found["digest"] == line.resolve("swarm:2").digest
    stations = {node["name"]: node["station"] for node in found["nodes"]}
    assert stations["nav"] == "s1"


_QUOTED = r'"(?:[^"\\]|\\.)*"'
_NODE = re.compile(rf"  ({_QUOTED}) \[label={_QUOTED}(, style=\w+)*\];")
_EDGE = re.compile(rf"  ({_QUOTED}) -> ({_QUOTED}) \[label={_QUOTED}\];")


def test_dot_declares_every_node_that_an_edge_names(line: BrainManager) -> None:
    line.save("odd", params(7), parents={"tiny": 'said "so"\\'})
    lines = line.lineage("swarm:2").dot().splitlines()
    assert (lines[0], lines[-1]) == ("digraph lineage {", "}")
    nodes = {match[1] for each in lines if (match := _NODE.fullmatch(each))}
    edges = [match.groups() for each in lines if (match := _EDGE.fullmatch(each))]
    assert len(lines) == 4 + len(nodes) + len(edges)
    assert {end for edge in edges for end in edge} == nodes
    assert len(nodes) == 7


def test_a_deleted_ancestor_is_shown_and_not_followed(line: BrainManager) -> None:
    line.delete("swarm:1")
    found = line.lineage("swarm:2")
    assert states(found) == {
        "swarm:2": "live", "swarm:1": "deleted", "swarm:3": "live", "tiny:1": "live",
    }  # fmt: skip
    assert "  swarm:1  fine_tuned  deleted" in found.text().splitlines()


def test_an_ancestor_of_another_zoo_is_missing_until_it_is_pulled(line: BrainManager) -> None:
    with opened(MemoryStore()) as other:
        line.push(other, ["swarm:3", "swarm:2", "swarm:1", "nav", "arm"])
        other.zoo.store.delete(manifest_key(Name("arm"), 1))
        assert states(other.lineage("swarm:1"))["arm:1"] == "missing"


def test_a_damaged_ancestor_is_shown_as_such(line: BrainManager) -> None:
    line.zoo.store.put(manifest_key(Name("arm"), 1), b"{}")
    assert states(line.lineage("swarm:1"))["arm:1"] == "damaged"


def test_a_parent_that_is_something_else_by_now_is_shown_from_both_ends(
    zoo: BrainManager,
) -> None:
    zoo.save("template", params(0))
    old = plant(zoo, "a:1", [])
    child = plant(zoo, "b:1", [pin("a:1", old.digest, "fine_tuned")])
    plant(zoo, "c:1", [pin("b:1", child.digest)])
    new = plant(zoo, "a:1", [pin("template:1", zoo.resolve("template:1").digest)])
    assert new.digest != old.digest

    up = zoo.lineage("b:1")
    assert states(up) == {"b:1": "live", "a:1": "changed", "c:1": "live"}
    assert names(up.ancestors) == ["a:1"]

    down = zoo.lineage("a:1")
    assert down.descendants == []
    assert "  b:1  fine_tuned, of another a:1" in down.text().splitlines()
    [edge] = [edge for edge in down.to_dict()["edges"] if edge["pinned"]]
    assert edge["pinned"] == old.digest


def test_versions_that_pin_each_other_in_a_circle_come_to_an_end(zoo: BrainManager) -> None:
    zoo.save("template", params(0))
    first = plant(zoo, "a:1", [pin("c:1", NOWHERE), pin("a:1", NOWHERE)])
    second = plant(zoo, "b:1", [pin("a:1", first.digest, "tuned"), pin("b:1", NOWHERE)])
    plant(zoo, "c:1", [pin("b:1", second.digest, "tuned"), pin("a:1", first.digest)])
    for ref in ("a:1", "b:1", "c:1"):
        found = zoo.lineage(ref)
        assert {"a:1", "b:1", "c:1"} <= {str(version) for version in found.nodes}
        assert found.is_complete
        assert found.text()
        assert found.dot()
        assert found.to_dict()
    assert names(zoo.lineage("a:1").descendants) == ["b:1", "c:1"]
    assert zoo.lineage("a:1").text().splitlines() == [
        "a:1",
        "made from",
        "  a:1  parent  changed",
        "  c:1  parent  changed",
        "became",
        "  b:1  tuned",
        "    c:1  tuned",
        "  c:1  parent",
    ]
    assert zoo.lineage("b:1").text().splitlines() == [
        "b:1",
        "made from",
        "  a:1  tuned",
        "    a:1  parent  changed",
        "    c:1  parent  changed",
        "  b:1  parent  changed",
        "became",
        "  c:1  tuned",
        "    a:1  parent, of another c:1",
        "      b:1  tuned (see above)",
        "      c:1  parent (see above)",
    ]


def test_what_the_index_says_and_no_manifest_does_is_not_believed(line: BrainManager) -> None:
    line.zoo.registry.journal.fold()
    found = line.zoo.store.get("registry.json")
    assert found is not None
    snapshot = json.loads(found.body)
    snapshot["models"]["stranger_v1"]["parents"] = ["nav:1", "no name:1", 5, "nav:x"]
    snapshot["models"]["tiny_v1"]["digest"] = "x"
    line.zoo.store.put("registry.json", json.dumps(snapshot).encode())
    assert names(line.lineage("nav").descendants) == ["swarm:1", "swarm:2", "swarm:3"]


def test_a_long_line_is_followed_to_its_end_or_as_far_as_one_likes(zoo: BrainManager) -> None:
    zoo.save("template", params(0))
    length = 1500
    last = plant(zoo, "a:1", [])
    for number in range(2, length + 1):
        last = plant(zoo, f"a:{number}", [pin(f"a:{number - 1}", last.digest)])
    whole = zoo.lineage(f"a:{length}", most=2 * length)
    assert len(whole.ancestors) == length - 1
    assert len(whole.text().splitlines()) == length + 2
    part = zoo.lineage("a:1", most=10)
    assert (len(part.nodes), part.is_complete) == (10, False)
    assert names(part.descendants) == [f"a:{number}" for number in range(2, 11)]
    assert part.text().endswith("and more, not looked at")
    with pytest.raises(BadParams, match="from 1 up"):
        zoo.lineage("a:1", most=0)
