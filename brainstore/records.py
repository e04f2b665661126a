"""The records of a zoo, frozen, and their canonical JSON.

A record encodes to the same bytes on every machine: fields in the order of the
class, mappings sorted by key, no white space where size matters. Decoding checks
types, names and digests, so that a hostile or damaged record stops here. Fields
that this version does not know are ignored; a higher `format` is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec

from brainstore.address import MAX_VERSION, Alias, Digest, Name
from brainstore.errors import Corrupt, Unsupported
from brainstore.quality import Gate, QualityReport, Rule, number_as_json

FORMAT = 1
KEPT_MOVES = 32
KEPT_CHANGES = 32
MAX_BLOB_BYTES = 2**44
MAX_TARGETS = 1024
"""Far more than the 32 versions that a sync copies under one intent."""

MAX_LEVELS = 300
"""A structure is nested 128 levels deep at most, and takes two of JSON for one of its own."""


def now() -> str:
    """Return the time in UTC as RFC 3339 with milliseconds, such as 2026-11-23T22:33:35.120Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Anything that is stored as JSON."""

    format: int = FORMAT

    @property
    def loose(self) -> Iterable[Any]:
        """What of the record is JSON of any form."""
        return ()

    def encode(self) -> bytes:
        """Return the canonical JSON of the record."""
        return _ENCODER.encode(self)

    def encode_readable(self) -> bytes:
        """Return the same, indented: for the records that people look at."""
        return msgspec.json.format(self.encode(), indent=1) + b"\n"

    @classmethod
    def decode(cls, body: bytes, where: str) -> Self:
        """Return the record in `body`; `where` names the object in errors.

        Raises:
            Unsupported: the record is of a newer format.
            Corrupt: it is truncated, malformed, or holds an ill-formed name or digest.
        """
        return _decode(body, cls, where)


R = TypeVar("R")


def _decode(body: bytes, kind: type[R] | Any, where: str) -> R:
    try:
        found = _DECODERS[_Format].decode(body).format
        if found <= FORMAT:
            record: R = _DECODERS[kind].decode(body)
            _require_shallow(record.loose if isinstance(record, Record) else (), MAX_LEVELS)
            return record
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(
            f"{where}: {len(body):,} bytes do not hold the record that belongs there "
            f"({error}). Run: brainstore fsck"
        ) from error
    raise Unsupported(
        f"{where} has format {found}; this brainstore reads up to {FORMAT}. "
        "Upgrade: pip install -U brainstore"
    )


def _require_shallow(values: Iterable[Any], levels: int) -> None:
    """Raise RecursionError if something is nested so deep that no save has written it.

    What can be read here could not be written again, or shown, where less of the stack is left.
    """
    for value in values:
        if value and isinstance(value, dict | list):
            if levels == 0:
                raise RecursionError(f"nested deeper than {MAX_LEVELS} levels")
            _require_shallow(value.values() if isinstance(value, dict) else value, levels - 1)


class _Format(msgspec.Struct):
    format: int


_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


def prepare(*kinds: Any) -> None:
    """Let these kinds of records be decoded; to be called where they are defined.

    msgspec finds out what a class is made of when it is first used, and where two threads
    do that at once the process crashes (0.22, 2026-11-24). A module is imported by one.
    """
    for kind in kinds:
        _DECODERS[kind] = msgspec.json.Decoder(kind, dec_hook=_from_text)


def _from_text(kind: type, text: Any) -> Any:
    # Digest, Name, Alias and Number are the only classes here that msgspec does not know.
    return kind(text)


def _to_text(value: Any) -> Any:
    return number_as_json(value) if isinstance(value, float) else str(value)


_ENCODER = msgspec.json.Encoder(enc_hook=_to_text, order="deterministic")


Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOB_BYTES)]
Number = Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
# A save tries the number after the newest, which must be one still.
Newest = Annotated[int, msgspec.Meta(ge=0, lt=MAX_VERSION)]


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a leaf: `index` holds [start, stop) for each dimension of the leaf."""

    index: tuple[tuple[int, int], ...]
    blob: Digest
    entry: str


class Leaf(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One array of a pytree and its place: a blob of its own, an entry of one, or pieces.

    Without `blob`, the leaf is the entry `tensor` of the blob that `digest` names.
    `scalar` is set where the leaf was a Python or NumPy scalar.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest
    blob: Digest | None = None
    entry: str = "tensor"
    pieces: tuple[Piece, ...] = ()
    scalar: str | None = None

    def blobs(self) -> list[Digest]:
        """Return the digests of the blobs that hold the leaf."""
        if self.pieces:
            return [piece.blob for piece in self.pieces]
        return [self.blob or self.digest]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A pytree: the structure, and the leaves in the order in which JAX flattens it."""

    structure: Any
    leaves: tuple[Leaf, ...]


class Pin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Another version, by name, number and digest; the digest decides.

    `subtree` is set for an expert of which only a part of the params is meant.
    """

    name: Name
    version: Number
    digest: Digest
    relation: str | None = None
    subtree: str | None = None


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that travels with a version, as a blob of exactly its bytes."""

    blob: Digest
    size_bytes: Size


class Manifest(Record, frozen=True, kw_only=True, tag="manifest", tag_field="kind"):
    """One version of a model. Its digest is that of its bytes as stored.

    `blobs` lists every blob that the version needs, with its size. `size_bytes` is the
    sum over the leaves and files; `new_bytes` is what the save had to store anew. `report`
    came with the save; those that were filed later are records of their own.
    """

    name: Name
    version: Number
    write_id: str
    created_at: str
    by: str
    meta: dict[str, Any]
    groups: dict[str, Group]
    parents: tuple[Pin, ...] = ()
    frozen_experts: dict[str, Pin] = {}
    station: str | None = None
    report: QualityReport | None = None
    files: dict[str, StoredFile] = {}
    blobs: dict[Digest, Size]
    provenance: dict[str, Any] = {}
    size_bytes: int = 0
    new_bytes: int = 0

    @property
    def loose(self) -> Iterable[Any]:
        return (self.meta, self.provenance, *(each.structure for each in self.groups.values()))

    @property
    def write_ids(self) -> set[str | None]:
        """The saves that this record is a sign of."""
        return {self.write_id}

    @property
    def made_at(self) -> str | None:
        """The station that made the version, or else that whose report came with it."""
        return self.station or (self.report.station if self.report else None)

    def row(self, digest: Digest) -> dict[str, Any]:
        """Return what the index keeps of the version: its metadata and a few figures."""
        return {
            **self.meta,
            "name": self.name,
            "version": self.version,
            "digest": digest,
            "by": self.by,
            "size_bytes": self.size_bytes,
            "new_bytes": self.new_bytes,
            "parents": [f"{pin.name}:{pin.version}" for pin in self.parents],
            "experts": sorted({f"{p.name}:{p.version}" for p in self.frozen_experts.values()}),
            **({"station": self.made_at} if self.made_at else {}),
        }


class Tombstone(Record, frozen=True, kw_only=True, tag="tombstone", tag_field="kind"):
    """What stands in a manifest's place from its first deletion on.

    `generation` counts deletions and restorations, so that facts about them order
    themselves: odd means deleted, even means restored. `record` is the manifest,
    byte for byte; a fence, which closes a number that nobody took, has none.
    """

    name: Name
    version: Number
    write_id: str
    generation: int
    at: str
    by: str
    why: str = ""
    replaced_write_id: str | None = None
    replaced_digest: Digest | None = None
    record: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def write_ids(self) -> set[str | None]:
        """The saves that this record is a sign of: of the version that it replaced."""
        return {self.replaced_write_id}

    @property
    def is_deleted(self) -> bool:
        return self.generation % 2 == 1

    @property
    def is_fence(self) -> bool:
        return self.replaced_digest is None


def decode_version(body: bytes, where: str) -> Manifest | Tombstone:
    """Return what stands at a manifest's key. Errors as for `Record.decode`."""
    return _decode(body, Manifest | Tombstone, where)


class StoredReport(Record, frozen=True, kw_only=True):
    """A report that was filed after the save, on exactly the manifest of this digest."""

    name: Name
    version: Number
    digest: Digest
    at: str
    by: str
    report: QualityReport


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the policy."""

    generation: int
    at: str
    by: str
    write_id: str
    why: str = ""


class Policy(Record, frozen=True, kw_only=True):
    """What aliases may name only if its rules are met. Every change is one more generation.

    The last 32 changes are kept, so that a writer whose reply was lost finds its own.
    """

    generation: int
    write_id: str
    rules: tuple[Rule, ...] = ()
    changes: tuple[Change, ...] = ()

    def changed(self, rules: tuple[Rule, ...], *, by: str, why: str, write_id: str) -> Policy:
        """Return the policy after a change to these rules."""
        generation = self.generation + 1
        change = Change(generation=generation, at=now(), by=by, write_id=write_id, why=why)
        return msgspec.structs.replace(
            self,
            generation=generation,
            write_id=write_id,
            rules=rules,
            changes=(*self.changes, change)[-KEPT_CHANGES:],
        )


class Move(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One move of a pointer. A version of None means that it named nothing.

    `undoes` is the write id of a move that this one takes back: what it was made for had
    ceased to be so while it was made.
    """

    from_version: Number | None = msgspec.field(name="from")
    to_version: Number | None = msgspec.field(name="to")
    to_digest: Digest | None = None
    at: str
    by: str
    write_id: str
    why: str = ""
    gate: Gate | None = None
    undoes: str | None = None


class Pointer(Record, frozen=True, kw_only=True):
    """`latest` or an alias. `newest` is the highest number ever taken (of `latest` only)."""

    name: Name
    ref: Alias
    version: Number | None
    digest: Digest | None
    newest: Newest = 0
    generation: int
    write_id: str
    moves: tuple[Move, ...] = ()

    def moved(
        self,
        version: int | None,
        digest: Digest | None,
        *,
        newest: int,
        by: str,
        why: str,
        write_id: str,
        gate: Gate | None = None,
        undoes: str | None = None,
    ) -> Pointer:
        """Return the pointer after a move to `version`."""
        move = Move(
            from_version=self.version,
            to_version=version,
            to_digest=digest,
            at=now(),
            by=by,
            write_id=write_id,
            why=why,
            gate=gate,
            undoes=undoes,
        )
        return msgspec.structs.replace(
            self,
            version=version,
            digest=digest,
            newest=newest,
            write_id=write_id,
            generation=self.generation + 1,
            moves=(*self.moves, move)[-KEPT_MOVES:],
        )

    def passed(self, version: int, digest: Digest, *, but: str | None = None) -> Gate | None:
        """Return the gate that the version last passed on its way here, or None.

        One that was forced, or taken back, does not count; nor does the move `but`.
        """
        void = {move.undoes for move in self.moves} | {but}
        gates = [
            move.gate
            for move in self.moves
            if (move.to_version, move.to_digest) == (version, digest)
            and move.gate
            and not move.gate.is_forced
            and move.write_id not in void
        ]
        return gates[-1] if gates else None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a running save or sync is about to create."""

    name: Name
    version: Number


# A collection may have to close the number of each.
Targets = Annotated[tuple[Target, ...], msgspec.Meta(max_length=MAX_TARGETS)]


class Intent(Record, frozen=True, kw_only=True):
    """What is under way: it protects the blobs that it names from gc, and others finish it.

    A save tries its target's number and those above it; one that is `exact`, of a sync, a
    restoration, a deletion or a move of an alias, concerns no other.
    """

    write_id: str
    created_at: str
    by: str
    targets: Targets
    digests: tuple[Digest, ...]
    exact: bool = False


Stage = Literal["idle", "condemned", "deleting"]


class GcState(Record, frozen=True, kw_only=True):
    """Where a collection stands. Writers leave condemned digests alone.

    The write id tells the state of one collector from the equal one of another: a lost
    reply is settled by the bytes.
    """

    state: Stage = "idle"
    generation: int = 0
    condemned: tuple[Digest, ...] = ()
    write_id: str = ""


class Marker(Record, frozen=True, kw_only=True):
    """The format of the zoo, and what its store was seen to support."""

    zoo_id: str
    created_at: str
    store: dict[str, Any]

    @property
    def loose(self) -> Iterable[Any]:
        return (self.store,)


class FactBody(Record, frozen=True, kw_only=True):
    """The body of a journal entry; the row describes the version of a save or restoration."""

    row: dict[str, Any] = {}
    at: str = ""
    by: str = ""

    @property
    def loose(self) -> Iterable[Any]:
        return (self.row,)


class AliasRow(msgspec.Struct, frozen=True, kw_only=True):
    """Where an alias points, by the latest known generation of its pointer."""

    version: Number | None
    generation: int


class Snapshot(Record, frozen=True, kw_only=True):
    """`registry.json`: the index as of the last fold.

    `tombstones` keeps the generation of each version that was ever deleted: odd while
    it is, even once it was restored.
    """

    folded_at: str
    models: dict[str, dict[str, Any]] = {}
    aliases: dict[str, dict[str, AliasRow]] = {}
    tombstones: dict[str, int] = {}

    @property
    def loose(self) -> Iterable[Any]:
        return self.models.values()


prepare(_Format, Manifest | Tombstone, *Record.__subclasses__())
