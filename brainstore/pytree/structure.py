"""The structure of a pytree without its leaves, as JSON.

| form                                  | stands for                                    |
| ------------------------------------- | --------------------------------------------- |
| `"*"`                                 | a leaf                                        |
| `null`                                | None, which holds no leaf                     |
| `{"a": S, "b": S}`                    | a dict with text keys                         |
| `["dict", [K, S], …]`                 | a dict with other keys, in JAX's order        |
| `["OrderedDict", [K, S], …]`          | an OrderedDict, in its own order              |
| `["list", S, …]`, `["tuple", S, …]`   | a list, a tuple                               |
| `["namedtuple", "mod.Cls", [K, S], …]`| a namedtuple, by its fields                   |
| `["node", "mod.Cls", [K, S], …]`      | any other class that JAX can flatten          |

S is a structure. K is a key: text, an integer, true or false, `["float", "0.5"]`,
`["bytes", "00ff"]`, `["tuple", K, …]`. Leaves count in the order in which they stand
(of a dict with text keys: in the order of its keys), which is JAX's.

A class name is text to compare. It never makes Python import anything.
"""

from __future__ import annotations

import difflib
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from brainstore.errors import BadParams, Corrupt, NotFound

LEAF = "*"
MAX_DEPTH = 128
MAX_KEY_DEPTH = 16

T = TypeVar("T", bound=type)

_ESCAPES = {ord(c): f"%{ord(c):02X}" for c in ["/", "%", "#", "\x7f", *map(chr, range(32))]}
_registered: dict[str, type] = {}


def register(cls: T) -> T:
    """Let nodes recorded as instances of `cls` be loaded as such without a target.

    For namedtuples, and for classes that take their children as keyword arguments (or,
    where the children have no names, in order). May be used as a decorator. What a class
    keeps outside its leaves is not stored: it needs a default, or use a target.
    """
    _registered[class_name(cls)] = cls
    return cls


def class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True, slots=True)
class Node:
    """One container, opened: its kind, its class if it has one, its children by key."""

    kind: str
    children: list[tuple[Any, Any]]
    cls: str | None = None


def record(node: Node) -> Any:
    """Return the structure of a container whose children are structures already.

    The keys must come from `plain_key`.

    Raises:
        BadParams: a key stands twice, as only a class of its own kind can bring about.
    """
    if len(dict(node.children)) != len(node.children):
        raise BadParams(f"two children have the same key: {[key for key, _ in node.children]}")
    if node.kind in ("list", "tuple"):
        return [node.kind, *(child for _, child in node.children)]
    if node.kind == "dict" and _are_sorted_texts([key for key, _ in node.children]):
        return dict(node.children)
    pairs = [[_record_key(key), child] for key, child in node.children]
    return [node.kind, *pairs] if node.cls is None else [node.kind, node.cls, *pairs]


def _are_sorted_texts(keys: list[Any]) -> bool:
    return all(isinstance(key, str) for key in keys) and keys == sorted(keys)


def _record_key(key: Any) -> Any:
    match key:
        case float():
            return ["float", repr(key)]
        case bytes():
            return ["bytes", key.hex()]
        case tuple():
            return ["tuple", *map(_record_key, key)]
    return key


def plain_key(key: Any, depth: int = 0) -> Any:
    """Return the key as the built-in type that it will be loaded as: enums as their value.

    Raises:
        BadParams: it cannot be recorded.
    """
    match key:
        case bool() | bytes():
            return key
        case int() if -(2**63) <= key < 2**63:
            return int(key)
        case float():
            return float(key)
        case str() if _is_unicode(key):
            return str.__str__(key)
        case tuple() if depth < MAX_KEY_DEPTH:
            return tuple(plain_key(part, depth + 1) for part in key)
    raise BadParams(
        f"the key {key!a:.80} is of type {type(key).__name__}; expected text that is valid "
        "Unicode, a number of at most 64 bits, bytes, or a tuple of these, nested "
        f"{MAX_KEY_DEPTH} levels deep at most"
    )


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def key_text(key: Any) -> str:
    """Return a key as it stands in a path: never empty, without `/` and `#`."""
    text = key if isinstance(key, str) else repr(key)
    return text.translate(_ESCAPES) or "%"


def shown(path: str) -> str:
    """Return a path for people: the tree itself has an empty one."""
    return path or "the tree"


def open_node(structure: Any) -> Node | None:
    """Return the container that a structure describes, or None for a leaf.

    None itself counts as a container without children.

    Raises:
        Corrupt: it is no structure.
    """
    match structure:
        case "*":
            return None
        case None:
            return Node("None", [])
        case dict():
            return Node("dict", sorted(structure.items()))
        case ["list" | "tuple" as kind, *children]:
            return Node(kind, list(enumerate(children)))
        case ["dict" | "OrderedDict" as kind, *pairs]:
            return Node(kind, _parse_pairs(pairs))
        case ["namedtuple" | "node" as kind, str(cls), *pairs]:
            return Node(kind, _parse_pairs(pairs), cls)
    raise _corrupt(f"{reprlib.repr(structure)} is no container")


def _parse_pairs(pairs: list[Any]) -> list[tuple[Any, Any]]:
    children = [_parse_pair(pair) for pair in pairs]
    if len(dict(children)) != len(children):
        raise _corrupt("a key stands twice in one container")
    return children


def _parse_pair(pair: Any) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise _corrupt(f"{reprlib.repr(pair)} is no pair of a key and a child")
    return _parse_key(pair[0]), pair[1]


def _parse_key(key: Any) -> Any:
    try:
        match key:
            case bool() | str():
                return key
            case int() if -(2**63) <= key < 2**63:
                return key
            case ["float", str(text)]:
                return float(text)
            case ["bytes", str(text)]:
                return bytes.fromhex(text)
            case ["tuple", *parts]:
                return tuple(map(_parse_key, parts))
    except (ValueError, RecursionError):
        pass
    raise _corrupt(f"{reprlib.repr(key)} is no key")


def unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    """Return the tree of this structure with these leaves, in order.

    Dicts, lists, tuples and None come back as they were. A namedtuple or another class
    comes back as itself where it was registered, and as a plain dict otherwise.

    Raises:
        Corrupt: it is no structure, or has another number of leaves.
        BadParams: a registered class does not take what was recorded.
    """
    expected = count_leaves(structure)
    if expected != len(leaves):
        raise _corrupt(f"it has {expected:,} leaves, found {len(leaves):,}")
    return _build(structure, iter(leaves))


def count_leaves(structure: Any, depth: int = 0) -> int:
    """Return how many leaves a structure has.

    Raises:
        Corrupt: it is no structure, or is nested deeper than 128 levels.
    """
    if structure == LEAF:
        return 1
    if depth > MAX_DEPTH:
        raise _corrupt(f"it is nested deeper than {MAX_DEPTH} levels")
    node = open_node(structure)
    assert node is not None
    return sum(count_leaves(child, depth + 1) for _, child in node.children)


def _build(structure: Any, leaves: Iterator[Any]) -> Any:
    node = open_node(structure)
    if node is None:
        return next(leaves)
    children = [(key, _build(child, leaves)) for key, child in node.children]
    return _BUILDERS[node.kind](node, children)


def _build_instance(node: Node, children: list[tuple[Any, Any]]) -> Any:
    cls = _registered.get(node.cls or "")
    if cls is None:
        return dict(children)
    by_name = all(isinstance(key, str) for key, _ in children)
    try:
        return cls(**dict(children)) if by_name else cls(*(child for _, child in children))
    except (TypeError, ValueError) as error:
        raise BadParams(
            f"the registered class {node.cls} does not take the recorded children "
            f"{[key for key, _ in children]} ({error}). Load with a target instead"
        ) from error


_BUILDERS: dict[str, Callable[[Node, list[tuple[Any, Any]]], Any]] = {
    "None": lambda node, children: None,
    "dict": lambda node, children: dict(children),
    "OrderedDict": lambda node, children: OrderedDict(children),
    "list": lambda node, children: [child for _, child in children],
    "tuple": lambda node, children: tuple(child for _, child in children),
    "namedtuple": _build_instance,
    "node": _build_instance,
}


def subtree(structure: Any, path: str) -> tuple[Any, slice]:
    """Return the structure under a path, and which leaves of the whole are its own.

    The path is as in the paths of leaves: `encoder/dense_0`, list items by number. "" is
    the whole tree; the path of a leaf gives that leaf.

    Raises:
        NotFound: there is no such path; the message lists the keys that exist there.
        Corrupt: it is no structure.
    """
    start, walked = 0, ""
    for segment in filter(None, path.split("/")):
        skipped, structure = _descend(structure, segment, walked)
        start += skipped
        walked = f"{walked}/{segment}".lstrip("/")
    return structure, slice(start, start + count_leaves(structure))


def _descend(structure: Any, segment: str, walked: str) -> tuple[int, Any]:
    node = open_node(structure)
    children = [] if node is None else node.children
    skipped = 0
    for key, child in children:
        if key_text(key) == segment:
            return skipped, child
        skipped += count_leaves(child)
    raise _no_such_key(segment, walked, [key_text(key) for key, _ in children])


def _no_such_key(segment: str, walked: str, keys: list[str]) -> NotFound:
    place = f"under {walked!r}" if walked else "at the top of the tree"
    if not keys:
        return NotFound(f"there is no {segment!r} {place}: it has no keys")
    near = difflib.get_close_matches(segment, keys, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    return NotFound(f"there is no {segment!r} {place}; found {', '.join(keys)}{hint}")


def _corrupt(problem: str) -> Corrupt:
    return Corrupt(
        f"the recorded structure of a pytree is damaged: {problem}. Run: brainstore fsck"
    )
