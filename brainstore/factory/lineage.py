"""Where a version comes from and what became of it, as the pins of manifests tell.

Up go the pins themselves: name, number and digest. Down goes the index, which says who
named a number; the manifest of each must say so too. What is pinned and not there, or is
something else by now, is shown as such and not followed. No version is looked at twice,
so that records which pin each other in a circle come to an end like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from brainstore.address import Digest, Name
from brainstore.errors import BadParams, BadReference, Corrupt, Unsupported
from brainstore.index import Row
from brainstore.records import Manifest, Pin
from brainstore.versions import Version
from brainstore.zoo import Zoo

MOST_VERSIONS = 1000

State = Literal["live", "deleted", "missing", "changed", "damaged"]
Key = tuple[Name, int]


@dataclass(frozen=True)
class Node:
    """One version of a lineage, by name, number and digest.

    live      it is there, with this digest
    deleted   it was deleted, and may come back
    missing   the zoo never had it; another one may
    changed   another manifest has its number here
    damaged   its record cannot be read
    """

    version: Version
    state: State = "live"
    station: str | None = None

    @property
    def id(self) -> str:
        """What tells it from every other node: name, number and the start of the digest."""
        return f"{self.version}@{self.version.digest.short}"


@dataclass(frozen=True)
class Edge:
    """`child` was made from `parent`, or contains it as a frozen expert at `expert_path`.

    `pinned` is set where the child means another manifest of the parent's number.
    """

    parent: Version
    child: Version
    relation: str | None = None
    expert_path: str | None = None
    pinned: Digest | None = None

    @property
    def label(self) -> str:
        what = self.relation or "parent"
        if self.expert_path is not None:
            what = f"expert {self.expert_path}"
        return f"{what}, of another {self.parent}" if self.pinned else what


@dataclass(frozen=True)
class Lineage:
    """The versions around one, and how they were made from each other.

    `is_complete` is False where there were more versions than were asked for.
    """

    version: Version
    nodes: dict[Version, Node]
    edges: tuple[Edge, ...]
    is_complete: bool = True

    @property
    def ancestors(self) -> list[Node]:
        """What it was made from, nearest first."""
        return self._reached(lambda edge: (edge.child, edge.parent))

    @property
    def descendants(self) -> list[Node]:
        """What was made from it, nearest first."""
        return self._reached(lambda edge: (edge.parent, edge.child))

    def to_dict(self) -> dict[str, Any]:
        """Return the graph as plain data, with stable keys."""
        return {
            "version": str(self.version),
            "digest": str(self.version.digest),
            "is_complete": self.is_complete,
            "nodes": [_node_dict(node) for node in self.nodes.values()],
            "edges": [
                {
                    "parent": self.nodes[edge.parent].id,
                    "child": self.nodes[edge.child].id,
                    "relation": edge.relation,
                    "expert_path": edge.expert_path,
                    "pinned": edge.pinned,
                }
                for edge in self.edges
            ],
        }

    def dot(self) -> str:
        """Return the graph in Graphviz's language, from parents to children."""
        lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
        for node in self.nodes.values():
            label = "\n".join(filter(None, [str(node.version), node.station, _unusual(node)]))
            style = ", style=bold" if node.version == self.version else ""
            style += ", style=dashed" if node.state != "live" else ""
            lines.append(f"  {_quoted(node.id)} [label={_quoted(label)}{style}];")
        for edge in self.edges:
            ends = f"{_quoted(self.nodes[edge.parent].id)} -> {_quoted(self.nodes[edge.child].id)}"
            lines.append(f"  {ends} [label={_quoted(edge.label)}];")
        return "\n".join([*lines, "}"])

    def text(self) -> str:
        """Return the graph as two indented trees: made from, and became."""
        up = self._tree(self._true_edges(), lambda edge: (edge.child, edge.parent))
        down = self._tree(self.edges, lambda edge: (edge.parent, edge.child))
        lines = [_line(self.nodes[self.version], "")]
        lines += ["made from", *up] if up else ["made from nothing that is recorded"]
        lines += ["became", *down] if down else ["became nothing that is recorded"]
        return "\n".join(lines if self.is_complete else [*lines, "and more, not looked at"])

    def __str__(self) -> str:
        return self.text()

    def _reached(self, ends: Callable[[Edge], tuple[Version, Version]]) -> list[Node]:
        following = _following(self._true_edges(), ends)
        seen, frontier = {self.version}, [self.version]
        found: list[Node] = []
        while frontier:
            nexts = [other for each in frontier for _, other in following.get(each, ())]
            frontier = [version for version in dict.fromkeys(nexts) if version not in seen]
            seen.update(frontier)
            found += [self.nodes[version] for version in frontier]
        return found

    def _true_edges(self) -> list[Edge]:
        return [edge for edge in self.edges if not edge.pinned]

    def _tree(
        self, edges: Sequence[Edge], ends: Callable[[Edge], tuple[Version, Version]]
    ) -> list[str]:
        """Return a line for each edge on the way; a version is opened only once."""
        following = _following(edges, ends)
        lines: list[str] = []
        opened = {self.version}
        # Not recursive: a lineage may be a thousand versions deep.
        stack = [(1, edge, other) for edge, other in reversed(following.get(self.version, []))]
        while stack:
            depth, edge, version = stack.pop()
            again = version in opened and bool(following.get(version))
            more = " (see above)" if again else ""
            lines.append("  " * depth + _line(self.nodes[version], edge.label) + more)
            if not again:
                opened.add(version)
                nexts = reversed(following.get(version, []))
                stack += [(depth + 1, edge, other) for edge, other in nexts]
        return lines


def lineage(zoo: Zoo, version: Version, *, most: int = MOST_VERSIONS) -> Lineage:
    """Return what a version was made from, and what was made from it.

    Costs a read of each of these manifests, and one of the index.

    Args:
        most: how many versions are looked at; the nearest come first.

    Raises:
        BadParams: `most` is below 1.
        Corrupt: the index cannot be read; damaged manifests raise nothing.
    """
    if most < 1:
        raise BadParams(f"lineage: most: expected a number from 1 up, found {most}")
    search = _Search(zoo, most)
    search.climb(version)
    search.descend(version)
    edges = sorted(
        {
            edge
            for edge in search.edges
            if edge.parent in search.nodes and edge.child in search.nodes
        },
        key=lambda edge: (_order(edge.child), _order(edge.parent), edge.label),
    )
    return Lineage(version, search.nodes, tuple(edges), search.is_complete)


@dataclass
class _Search:
    """A walk from one version, both ways."""

    zoo: Zoo
    most: int
    nodes: dict[Version, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    is_complete: bool = True

    def climb(self, version: Version) -> None:
        """Follow the pins up."""
        frontier = [version]
        while frontier:
            found = self.zoo.in_parallel(self._opened, self._within(frontier))
            pinned: list[Version] = []
            for node, manifest in found:
                self.nodes[node.version] = node
                edges = list(_edges(node.version, manifest)) if manifest else []
                self.edges += edges
                pinned += [edge.parent for edge in edges]
            frontier = [each for each in dict.fromkeys(pinned) if each not in self.nodes]

    def descend(self, version: Version) -> None:
        """Follow the index down, as far as manifests agree with it."""
        rows = self.zoo.index().rows
        users = _users(rows)
        frontier = {_key(version): version}
        seen = set(frontier)
        while frontier:
            named: dict[Version, list[Version]] = {}
            for key in sorted(frontier):
                for user in users.get(key, ()):
                    if user not in seen and (found := _row_version(user, rows[user])):
                        named.setdefault(found, []).append(frontier[key])
            seen.update(map(_key, named))
            chosen = self._within(sorted(named, key=_order))
            opened = self.zoo.in_parallel(self._opened, chosen)
            frontier = {
                _key(node.version): node.version
                for node, manifest in opened
                if self._take_in(node, manifest, named[node.version])
            }

    def _take_in(self, node: Node, manifest: Manifest | None, named: Sequence[Version]) -> bool:
        """Add a version that the index says was made from these; True if it was indeed."""
        if manifest is None:
            self.nodes.setdefault(node.version, node)
            self.edges += [Edge(parent, node.version) for parent in named]
            return False
        pins = list(_edges(node.version, manifest))
        here = {_key(parent): parent for parent in named}
        strays = [
            replace(edge, parent=here[_key(edge.parent)], pinned=edge.parent.digest)
            for edge in pins
            if _key(edge.parent) in here and edge.parent not in named
        ]
        is_child = any(edge.parent in named for edge in pins)
        if is_child or strays:
            self.nodes.setdefault(node.version, node)
            self.edges += [*pins, *strays]
        return is_child

    def _within(self, versions: Sequence[Version]) -> Sequence[Version]:
        room = max(0, self.most - len(self.nodes))
        new = [version for version in versions if version not in self.nodes]
        self.is_complete &= len(new) <= room
        return [*[version for version in versions if version in self.nodes], *new[:room]]

    def _opened(self, version: Version) -> tuple[Node, Manifest | None]:
        """Return the node of a version, and its manifest if that is there."""
        versions = self.zoo.registry.versions
        try:
            stored = versions.stored(version.name, version.version)
            if stored is None:
                return Node(version, "missing"), None
            found = versions.opened(version.name, version.version, stored)
        except (Corrupt, Unsupported):
            return Node(version, "damaged"), None
        if found is None:
            return Node(version, "deleted"), None
        if found[0] != version:
            return Node(version, "changed"), None
        return Node(version, station=found[1].made_at), found[1]


def _edges(child: Version, manifest: Manifest) -> Iterator[Edge]:
    for pin in manifest.parents:
        yield Edge(_pinned(pin), child, pin.relation)
    for path, pin in sorted(manifest.frozen_experts.items()):
        yield Edge(_pinned(pin), child, pin.relation, path)


def _pinned(pin: Pin) -> Version:
    return Version(pin.name, pin.version, pin.digest)


def _users(rows: dict[Key, Row]) -> dict[Key, list[Key]]:
    """Return the versions that name each one as parent or expert, as the index has it."""
    users: dict[Key, list[Key]] = {}
    for key, row in rows.items():
        for named in [*_texts(row.get("parents")), *_texts(row.get("experts"))]:
            name, _, number = named.rpartition(":")
            try:
                place = (Name(name), int(number))
            except (BadReference, ValueError):
                continue  # fsck says that the row differs from its manifest
            users.setdefault(place, []).append(key)
    return users


def _texts(found: object) -> list[str]:
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _row_version(key: Key, row: Row) -> Version | None:
    try:
        return Version(*key, Digest(str(row.get("digest"))))
    except BadReference:
        return None  # as above


def _following(
    edges: Sequence[Edge], ends: Callable[[Edge], tuple[Version, Version]]
) -> dict[Version, list[tuple[Edge, Version]]]:
    found: dict[Version, list[tuple[Edge, Version]]] = {}
    for edge in edges:
        start, end = ends(edge)
        found.setdefault(start, []).append((edge, end))
    return found


def _key(version: Version) -> Key:
    return version.name, version.version


def _order(version: Version) -> tuple[str, int, str]:
    return version.name, version.version, version.digest


def _node_dict(node: Node) -> dict[str, Any]:
    version = node.version
    return {
        "id": node.id,
        "name": str(version.name),
        "version": version.version,
        "digest": str(version.digest),
        "state": node.state,
        "station": node.station,
    }


def _unusual(node: Node) -> str:
    return "" if node.state == "live" else node.state


def _line(node: Node, label: str) -> str:
    parts = [str(node.version), label, f"[{node.station}]" if node.station else "", _unusual(node)]
    return "  ".join(part for part in parts if part)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
