"""Reading blobs: bytes against names, headers against manifests."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from brainstore import dtypes, tensors
from brainstore.address import Digest, blob_key, damaged_key
from brainstore.errors import Corrupt, NotFound
from brainstore.fsck.check import SHOWN_USERS, missing_blob
from brainstore.fsck.findings import Course, Finding, Kind, Progress, Step
from brainstore.fsck.repair import RANGE_BYTES, set_aside
from brainstore.fsck.survey import LeafForm, Survey, each, stat_of
from brainstore.storage.base import Store
from brainstore.threads import Budget
from brainstore.zoo import Zoo

IN_FLIGHT_BYTES = 48 * 2**20


@dataclass(frozen=True, slots=True)
class Read:
    """What a blob was found to be: its digest, and its first bytes up to its tensors."""

    digest: Digest
    size_bytes: int
    head: bytes


def read_blob(
    store: Store, digest: Digest, size_bytes: int, went_on: Callable[[int], object]
) -> Read:
    """Return what stands in the blob's place, read in ranges of 8 MiB; each is told of."""
    hasher, head, wanted = blake3(), b"", 8
    for start in range(0, size_bytes, RANGE_BYTES):
        stop = min(start + RANGE_BYTES, size_bytes)
        chunk = store.get_range(blob_key(digest), start, stop)
        hasher.update(chunk)
        if len(head) < wanted:
            head += chunk
            wanted = 8 + int.from_bytes(head[:8], "little")
        went_on(stop - start)
    return Read(Digest("blake3:" + hasher.hexdigest()), size_bytes, head[:wanted])


class Content:
    """The bytes of all blobs, or of some."""

    def __init__(
        self,
        zoo: Zoo,
        sizes: Mapping[Digest, int],
        seen: Survey,
        *,
        repair: bool,
        progress: Progress | None = None,
    ) -> None:
        """`sizes` are those of the blobs to read; `seen` tells who needs them, and how."""
        self._zoo = zoo
        self._sizes = sizes
        self._repair = repair
        self._users = seen.users()
        self._wanted = seen.sizes()
        self._forms: dict[Digest, set[LeafForm]] = {}
        for version in seen.versions.values():
            for digest, forms in version.leaves.items():
                self._forms.setdefault(digest, set()).update(forms)
        step = Step("blobs", 0, len(sizes), total_bytes=sum(sizes.values()))
        self._course = Course(step, progress)
        self._budget = Budget(IN_FLIGHT_BYTES)

    def findings(self) -> list[Finding]:
        """Return what is damaged; with `repair`, it is moved aside by then."""
        found = each(self._zoo, self._look, sorted(self._sizes), self._course)
        return [finding for findings in found for finding in findings]

    def _look(self, digest: Digest) -> list[Finding]:
        try:
            read = self._read(digest, self._sizes[digest], self._told)
            if read.digest != digest:
                # Once more, before anything is done about it: memory and cables err too.
                read = self._read(digest, self._size_now(digest), lambda _: None)
            if read.digest != digest:
                return self._damaged(digest, read)
        except (NotFound, Corrupt):
            # Collected or moved meanwhile; the listing's findings say if that is damage.
            return []
        return [self._finding("leaf", digest, text) for text in self._form_problems(digest, read)]

    def _read(self, digest: Digest, size: int, went_on: Callable[[int], object]) -> Read:
        with self._budget.borrowed(min(size, RANGE_BYTES)):
            return read_blob(self._zoo.store, digest, size, went_on)

    def _told(self, size_bytes: int) -> None:
        self._course.go_on(size_bytes=size_bytes)

    def _size_now(self, digest: Digest) -> int:
        found = stat_of(self._zoo, blob_key(digest))
        if found is None:
            raise NotFound(f"blob {digest.short}… is gone")
        return found.size_bytes

    def _damaged(self, digest: Digest, read: Read) -> list[Finding]:
        text = f"hashes to {read.digest.short}… ({read.size_bytes:,} bytes)"
        if not self._repair:
            text += ". Run: brainstore fsck --repair, which moves it aside; with --from OTHER_ZOO "
            text += "it is fetched from there"
            return [self._finding("blob-damaged", digest, text, read.size_bytes)]
        set_aside(self._zoo, digest, read.size_bytes)
        text += f"; it is {damaged_key(digest)} now, so that it can be stored again"
        found = self._finding("blob-damaged", digest, text, read.size_bytes)
        users = self._users.get(digest, [])
        gone = [missing_blob(digest, self._wanted[digest], users)] if users else []
        return [replace(found, repaired=True), *gone]

    def _finding(self, kind: Kind, digest: Digest, text: str, size_bytes: int = 0) -> Finding:
        users = self._users.get(digest, [])
        if users:
            more = f" and {len(users) - SHOWN_USERS} more" if len(users) > SHOWN_USERS else ""
            text += f". It breaks {', '.join(users[:SHOWN_USERS])}{more}"
        else:
            text += ". No version needs it"
        return Finding(kind, blob_key(digest), text, size_bytes=size_bytes)

    def _form_problems(self, digest: Digest, read: Read) -> Iterator[str]:
        forms = self._forms.get(digest)
        if not forms:
            return
        try:
            entries = _entries(read)
        except Corrupt as error:
            yield str(error)
            return
        for name, dtype, shape in sorted(forms):
            if problem := _form_problem(entries.get(name), dtype, shape):
                yield f"entry {name[:22]}: {problem}"


def _entries(read: Read) -> dict[str, tensors.Entry]:
    # The header is judged against the whole length; pages of an anonymous map that are
    # never touched take no memory.
    whole = mmap.mmap(-1, max(1, read.size_bytes))
    whole[: len(read.head)] = read.head
    return tensors.parse_header(memoryview(whole)[: read.size_bytes])


def _form_problem(entry: tensors.Entry | None, dtype: str, shape: Sequence[int]) -> str:
    """Return in what the entry differs from the leaf that a manifest tells of."""
    if entry is None:
        return "is not in the blob"
    try:
        code, stored = dtypes.carrier(dtype, tuple(shape))
    except Corrupt as error:
        return str(error)
    # The data of a PRNG key has dimensions of its own after those of the key.
    found = entry.shape[: len(shape)] if dtypes.key_impl(dtype) else entry.shape
    if (code, stored) == (entry.dtype, found):
        return ""
    return (
        f"the manifest tells {dtype}{list(shape)}, carried by {code}{list(stored)}; the blob "
        f"has {entry.dtype}{list(entry.shape)}"
    )
