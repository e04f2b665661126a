"""BrainMeta: what people write down about a brain, coerced to plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import date, datetime
from enum import Enum
from os import PathLike, fspath
from typing import Any, Final

from brainstore import notebook
from brainstore.address import full_name, parse_version
from brainstore.errors import BadParams, Corrupt
from brainstore.records import Manifest, now


@dataclass
class BrainMeta:
    """What is known about a brain. `save` fills in `name` and `version`.

    Values are coerced to plain ones: NumPy scalars and 0-d arrays to numbers,
    datetimes to RFC 3339, paths to text.

    Raises:
        BadParams: a field has a value that cannot be stored.
    """

    name: str = ""
    version: int = 0
    brain_type: str = ""
    input_dim: int = 0
    output_dim: int = 0
    hidden_dim: int = 0
    created_at: str = field(default_factory=now)
    training_steps: int = 0
    source_checkpoint: str | None = None
    notes: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    network_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = plain(getattr(self, each.name), f"meta.{each.name}")
            setattr(self, each.name, _checked(each.name, value))

    @property
    def full_name(self) -> str:
        return full_name(self.name, self.version)

    def record(self) -> dict[str, Any]:
        """Return what a manifest keeps: all fields but name and version, NaN marked."""
        self.__post_init__()  # fields may have been set since
        kept = {key: value for key, value in asdict(self).items() if key not in _IN_MANIFEST}
        marked: dict[str, Any] = _marked(kept)
        return marked

    def _repr_html_(self) -> str:
        rows = [(key, value) for key, value in asdict(self).items() if value not in ("", None)]
        return notebook.table(self.full_name, (), rows)

    @classmethod
    def of(cls, meta: object) -> BrainMeta:
        """Return `meta` itself, or a BrainMeta from a mapping or from None."""
        if isinstance(meta, cls):
            return meta
        if meta is None:
            return cls()
        if not isinstance(meta, Mapping):
            raise BadParams(
                f"meta: expected a BrainMeta, a dict or nothing, found {type(meta).__name__}"
            )
        unknown = sorted(map(str, set(meta) - {each.name for each in fields(cls)}))
        if unknown:
            raise BadParams(
                f"meta: unknown fields {', '.join(unknown)}; put your own under config, "
                "metrics or tags"
            )
        return cls(**meta)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> BrainMeta:
        """Return the metadata of a version; fields that are not known here are passed over.

        Raises:
            Corrupt: a field has a value that no save writes.
        """
        known = {each.name for each in fields(cls)}
        found = {key: unmarked(value) for key, value in manifest.meta.items() if key in known}
        try:
            return cls(**{**found, "name": str(manifest.name), "version": manifest.version})
        except BadParams as error:
            shown = f"{manifest.name}:{manifest.version}"
            raise Corrupt(
                f"the manifest of {shown} is damaged: {error}. Run: brainstore fsck {manifest.name}"
            ) from error


_IN_MANIFEST = ("name", "version")
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,), "brain_type": (str,), "created_at": (str,), "notes": (str,),
    "source_checkpoint": (str, type(None)), "version": (int,), "input_dim": (int,),
    "output_dim": (int,), "hidden_dim": (int,), "training_steps": (int,), "metrics": (dict,),
    "config": (dict,), "tags": (list,), "network_kwargs": (dict,),
}  # fmt: skip


def may_be(name: str, value: Any) -> bool:
    """False when a field of BrainMeta cannot have this value."""
    try:
        if name in _FIELD_TYPES:
            _checked(name, value)
    except BadParams:
        return False
    return True


def _checked(name: str, value: Any) -> Any:
    expected = _FIELD_TYPES[name]
    if int in expected and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, expected) and not isinstance(value, bool)
    if not fits:
        raise BadParams(
            f"meta.{name}: expected {expected[0].__name__}, found {type(value).__name__} "
            f"{str(value)[:60]!r}"
        )
    if isinstance(value, int) and value < 0:
        raise BadParams(f"meta.{name}: expected a number from 0 up, found {value}")
    if name == "metrics":
        for metric, number in value.items():
            if not isinstance(number, (int, float)):
                raise BadParams(f"meta.metrics[{metric!r}]: expected a number, found {number!r}")
    if name == "tags" and not all(isinstance(tag, str) for tag in value):
        raise BadParams(f"meta.tags: expected strings, found {value!r}")
    if name == "version" and value:
        parse_version(value)
    return value


_MAX_DEPTH = 64
_JSON_TYPES: Final = frozenset([bool, int, float])


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Return `value` in JSON's own types, with NaN and infinities still floats.

    Raises:
        BadParams: something in it has no JSON form, or it is nested deeper than 64 levels;
            `where` and the keys name it.
    """
    # What is nested too deep for JSON would make the index of the zoo unreadable.
    if depth > _MAX_DEPTH:
        raise BadParams(
            f"{where[:60]}…: nested deeper than {_MAX_DEPTH} levels; or does it contain itself?"
        )
    if isinstance(value, str):
        return _plain_text(value, where)
    if value is None or type(value) in _JSON_TYPES:
        return value
    if isinstance(value, Mapping):
        found = {
            _plain_key(key, where): plain(each, f"{where}[{key!r}]", depth + 1)
            for key, each in value.items()
        }
        if _is_mark(found):
            raise BadParams(f"{where}: {found} stands for a number in records; choose another key")
        return found
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [plain(each, f"{where}[{index}]", depth + 1) for index, each in enumerate(value)]
    return _plain_scalar(value, where, depth)


def _plain_scalar(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, Enum):
        return plain(value.value, where, depth)
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, PathLike):
        return _plain_text(str(fspath(value)), where)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), where, depth)
    shape = getattr(value, "shape", None)
    if shape == () and hasattr(value, "item"):
        return plain(value.item(), where, depth)
    found = f"an array of shape {shape}" if shape is not None else type(value).__name__
    raise BadParams(
        f"{where}: expected numbers, text, lists or dicts, found {found}; "
        "arrays belong in params or groups"
    )


def _plain_key(key: Any, where: str) -> str:
    if not isinstance(key, (str, int, float, bool)):
        raise BadParams(f"{where}: expected keys of text, found {type(key).__name__}")
    return _plain_text(str(key), where)


def _plain_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadParams(f"{where}: {text!a:.60} holds half of a character, so is no text") from None
    return str.__str__(text)  # an enum of texts has a `str` of its own


# JSON has no NaN; a mark keeps it apart from the text "nan".
def _marked(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, dict):
        return {key: _marked(each) for key, each in value.items()}
    return [_marked(each) for each in value] if isinstance(value, list) else value


def unmarked(value: Any) -> Any:
    """Return `value` with marked floats as the NaN or infinity that they were."""
    if isinstance(value, dict):
        if _is_mark(value):
            return float(value["$float"])
        return {key: unmarked(each) for key, each in value.items()}
    return [unmarked(each) for each in value] if isinstance(value, list) else value


def _is_mark(value: dict[str, Any]) -> bool:
    return value.keys() == {"$float"} and value["$float"] in ("nan", "inf", "-inf")
