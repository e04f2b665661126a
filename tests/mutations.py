"""A small zoo with one of everything, and what an enemy might make of any object of it."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
from zoos import finish, opened, params

from brainstore import BrainManager
from brainstore.address import Alias, Digest, Fact, Name, intent_key, manifest_key, new_ulid
from brainstore.records import (
    FactBody,
    Group,
    Intent,
    Leaf,
    Manifest,
    Piece,
    Target,
    Tombstone,
    now,
)
from brainstore.storage.memory import MemoryStore
from brainstore.tensors import Tensor
from brainstore.versions import Version

CHECK = {"metric": "return", "value": 2.0, "op": ">=", "threshold": 1.0}
REPORT = {"station": "night", "checks": [CHECK]}


@functools.cache
def small_zoo() -> MemoryStore:
    """A zoo with one of everything that a zoo can hold. Not to be changed: copy it.

    ppo:1, whose leaves others share, with a group, a file and a report; ppo:2 made from it,
    with it as a frozen expert; ppo:3 deleted; ppo:4 deleted and restored; ppo:5 newest;
    team/nav:1 with a report of its save, 2 closed by a fence; cut:1 with a leaf in pieces.
    `prod` is promoted, `best` is moved by hand. Besides, a policy, two intents (of a save
    that died and of one that had committed), facts that are not folded, and leftovers.
    """
    store = MemoryStore()
    with opened(store) as zoo:
        shared = {**params(1), "tied": {"kernel": params(1)["dense"]["kernel"]}}
        groups = {"opt_state": {"mu": np.float32([1, 2]), "count": np.int32(3)}}
        meta = {"metrics": {"return": 1.5, "loss": float("nan")}, "config": {"lr": 0.1}}
        zoo.save("ppo", shared, {**meta, "tags": ["wide"]}, groups=groups, files={"notes": b"hi"})
        experts = {"dense": "ppo:1#dense"}
        zoo.save("ppo", shared, parents={"ppo:1": "fine_tuned"}, frozen_experts=experts)
        for seed in (3, 4, 5):
            zoo.save("ppo", params(seed), metrics={"return": float(seed)})
        zoo.delete("ppo:3", why="diverged")
        zoo.delete("ppo:4")
        zoo.undelete("ppo:4")
        zoo.save("team/nav", params(6), report=REPORT)
        zoo.save("whole", {"w": _HALVES[0], "x": _HALVES[1]})
        zoo.add_report("ppo:1", REPORT)
        zoo.set_policy([{"alias": "prod", "models": "ppo*", "stations": ["night"]}])
        zoo.promote("ppo:1", "prod")
        zoo.alias("ppo:2", "best")
        finish(zoo)
        _commit_pieces(zoo)
        fence = Tombstone(
            name=Name("team/nav"), version=2, write_id=new_ulid(), generation=1, at=now(), by=""
        )
        store.put(manifest_key(Name("team/nav"), 2), fence.encode())
        newest = zoo.manifest("ppo:5")
        _put_intent(store, newest, new_ulid(), 6)
        _put_intent(store, newest, newest.write_id, 5)
        for ref in ("ppo:4", "ppo:5"):
            version, manifest = zoo.resolve(ref), zoo.manifest(ref)
            kind, generation = ("restore", 2) if ref == "ppo:4" else ("save", 0)
            body = FactBody(row=manifest.row(version.digest), at=now())
            fact = Fact(new_ulid(), kind, version.name, version.version, generation)
            store.put(fact.key, body.encode())
        for fact in (
            Fact(new_ulid(), "move", Name("ppo"), 2, 1, Alias("best")),
            Fact(new_ulid(), "delete", Name("ppo"), 3, 1),
        ):
            store.put(fact.key, FactBody(at=now()).encode())
    store.put(f"probe/{new_ulid()}", b"1")
    store.put("damaged/" + "0" * 64, b"old")
    return store


_HALVES = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def _commit_pieces(zoo: BrainManager) -> None:
    """Commit cut:1, whose one leaf lies in two pieces, as a save by many processes will."""
    whole = zoo.manifest("whole:1")
    group = whole.groups["params"]
    pieces = tuple(
        Piece(index=((start, start + 2), (0, 3)), blob=leaf.blob or leaf.digest, entry=leaf.entry)
        for start, leaf in zip((0, 2), group.leaves, strict=True)
    )
    digest = Tensor.of(_HALVES.reshape(4, 3)).digest
    leaf = Leaf(path="w", dtype="float32", shape=(4, 3), digest=digest, pieces=pieces)
    manifest = msgspec.structs.replace(
        whole,
        name=Name("cut"),
        write_id=new_ulid(),
        groups={"params": Group(structure={"w": "*"}, leaves=(leaf,))},
    )
    zoo.zoo.store.put(manifest_key(manifest.name, 1), manifest.encode())
    version = Version(manifest.name, 1, Digest.of(manifest.encode()))
    zoo.zoo.committer.publish(version, manifest)
    zoo.zoo.committer.tidy()


def _put_intent(store: MemoryStore, manifest: Manifest, write_id: str, number: int) -> None:
    target = Target(name=manifest.name, version=number)
    intent = Intent(
        write_id=write_id, created_at=now(), by="", targets=(target,), digests=(*manifest.blobs,)
    )
    store.put(intent_key(write_id), intent.encode())


def mutated(choose: random.Random, store: MemoryStore, key: str) -> bytes:
    """Return other bytes for the object, from its own and from those of others."""
    body = store.get(key).body  # type: ignore[union-attr]  # it is one of its keys
    kinds: list[Callable[[], bytes]] = [lambda: _bytes(choose, body, store)]
    if body[:1] in (b"{", b"["):
        kinds += [lambda: _json(choose, body, store)] * 4
        kinds.append(lambda: _renamed(choose, body, store))
    return choose.choice(kinds)()


# Bytes


def _bytes(choose: random.Random, body: bytes, store: MemoryStore) -> bytes:
    start = choose.randint(0, len(body))
    stop = min(len(body), start + choose.choice([1, 2, 7, 64, len(body)]))
    other = store.get(choose.choice(_keys(store))).body  # type: ignore[union-attr]  # it is one
    at = choose.randint(0, len(other))
    return choose.choice(
        [
            lambda: b"",
            lambda: body[:start],
            lambda: body[:start] + body[stop:],
            lambda: body[:stop] + body[start:],
            lambda: _flipped(body, start),
            lambda: body[:start] + choose.choice(SNIPPETS) + body[start:],
            lambda: body[:start] + choose.choice(SNIPPETS) + body[stop:],
            lambda: body[:start] + other[at:],
            lambda: other,
            lambda: body + body,
        ]
    )()


def _renamed(choose: random.Random, body: bytes, store: MemoryStore) -> bytes:
    """Return the object with one digest, name or number changed wherever it stands in it."""
    old = choose.choice(re.findall(rb'"[^"]{1,80}"|\b[0-9]+\b', body) or [b"1"])
    number = str(choose.choice([0, 1, 2, 3, 6, 10**18])).encode()
    new = f'"{choose.choice([*_digests(store), "ppo", "x", "tensor"])}"'.encode()
    return body.replace(old, new if old.startswith(b'"') else number)


def _flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] if at < len(body) else body + b"\0"


SNIPPETS = [
    b"\0", b"\xff\xfe", b"{", b"}", b"[", b'"', b",", b"null", b"-", b"9" * 30, b"\\ud800", b" ",
    b"\n", b'"":', b"\xf4\x90\x80\x80", b"Infinity", b"1e999", b"[" * 2000, b'{"a":' * 2000,
    (2**60).to_bytes(8, "little"), (2**64 - 1).to_bytes(8, "little"),
]  # fmt: skip


def _keys(store: MemoryStore) -> list[str]:
    return [stat.key for stat in store.list("")]


# JSON


class Raw(str):
    """JSON text, to stand as it is."""


def nested(opening: str, depth: int, closing: str, inner: str = "1") -> Raw:
    return Raw(opening * depth + inner + closing * depth)


DEEP = [
    nested("[", 60, "]"),
    nested('{"a":', 120, "}"),
    nested('{"a":', 450, "}"),
    nested("[", 900, "]"),
    nested('{"a":', 960, "}"),
    nested("[", 980, "]"),
    nested('["tuple",', 400, "]", '"*"'),
    nested('["dict",[["tuple",1],', 200, "]]", '"*"'),
    nested("[", 100_000, "]"),
]
TEXTS = [
    "", "*", "x", "../../outside", "/etc/passwd", "a\0b", "a/../b", "..", "ppo", "team/nav",
    "ppo_v1", "latest", "prod", "blake3:", "blake3:" + "0" * 64, "blake3:" + "0" * 63,
    "BLAKE3:" + "0" * 64,
    "x" * 100_000, "\x1b[2J", "\u202e", "nan", "tensor", "float32", "key<a>", "complex128",
    "float64", "2026-11-24T00:00:00Z", "2026-11-24",
    "0001-01-01T00:00:00+23:59", "tombstone", "manifest", "idle", "deleting", "condemned",
    "__class__",
    "{0.__class__}", "%s" * 50, "node", "dict", "list",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 5, 6, 7, 10**18 - 1, 10**18, 2**31, 2**32, 2**44, 2**53 + 1, 2**60, 2**63 - 1,
    2**63, 2**64, -(2**63), 10**30, Raw("1" * 5000), -0.0, 0.5, 1e308, Raw("1e999"), Raw("-0"),
    Raw("1E400"),
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, [], {}, [[]], [{}], {"": {}}, [None], {"$float": "nan"}, {"$float": []},
    {"$float": "1"}, ["list"], ["tuple", "*"], ["namedtuple", "os.system", ["a", "*"]],
    ["dict", [[], "*"]], ["dict", [["bytes", "zz"], "*"]], ["dict", [["float", "nan"], "*"]],
    [-1], [0], [2**31, 2**31], [2**63, 2], [1] * 70, [[0, 3], [0, 1]], [[5, 2]], [[-1, 1]],
    Raw("NaN"), Raw("-Infinity"), Raw('"\\ud800"'), Raw('"\\u0000"'), Raw('{"a":1,"a":2}'),
]  # fmt: skip


def _json(choose: random.Random, body: bytes, store: MemoryStore) -> bytes:
    """Return the JSON with one thing or two replaced, removed, repeated or renamed."""
    tree = json.loads(body)
    for _ in range(choose.choice([1, 1, 1, 2, 5])):
        places = list(_places(tree))
        if not places:
            break
        holder, key = choose.choice(places)
        _change(choose, tree, holder, key, store)
    return _text(tree).encode(errors="surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value, without going into what stands as it is."""
    if isinstance(tree, Raw):
        return
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(pairs):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _change(choose: random.Random, tree: Any, holder: Any, key: Any, store: MemoryStore) -> None:
    kind = choose.choice(["replace"] * 5 + ["remove", "copy", "rename", "swap", "add"])
    if kind == "remove":
        del holder[key]
    elif kind == "copy":
        target, at = choose.choice(list(_places(tree)))
        target[at] = copy.deepcopy(holder[key])
    elif kind == "rename" and isinstance(holder, dict):
        holder[str(choose.choice([*TEXTS, *_digests(store)]))] = holder.pop(key)
    elif kind == "swap" and isinstance(holder, list):
        other = choose.randrange(len(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == "add" and isinstance(holder, list):
        holder.extend([_hostile(choose, store, holder[key])] * choose.choice([1, 3, 200]))
    elif kind == "add":
        holder[str(choose.choice(TEXTS))] = _hostile(choose, store, holder[key])
    else:
        holder[key] = _hostile(choose, store, holder[key])


def _hostile(choose: random.Random, store: MemoryStore, before: Any) -> Any:
    """Return a value in place of `before`: more often of the same type than not."""
    if isinstance(before, str) and before.startswith("blake3:") and choose.random() < 0.6:
        return choose.choice([*_digests(store), before[:-1], before + "0", before.upper()])
    if isinstance(before, str) and choose.random() < 0.5:
        return choose.choice([*TEXTS, before + "x", before[:-1], before + "/.."])
    if isinstance(before, int | float) and choose.random() < 0.6:
        near = [before + 1, before - 1, -before] if math.isfinite(before) else []
        return choose.choice([*NUMBERS, *near])
    return copy.deepcopy(choose.choice([*TEXTS, *NUMBERS, *OTHERS, *DEEP, *_digests(store)]))


def _digests(store: MemoryStore) -> list[str]:
    """Return digests of blobs that are there, and of objects that are none."""
    blobs = [f"blake3:{key[9:]}" for key in _keys(store) if key.startswith("blobs/")]
    manifests = [str(Digest.of(store.get(key).body)) for key in _keys(store) if "/v1/m" in key]  # type: ignore[union-attr]  # it is one
    return [*blobs, *manifests]


def _text(value: Any) -> str:
    """Return JSON; like `json.dumps`, but with raw text."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value)
