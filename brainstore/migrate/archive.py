"""The records of a zip archive as torch writes it, mapped and never inflated.

torch stores its records uncompressed, so that each is a range of the file. Anything that
would make a record take more than the file has is refused: compression, and records that
share bytes. The format is that of the zip specification, with its 64-bit extension:

    records      a local header each, then the bytes
    directory    an entry for each record: name, sizes, CRC-32, where its header is
    end          where the directory is, and how many entries it has
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from brainstore.errors import BadParams, Unsupported

MAX_RECORDS = 1 << 18

_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT = 0xFFFF
_SIZE_IS_64, _ENCRYPTED, _STORED = 0xFFFFFFFF, 1, 0
_EXTRA_64 = 1


class Record(NamedTuple):
    """Where the bytes of a record are, and what they must hash to (0: nobody knows)."""

    start: int
    stop: int
    crc: int
    is_compressed: bool

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Archive:
    """The records of one archive, by name without the folder that holds them all."""

    buffer: memoryview
    records: dict[str, Record]
    _checked: set[str] = field(default_factory=set, init=False, repr=False)

    def find(self, name: str) -> Record:
        """Return where a record is.

        Raises:
            BadParams: there is no such record.
            Unsupported: it is compressed.
        """
        record = self.records.get(name)
        if record is None:
            raise BadParams(f"record {name!r:.80} is missing from the archive")
        if record.is_compressed:
            raise Unsupported(
                f"record {name!r:.80} is compressed, as torch never writes it. Unpack the archive, "
                "and pack it again without compression (zip -0)"
            )
        return record

    def read(self, name: str) -> memoryview:
        """Return the bytes of a record, a view of the file, once they match their CRC-32.

        Raises:
            BadParams: there is no such record, or it is damaged.
            Unsupported: it is compressed.
        """
        record = self.find(name)
        view = self.buffer[record.start : record.stop].toreadonly()
        # torch writes 0 where it was told not to compute them.
        if record.crc and name not in self._checked and zlib.crc32(view) != record.crc:
            raise BadParams(f"record {name!r:.80} does not match its CRC-32. Was it copied whole?")
        self._checked.add(name)
        return view


def open_archive(buffer: memoryview) -> Archive:
    """Return the records of the archive that fills `buffer`.

    Raises:
        BadParams: it is truncated or damaged.
        Unsupported: records are encrypted.
    """
    start, stop, count = _directory(buffer)
    found: dict[str, Record] = {}
    for name, record in _entries(buffer, start, stop, count):
        if name in found:
            raise BadParams(f"the archive has two records {name!r:.80}")
        found[name] = record
    _require_apart(found)
    return Archive(buffer, _without_folder(found))


def _directory(buffer: memoryview) -> tuple[int, int, int]:
    """Return where the directory starts and stops, and how many entries it has."""
    tail = bytes(buffer[max(0, len(buffer) - _END.size - _MAX_COMMENT) :])
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise BadParams("the end of the zip archive is missing. Was it copied whole?")
    _, disk, _, _, count, size, start, _ = _END.unpack_from(tail, at)
    end = len(buffer) - len(tail) + at
    if start == _SIZE_IS_64 or size == _SIZE_IS_64 or count == 0xFFFF:
        disk, count, size, start, end = _directory_64(buffer, end)
    if disk or count > MAX_RECORDS or start + size > end or count * _ENTRY.size > size:
        raise BadParams(
            f"the archive claims {count:,} records in a directory of {size:,} bytes at "
            f"{start:,}, which a file of {len(buffer):,} bytes cannot have"
        )
    return start, start + size, count


def _directory_64(buffer: memoryview, end: int) -> tuple[int, int, int, int, int]:
    at = end - _LOCATOR_64.size
    mark, _, where, _ = _unpack(_LOCATOR_64, buffer, at)
    if mark != b"PK\6\7":
        raise BadParams("the 64-bit end of the zip archive is missing")
    mark, _, _, _, disk, _, _, count, size, start = _unpack(_END_64, buffer, where)
    if mark != b"PK\6\6":
        raise BadParams("the 64-bit end of the zip archive is not where it must be")
    return disk, count, size, start, where


def _entries(buffer: memoryview, at: int, stop: int, count: int) -> Iterator[tuple[str, Record]]:
    for _ in range(count):
        (mark, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, where) = _unpack(
            _ENTRY, buffer, at
        )
        name_length, extra_length, comment_length = lengths
        after_name = at + _ENTRY.size + name_length
        next_at = after_name + extra_length + comment_length
        if mark != b"PK\1\2" or next_at > stop:
            raise BadParams("the directory of the zip archive is damaged")
        name = bytes(buffer[at + _ENTRY.size : after_name]).decode("utf-8", "replace")
        if flags & _ENCRYPTED:
            raise Unsupported(f"record {name!r:.80} is encrypted; decrypt the file first")
        extra = buffer[after_name : after_name + extra_length]
        size, packed, where = _sizes_64(extra, size, packed, where)
        if size != packed and method == _STORED:
            raise BadParams(f"record {name!r:.80} has two sizes: {size:,} and {packed:,} bytes")
        yield name, _record(buffer, name, where, packed, crc, method != _STORED)
        at = next_at


def _sizes_64(extra: memoryview, *sizes: int) -> list[int]:
    """Return the sizes, with those that do not fit 32 bits taken from the extra field."""
    wide = _extra_64(extra)
    return [next(wide) if size == _SIZE_IS_64 else size for size in sizes]


def _extra_64(extra: memoryview) -> Iterator[int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _EXTRA_64:
            body = extra[at + 4 : at + 4 + length]
            yield from (number for (number,) in struct.iter_unpack("<Q", body[: len(body) & ~7]))
        at += 4 + length
    raise BadParams("the zip archive lacks a 64-bit size that it refers to")


def _record(
    buffer: memoryview, name: str, where: int, size: int, crc: int, is_compressed: bool
) -> Record:
    mark, *_, name_length, extra_length = _unpack(_LOCAL, buffer, where)
    start = where + _LOCAL.size + name_length + extra_length
    if mark != b"PK\3\4" or start + size > len(buffer):
        raise BadParams(
            f"record {name!r:.80} claims {size:,} bytes at {start:,}, in a file of "
            f"{len(buffer):,}. Was it copied whole?"
        )
    return Record(start, start + size, crc, is_compressed)


def _unpack(form: struct.Struct, buffer: memoryview, at: int) -> tuple[Any, ...]:
    if not 0 <= at <= len(buffer) - form.size:
        raise BadParams("the zip archive points outside of itself. Was it copied whole?")
    return form.unpack_from(buffer, at)


def _require_apart(records: dict[str, Record]) -> None:
    # Records that share bytes are how a small archive claims to hold terabytes.
    end = 0
    for name, record in sorted(records.items(), key=lambda item: item[1]):
        if record.start < end:
            raise BadParams(f"record {name!r:.80} overlaps another one")
        end = record.stop


def _without_folder(records: dict[str, Record]) -> dict[str, Record]:
    folders = {name.partition("/")[0] for name in records}
    if len(folders) != 1 or not all("/" in name for name in records):
        return records
    return {name.partition("/")[2]: record for name, record in records.items()}
