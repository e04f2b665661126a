"""The records of a zip archive as torch writes it, mapped and never inflated.

torch stores its records uncompressed, so that each is a range of the file. Anything that
would make a record take more than the file has is refused: compression, and records that
share bytes. `zipfile` reads the directory; where a record's bytes begin is told by the
header before them, which is the only part of the format that is read here.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from brainstore.errors import BadParams, Unsupported

MAX_DIRECTORY_BYTES = 1 << 25
"""A record takes about a hundred bytes of it, and some six hundred once it is read."""

_LOCAL = struct.Struct("<4s22x2H")
_ENCRYPTED, _UTF_8 = 1 << 0, 1 << 11
_DAMAGES = (
    zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError, OSError
)  # fmt: skip
"""What `zipfile` raises of an archive that is damaged, or of a form that torch never writes."""


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


def open_archive(path: Path, buffer: memoryview) -> Archive:
    """Return the records of the archive at `path`, which is mapped as `buffer`.

    Raises:
        BadParams: it is truncated or damaged.
        Unsupported: records are encrypted.
    """
    found: dict[str, Record] = {}
    for entry in _entries(path):
        name = entry.orig_filename
        if name in found:
            raise BadParams(f"the archive has two records {name!r:.80}")
        found[name] = _record(buffer, entry)
    _require_apart(found)
    return Archive(buffer, _without_folder(found))


class _Stream(io.FileIO):
    """A file of which no more is read at once than a directory may take."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise BadParams(
                f"the archive claims a directory of {size:,} bytes, expected at most "
                f"{MAX_DIRECTORY_BYTES:,}. Was it copied whole?"
            )
        return super().read(size)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with _Stream(path) as stream, zipfile.ZipFile(stream) as archive:
            return archive.infolist()
    except BadParams:
        raise
    except _DAMAGES as error:
        raise BadParams(f"the zip archive is damaged ({error}). Was it copied whole?") from error


def _record(buffer: memoryview, entry: zipfile.ZipInfo) -> Record:
    name, size = entry.orig_filename, entry.compress_size
    if entry.flag_bits & _ENCRYPTED:
        raise Unsupported(f"record {name!r:.80} is encrypted; decrypt the file first")
    is_compressed = entry.compress_type != zipfile.ZIP_STORED
    if size != entry.file_size and not is_compressed:
        raise BadParams(
            f"record {name!r:.80} has two sizes: {entry.file_size:,} and {size:,} bytes"
        )
    start = _start(buffer, entry)
    if start + size > len(buffer):
        raise BadParams(
            f"record {name!r:.80} claims {size:,} bytes at {start:,}, in a file of "
            f"{len(buffer):,}. Was it copied whole?"
        )
    return Record(start, start + size, entry.CRC, is_compressed)


def _start(buffer: memoryview, entry: zipfile.ZipInfo) -> int:
    """Return where the bytes of a record begin: after a header that names it too."""
    header = buffer[max(0, entry.header_offset) :]
    if entry.header_offset >= 0 and len(header) >= _LOCAL.size:
        mark, name_length, extra_length = _LOCAL.unpack_from(header)
        coding = "utf-8" if entry.flag_bits & _UTF_8 else "cp437"
        name = bytes(header[_LOCAL.size :][:name_length]).decode(coding, "replace")
        if mark == b"PK\3\4" and name == entry.orig_filename:
            start: int = entry.header_offset + _LOCAL.size + name_length + extra_length
            return start
    raise BadParams(
        f"record {entry.orig_filename!r:.80} is not where the directory of the archive has it, "
        f"at {entry.header_offset:,} of {len(buffer):,} bytes. Was it copied whole?"
    )


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
