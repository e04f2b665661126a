"""Digests, names, references, and every key of the store, as pure functions.

This module is the one gate: a string that came from a user or from a stored
record becomes part of a key only through the types below, so that no record can
name anything outside its zoo.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace

from blake3 import blake3

from brainstore.errors import BadReference

MARKER_KEY = "brainstore.json"
SNAPSHOT_KEY = "registry.json"
POLICY_KEY = "policy.json"
GC_STATE_KEY = "gc/state.json"
JOURNAL_PREFIX = "journal/"
INTENTS_PREFIX = "intents/"
BLOBS_PREFIX = "blobs/"
MODELS_PREFIX = "models/"
PROBE_PREFIX = "probe/"
DAMAGED_PREFIX = "damaged/"

LATEST = "latest"
MAX_NAME_LENGTH = 128
MAX_VERSION = 10**18 - 1

_SEGMENT = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_VERSION_LIKE = re.compile(r"v[0-9]+")
_FULL_NAME = re.compile(r"(?P<name>.+)_v(?P<version>[1-9][0-9]{0,17})")
_VERSION = re.compile(r"v?(?P<version>[1-9][0-9]{0,17})")
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")
_DIGEST_PREFIX = re.compile(r"(?:blake3:)?(?P<hex>[0-9a-f]{8,64})")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_WINDOWS_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))]
)


class Digest(str):
    """`blake3:` and the 64 hex digits of the BLAKE3-256 hash of some bytes."""

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        if not _DIGEST.fullmatch(text):
            raise BadReference(f"digest {text!r}: expected 'blake3:' and 64 hex digits")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, content: bytes | memoryview) -> Digest:
        return cls("blake3:" + blake3(content).hexdigest())

    @property
    def hex(self) -> str:
        return self[7:]

    @property
    def short(self) -> str:
        return self[:15]


class Name(str):
    """The name of a model: lower-case segments joined by `/`, safe on every store."""

    __slots__ = ()

    def __new__(cls, text: str) -> Name:
        if isinstance(text, cls):
            return text
        if not isinstance(text, str):
            raise BadReference(f"name {text!r}: expected a string, found {type(text).__name__}")
        problem = _problem_with_name(text)
        if problem:
            raise BadReference(f"name {_shown(text)}: {problem}{_suggestion(text)}")
        return super().__new__(cls, text)


class Alias(str):
    """The name of a pointer: `latest`, or one that people move, such as `prod`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Alias:
        if isinstance(text, cls):
            return text
        if not isinstance(text, str) or not _SEGMENT.fullmatch(text) or len(text) > 64:
            raise BadReference(
                f"alias {_shown(text)}: expected at most 64 of a-z 0-9 . _ -, "
                "with a letter or digit at both ends"
            )
        if text.isdigit() or _VERSION_LIKE.fullmatch(text):
            raise BadReference(f"alias {text!r}: reads like a version number; add a letter")
        if _is_windows_device(text):
            raise BadReference(f"alias {text!r}: is a device name on Windows; choose another")
        return super().__new__(cls, text)


def _problem_with_name(text: str) -> str:
    if not text:
        return "is empty"
    if len(text) > MAX_NAME_LENGTH:
        return f"has {len(text)} characters; at most {MAX_NAME_LENGTH} are allowed"
    if not all(_SEGMENT.fullmatch(segment) for segment in text.split("/")):
        return (
            "expected segments of a-z 0-9 . _ - joined by '/', "
            "each with a letter or digit at both ends"
        )
    for segment in text.split("/"):
        if segment == "refs" or _VERSION_LIKE.fullmatch(segment):
            return f"the segment {segment!r} is reserved by the layout"
        if _is_windows_device(segment):
            return f"the segment {segment!r} is a device name on Windows"
    if _FULL_NAME.fullmatch(text):
        return "ends like a version; write a version as name:3"
    return ""


def _is_windows_device(segment: str) -> bool:
    return segment.split(".", 1)[0] in _WINDOWS_DEVICES


def _shown(text: object) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:60] + f"… ({len(str(text))} characters)"


def _suggestion(text: str) -> str:
    segments = []
    for raw in text.strip().lower().replace("\\", "/").split("/"):
        segment = re.sub(r"[^a-z0-9._-]+", "_", raw).strip("._-")
        if segment == "refs" or _VERSION_LIKE.fullmatch(segment) or _is_windows_device(segment):
            segment = f"model-{segment}"
        if segment:
            segments.append(segment)
    near = "/".join(segments)[:MAX_NAME_LENGTH].rstrip("/._-")
    near = re.sub(r"_v(\d+)$", r"-v\1", near)
    return "" if _problem_with_name(near) else f". The nearest good name is {near!r}"


def parse_version(version: object) -> int:
    """Return a version number from 3, "3" or "v3" (NumPy integers count as numbers)."""
    if isinstance(version, bool):
        raise BadReference(f"version {version!r}: expected a number from 1 up")
    if isinstance(version, str) and (match := _VERSION.fullmatch(version)):
        return int(match["version"])
    try:
        number = version.__index__()  # type: ignore[attr-defined]  # any integer type
    except (AttributeError, TypeError):
        raise BadReference(f"version {_shown(version)}: expected a number from 1 up") from None
    if not 1 <= number <= MAX_VERSION:
        raise BadReference(f"version {number}: expected a number from 1 up")
    return int(number)


def full_name(name: str, version: int) -> str:
    return f"{name}_v{version}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a string such as `s3://team/zoo::ppo_swarm:prod~1#encoder` names.

    Exactly one of these holds: `version` is set; `alias` is set (perhaps with
    `back` steps into its past); only `digest` is set, which the index resolves.
    """

    name: Name
    version: int | None = None
    alias: Alias | None = None
    back: int = 0
    digest: str | None = None
    subtree: str | None = None
    zoo: str | None = None

    def __str__(self) -> str:
        text = f"{self.zoo}::{self.name}" if self.zoo else str(self.name)
        if self.version is not None:
            text += f":{self.version}"
        elif self.alias is not None:
            text += f":{self.alias}" + (f"~{self.back}" if self.back else "")
        if self.digest:
            text += f"@blake3:{self.digest}"
        return text + (f"#{self.subtree}" if self.subtree else "")


def parse_reference(text: object, version: object = None) -> Reference:
    """Return the Reference that `text` means; `version` may add a number or an alias.

    Raises:
        BadReference: the text does not parse, or names a version twice.
    """
    if isinstance(text, Reference):
        reference = text
    elif isinstance(text, str):
        reference = _parse_reference(text)
    else:
        raise BadReference(
            f"reference {_shown(text)}: expected a string such as 'ppo_swarm:3', "
            f"found {type(text).__name__}"
        )
    return reference if version is None else _with_version(reference, version)


def _parse_reference(text: str) -> Reference:
    zoo, found, rest = text.rpartition("::")
    if found and not zoo:
        raise BadReference(f"reference {_shown(text)}: the zoo before '::' is missing")
    if "://" in rest:
        place, _, last = rest.rpartition("/")
        raise BadReference(
            f"reference {_shown(text)}: '::' stands between a zoo and a model, such as in "
            f"{place}::{last or 'ppo_swarm'}"
        )
    rest, _, subtree = rest.partition("#")
    rest, pinned, digest_text = rest.partition("@")
    digest = _parse_digest_prefix(digest_text, text) if pinned else None
    name_text, selected, selector = rest.partition(":")
    if selected and not selector:
        raise BadReference(f"reference {_shown(text)}: nothing stands after ':'")
    version, alias, back = _parse_selector(selector) if selected else (None, None, 0)
    if not selected and (match := _FULL_NAME.fullmatch(name_text)):
        name_text, version = match["name"], int(match["version"])
    if version is None and alias is None and digest is None:
        alias = Alias(LATEST)
    return Reference(Name(name_text), version, alias, back, digest, subtree or None, zoo or None)


def _parse_selector(selector: str) -> tuple[int | None, Alias | None, int]:
    if _VERSION.fullmatch(selector):
        return parse_version(selector), None, 0
    alias, stepped, steps = selector.partition("~")
    if ":" in alias:
        raise BadReference(f"reference ':{selector}': a second ':'; name one version or alias")
    if selector.isdigit() or _VERSION_LIKE.fullmatch(selector):
        raise BadReference(f"version {_shown(selector)}: expected a number from 1 up")
    if stepped and not re.fullmatch(r"[1-9]\d?", steps):
        raise BadReference(f"reference ':{selector}': expected '~' and a number of steps, 1 to 99")
    return None, Alias(alias), int(steps) if stepped else 0


def parse_digest_prefix(text: str) -> str:
    """Return the hex digits of a digest, or of its beginning: `blake3:3fa9c1d2`, `3fa9c1d2`.

    Raises:
        BadReference: it is none, or has less than 8 digits.
    """
    match = _DIGEST_PREFIX.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise BadReference(f"digest {_shown(text)}: expected 'blake3:' and 8 to 64 hex digits")
    return match["hex"]


def _parse_digest_prefix(text: str, whole: str) -> str:
    match = _DIGEST_PREFIX.fullmatch(text)
    if match is None:
        raise BadReference(
            f"reference {_shown(whole)}: expected '@blake3:' and 8 to 64 hex digits of the "
            "manifest's digest"
        )
    return match["hex"]


def _with_version(reference: Reference, version: object) -> Reference:
    alias_is_default = reference.alias == LATEST and not reference.back
    if reference.version is not None or (reference.alias is not None and not alias_is_default):
        raise BadReference(
            f"'{reference}' names a version already, and version={_shown(version)} was given "
            "too; drop one"
        )
    if isinstance(version, str):
        number, alias, back = _parse_selector(version)
        return replace(reference, version=number, alias=alias, back=back)
    return replace(reference, version=parse_version(version), alias=None)


def manifest_key(name: Name, version: int) -> str:
    return f"{MODELS_PREFIX}{name}/v{version}/manifest.json"


def report_key(name: Name, version: int, ulid: str) -> str:
    return f"{reports_prefix(name, version)}{ulid}.json"


def reports_prefix(name: Name, version: int) -> str:
    return f"{MODELS_PREFIX}{name}/v{version}/reports/"


def pointer_key(name: Name, alias: Alias) -> str:
    return f"{MODELS_PREFIX}{name}/refs/{alias}.json"


def blob_key(digest: Digest) -> str:
    return f"{BLOBS_PREFIX}{digest.hex[:2]}/{digest.hex}"


def damaged_key(digest: Digest) -> str:
    return f"{DAMAGED_PREFIX}{digest.hex}"


def damaged_record_key(key: str, body: bytes) -> str:
    """Return where a damaged record is kept that stood at `key`; other bytes lie elsewhere."""
    return f"{DAMAGED_PREFIX}{key}~{Digest.of(body).hex[:16]}"


def intent_key(ulid: str) -> str:
    return f"{INTENTS_PREFIX}{ulid}.json"


def parse_intent_key(key: str) -> str | None:
    """Return the write id, or None when `key` is no intent's."""
    write_id = key.removeprefix(INTENTS_PREFIX).removesuffix(".json")
    return write_id if is_ulid(write_id) and key == intent_key(write_id) else None


def parse_manifest_key(key: str) -> tuple[Name, int] | None:
    """Return (name, version), or None when `key` is no manifest's."""
    match = re.fullmatch(rf"{MODELS_PREFIX}(.+)/v([1-9][0-9]{{0,17}})/manifest\.json", key)
    try:
        return (Name(match[1]), int(match[2])) if match else None
    except BadReference:
        return None


def parse_report_key(key: str) -> tuple[Name, int, str] | None:
    """Return (name, version, ulid), or None when `key` is no report's."""
    version, found, file = key.rpartition("/reports/")
    owner = parse_manifest_key(f"{version}/manifest.json") if found else None
    ulid = file.removesuffix(".json")
    is_report = owner is not None and is_ulid(ulid) and key == report_key(*owner, ulid)
    return (*owner, ulid) if owner and is_report else None


def parse_pointer_key(key: str) -> tuple[Name, Alias] | None:
    """Return (name, alias), or None when `key` is no pointer's."""
    match = re.fullmatch(rf"{MODELS_PREFIX}(.+)/refs/([^/]+)\.json", key)
    try:
        return (Name(match[1]), Alias(match[2])) if match else None
    except BadReference:
        return None


def parse_blob_key(key: str) -> Digest | None:
    """Return the digest, or None when `key` is no blob's."""
    match = re.fullmatch(rf"{BLOBS_PREFIX}([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})", key)
    return Digest("blake3:" + match[2]) if match else None


@dataclass(frozen=True, slots=True)
class Fact:
    """One finished operation, as the key of its journal entry tells it.

    `kind` is save, delete, restore or move. `generation` orders deletions and
    restorations of one version, and moves of one alias; a save has 0. A move to
    version 0 means that the alias was removed.
    """

    ulid: str
    kind: str
    name: Name
    version: int
    generation: int = 0
    alias: Alias | None = None

    @property
    def key(self) -> str:
        # "+" cannot stand in a name, and a "/" would make folders in the journal.
        parts = [self.ulid, self.kind, self.name.replace("/", "+"), str(self.version)]
        if self.kind != "save":
            parts.append(str(self.generation))
        if self.alias is not None:
            parts.append(self.alias)
        return JOURNAL_PREFIX + "~".join(parts)


_FACT = re.compile(
    r"(?P<ulid>[0-9A-Z]{26})~(?:(?P<save>save)~(?P<name>[^~]+)~(?P<version>[0-9]{1,18})"
    r"|(?P<kind>delete|restore|move)~(?P<name2>[^~]+)~(?P<version2>[0-9]{1,18})"
    r"~(?P<generation>[0-9]{1,18})"
    r"(?:~(?P<alias>[^~]+))?)"
)


def parse_fact_key(key: str) -> Fact | None:
    """Return the fact, or None when `key` is no journal entry of a kind known here."""
    match = _FACT.fullmatch(key.removeprefix(JOURNAL_PREFIX))
    if match is None or (match["kind"] == "move") != (match["alias"] is not None):
        return None
    try:
        name = Name((match["name"] or match["name2"]).replace("+", "/"))
        alias = Alias(match["alias"]) if match["alias"] else None
    except BadReference:
        return None
    version, generation = int(match["version"] or match["version2"]), int(match["generation"] or 0)
    fact = Fact(match["ulid"], match["save"] or match["kind"], name, version, generation, alias)
    # Leading zeros: nothing would be found under the key that we should write it with.
    if fact.key != key or not (version or alias):
        return None
    return fact


def is_ulid(text: str) -> bool:
    return _ULID.fullmatch(text) is not None


def new_ulid() -> str:
    """Return 26 characters that sort by time: 48 bits of milliseconds, 80 random bits.

    Source: the ULID specification, Crockford's base 32.
    """
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return _ulid(value)


def ulid_after(last: str) -> str:
    """Return a new ULID that sorts after `last`, also within a millisecond or after a clock
    that was ahead of ours.

    Raises:
        BadReference: `last` is the highest that there can be.
    """
    new = new_ulid()
    if new > last:
        return new
    value = 1
    for place, character in enumerate(reversed(last)):
        value += _CROCKFORD.index(character) << 5 * place
    if value >> 128:
        raise BadReference(f"ULID {last}: no other comes after it")
    return _ulid(value)


def _ulid(value: int) -> str:
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
