"""A zoo in a bucket of AWS S3, or of a server that speaks its language.

Conditional writes (If-None-Match, If-Match) are decided by the server. Each is sent
once, by a client that retries nothing; what its reply means, and what a missing reply
means, is settled here by reading the object back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from brainstore.address import BLOBS_PREFIX, DAMAGED_PREFIX
from brainstore.errors import (
    AlreadyExists,
    BadParams,
    BadReference,
    BrainstoreError,
    Conflict,
    Corrupt,
    NotFound,
    ReadOnly,
    StoreUnavailable,
)
from brainstore.storage.base import (
    ABSENT,
    ANYTHING,
    Body,
    Expect,
    Object,
    Stat,
    Store,
    Token,
    pieces,
    require_gettable,
    size_bytes,
)
from brainstore.storage.compare import Comparison
from brainstore.storage.s3_clients import Clients
from brainstore.storage.s3_errors import (
    FAILURES,
    Explainer,
    Reply,
    code_of,
    field_of,
    is_missing_key,
    meaning_of,
)
from brainstore.storage.s3_upload import LARGE_BYTES, PartsUpload, Upload, WholeUpload

Result = TypeVar("Result")

_ATTEMPTS = 6
_READ_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 20
_UPLOAD = "?uploadId="
_SENT_IN_PARTS = (BLOBS_PREFIX, DAMAGED_PREFIX)
_KEYS_PER_DELETION = 1000  # what S3 takes in one request


@dataclass(frozen=True, slots=True)
class _Found:
    """What reading back found: a state, and whether its bytes are those we sent."""

    token: Token
    is_ours: bool


class S3Store(Store):
    """A bucket, or what is below a prefix of it. Tokens are ETags.

    `requests` counts HTTP requests by the name of their operation, such as PutObject.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`.
        storage_options: for `s3fs.S3FileSystem`; the usual AWS environment variables
            and profiles hold for what is left out.

    Raises:
        Unsupported: s3fs is missing, or botocore is too old.
    """

    parallelism = 16
    is_remote = True

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.bucket, self._prefix = _split(url)
        self.url = f"s3://{self.bucket}/{self._prefix}".rstrip("/")
        self.requests = Counter()
        try:
            self._clients = Clients(dict(storage_options or {}), self.requests)
        except (BotoCoreError, TypeError, KeyError, ValueError) as error:
            raise self._cannot_open(error) from error

    @property
    def identity(self) -> str:
        return f"{self._clients.configured_endpoint} {self.url}"

    def get(self, key: str) -> Object | None:
        return self._call("read", key, lambda: self._read(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        if start == stop:
            return self._get_nothing(key, stop)
        byte_range = f"bytes={start}-{stop - 1}"
        found = self._call("read", key, lambda: self._read(key, Range=byte_range))
        if found is None:
            raise NotFound(f"{self.url} has no object {key}")
        if len(found.body) != stop - start:
            raise self._too_short(key, start, stop, len(found.body))
        return found.body

    def put(self, key: str, body: bytes | Body, *, expect: Token | Expect = ANYTHING) -> Token:
        return self._call("write", key, lambda: self._put(key, body, expect))

    def stat(self, key: str) -> Stat | None:
        return self._call("read", key, lambda: self._stat(key))

    def list(self, prefix: str) -> Iterator[Stat]:
        found = self._list_pages(prefix)
        # SeaweedFS lists `a/b` before `a-b`, as folders; AWS promises the order of keys.
        yield from sorted(found, key=_by_key) if self._clients.is_outside_aws else found

    def _list_pages(self, prefix: str) -> Iterator[Stat]:
        marker: dict[str, str] = {}
        while True:
            page = self._call("list", prefix, partial(self._list_page, prefix, marker))
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    key = entry["Key"][len(self._prefix) :]
                    yield Stat(key, entry["Size"], entry["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            marker = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        self._call("delete", key, lambda: self._delete(key))

    def leftovers(self) -> Iterator[Stat]:
        ours = tuple(self._prefix + prefix for prefix in _SENT_IN_PARTS)
        marker: dict[str, str] = {}
        while True:
            page = self._call("list", "", partial(self._uploads_page, marker))
            for upload in page.get("Uploads", ()):
                # What else is in the bucket is not ours to end: a zoo may be all of it.
                if upload["Key"].startswith(ours):
                    key = f"{upload['Key'][len(self._prefix) :]}{_UPLOAD}{upload['UploadId']}"
                    yield Stat(key, 0, _begun_at(upload))
            # SeaweedFS 4.48 goes on from the id alone, and names no key.
            names = ("KeyMarker", "UploadIdMarker")
            after = {name: found for name in names if (found := page.get(f"Next{name}"))}
            if not page.get("IsTruncated") or after in ({}, marker):
                return
            marker = after

    def discard(self, leftover: Stat) -> None:
        key, _, upload_id = leftover.key.rpartition(_UPLOAD)
        if not key or not upload_id:
            super().discard(leftover)
        self._call("delete", key, lambda: self._abort(key, upload_id))

    def delete_all(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _KEYS_PER_DELETION):
            chunk = keys[start : start + _KEYS_PER_DELETION]
            self._call("delete", chunk[0], partial(self._delete_once, chunk))

    def access(self) -> dict[str, str]:
        return self._call("read", "", self._clients.access)

    def close(self) -> None:
        self._clients.close()

    def _target(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + key}

    async def _read(self, key: str, **arguments: str) -> Object | None:
        for attempt in range(_READ_ATTEMPTS):
            reply = await self._unless_missing("get_object", key, **arguments)
            if reply is None:
                return None
            try:
                async with field_of(reply, "Body") as stream:
                    require_gettable(f"{self.url}/{key}", reply.get("ContentLength", 0))
                    return Object(await stream.read(), Token(field_of(reply, "ETag")))
            except FAILURES:
                # botocore retries what comes before the body, not the body.
                if attempt == _READ_ATTEMPTS - 1:
                    raise
                await _pause(attempt)
        raise AssertionError("unreachable")

    async def _stat(self, key: str) -> Stat | None:
        reply = await self._unless_missing("head_object", key)
        if reply is None:
            return None
        size = int(field_of(reply, "ContentLength"))
        return Stat(key, size, field_of(reply, "LastModified").timestamp())

    async def _unless_missing(
        self, operation: str, key: str, **arguments: str
    ) -> dict[str, Any] | None:
        call = getattr(self._clients.ordinary, operation)
        try:
            reply: dict[str, Any] = await call(**self._target(key), **arguments)
        except ClientError as failure:
            if is_missing_key(failure):
                return None
            raise
        return reply

    async def _list_page(self, prefix: str, marker: dict[str, str]) -> dict[str, Any]:
        page: dict[str, Any] = await self._clients.ordinary.list_objects_v2(
            Bucket=self.bucket, Prefix=self._prefix + prefix, **marker
        )
        return page

    async def _delete(self, key: str) -> None:
        await self._unless_missing("delete_object", key)

    async def _uploads_page(self, marker: dict[str, str]) -> dict[str, Any]:
        page: dict[str, Any] = await self._clients.ordinary.list_multipart_uploads(
            Bucket=self.bucket, Prefix=self._prefix, **marker
        )
        return page

    async def _abort(self, key: str, upload_id: str) -> None:
        try:
            await self._clients.ordinary.abort_multipart_upload(
                UploadId=upload_id, **self._target(key)
            )
        except ClientError as failure:
            if code_of(failure) != "NoSuchUpload":
                raise

    async def _delete_once(self, keys: Sequence[str]) -> None:
        """Remove up to 1,000 objects.

        As a POST: a DELETE that meets a broken connection is sent again by aiohttp itself.
        """
        listed = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        try:
            reply = await self._clients.single.delete_objects(Bucket=self.bucket, Delete=listed)
        except FAILURES as failure:
            lost = meaning_of(failure) is Reply.LOST
            raise self._explain(failure, "delete", keys[0], lost) from failure
        for error in reply.get("Errors", ()):
            raise self._undeleted(error)

    def _undeleted(self, error: Mapping[str, str]) -> BrainstoreError:
        code, key = error.get("Code", ""), error.get("Key", "")[len(self._prefix) :]
        what = f"Cannot delete {key} in {self.url}: {code} {error.get('Message', '')}".rstrip()
        if code == "AccessDenied":
            return ReadOnly(f"{what}. These credentials may not delete; ask for the right to.")
        return StoreUnavailable(f"{what}. Try again later", outcome_unknown=True)

    def _get_nothing(self, key: str, stop: int) -> bytes:
        found = self.stat(key)
        if found is None:
            raise NotFound(f"{self.url} has no object {key}")
        if found.size_bytes < stop:
            raise self._too_short(key, stop, stop, 0)
        return b""

    def _too_short(self, key: str, start: int, stop: int, found: int) -> Corrupt:
        return Corrupt(
            f"{key} in {self.url} is too short: expected the bytes {start:,} to {stop:,}, "
            f"found {found:,} of them. Run: brainstore fsck"
        )

    def _upload(self, key: str, body: bytes | Body, expect: Token | Expect) -> Upload:
        condition = _condition(expect)
        if not isinstance(body, bytes) and body.size_bytes > LARGE_BYTES:
            return PartsUpload(self._clients, body, condition, **self._target(key))
        payload = b"".join(pieces(body))
        if len(payload) != size_bytes(body):
            raise Corrupt(
                f"{key}: expected a body of {size_bytes(body):,} bytes, found "
                f"{len(payload):,}; nothing was stored in {self.url}"
            )
        return WholeUpload(self._clients, payload, condition, **self._target(key))

    async def _put(self, key: str, body: bytes | Body, expect: Token | Expect) -> Token:
        upload = await self._aside(lambda: self._upload(key, body, expect))
        try:
            return await self._send_until_settled(key, body, expect, upload)
        finally:
            await upload.let_go()

    async def _send_until_settled(
        self, key: str, body: bytes | Body, expect: Token | Expect, upload: Upload
    ) -> Token:
        may_be_stored = False
        for attempt in range(_ATTEMPTS):
            try:
                await upload.prepare()
            except FAILURES as failure:
                raise self._explain(failure, "write", key, may_be_stored) from failure
            try:
                return await upload.send()
            except FAILURES as failure:
                last = failure
            reply = meaning_of(last)
            may_be_stored = may_be_stored or reply is Reply.LOST
            if reply is Reply.REFUSED and not may_be_stored:
                break
            found = await self._read_back(key, body, last, may_be_stored)
            if found is not None and found.is_ours:
                return found.token
            self._check_not_lost(key, expect, found)
            # Nothing there, or still what we expect: that does not prove that our
            # write failed, so the same bytes go again.
            await _pause(attempt)
        raise self._explain(last, "write", key, may_be_stored) from last

    async def _read_back(
        self, key: str, body: bytes | Body, cause: BaseException, may_be_stored: bool
    ) -> _Found | None:
        try:
            return await self._compare(key, body)
        except FAILURES as failure:
            if code_of(failure) == "NoSuchBucket":
                raise self._explain(failure, "write", key) from failure
            reply = meaning_of(cause)
            # Any refusal may come from a server, or from something before it, that asked
            # twice; and then why we cannot look is what people have to know.
            why = cause if reply in (Reply.LOST, Reply.NOT_SENT) else failure
            unknown = may_be_stored or reply is not Reply.NOT_SENT
            raise self._explain(why, "write", key, unknown) from failure

    async def _compare(self, key: str, body: bytes | Body) -> _Found | None:
        reply = await self._unless_missing("get_object", key)
        if reply is None:
            return None
        token = Token(field_of(reply, "ETag"))
        async with field_of(reply, "Body") as stream:
            if field_of(reply, "ContentLength") != size_bytes(body):
                return _Found(token, is_ours=False)
            comparison = Comparison(body)
            async for chunk in stream.iter_chunks(_CHUNK_BYTES):
                if not await self._aside(partial(comparison.feed, chunk)):
                    return _Found(token, is_ours=False)
            return _Found(token, await self._aside(comparison.finish))

    async def _aside(self, read: Callable[[], Result]) -> Result:
        """Return what `read` does, which reads a body, from the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._clients.reader, read)

    def _check_not_lost(self, key: str, expect: Token | Expect, found: _Found | None) -> None:
        if expect is ANYTHING or (expect is ABSENT and found is None):
            return
        if expect is ABSENT:
            raise AlreadyExists(
                f"{key} exists in {self.url}, with other bytes than those to create"
            )
        if found is None:
            raise Conflict(
                f"{key} in {self.url} is gone: expected state {expect}. Load again and retry."
            )
        if found.token != expect:
            raise Conflict(
                f"{key} in {self.url} was changed by another writer: expected state {expect}, "
                f"found {found.token}. Load it again and retry."
            )

    def _call(
        self, action: str, key: str, start: Callable[[], Coroutine[Any, Any, Result]]
    ) -> Result:
        """Run the coroutine that `start` makes; its failures become errors of ours."""
        try:
            self._clients.connect()
        except (BotoCoreError, ValueError) as error:
            raise self._cannot_open(error) from error
        try:
            return self._clients.run(start())
        except FAILURES as failure:
            raise self._explain(failure, action, key) from failure

    def _explain(
        self, failure: BaseException, action: str, key: str, outcome_unknown: bool = False
    ) -> BrainstoreError:
        explainer = Explainer(
            self.url, self.bucket, self._clients.endpoint_url, self._clients.config["read_timeout"]
        )
        return explainer.explain(failure, action, key, outcome_unknown=outcome_unknown)

    def _cannot_open(self, error: Exception) -> BrainstoreError:
        what = f"Cannot open {self.url}: {error}. Check storage_options and the AWS settings."
        return StoreUnavailable(what) if isinstance(error, BotoCoreError) else BadParams(what)


def _split(url: str) -> tuple[str, str]:
    """Return the bucket, and the prefix that all keys get: "" or ending with a slash."""
    bucket, _, prefix = url.partition("://")[2].partition("/")
    prefix = prefix.strip("/")
    if not bucket or "//" in prefix:
        raise BadReference(f"{url!r}: expected s3://bucket or s3://bucket/prefix")
    return bucket, f"{prefix}/" if prefix else ""


def _begun_at(upload: Mapping[str, Any]) -> float:
    # Unknown counts as new: nobody must take a running upload for a dead one.
    return float(upload["Initiated"].timestamp()) if "Initiated" in upload else time.time()


def _by_key(found: Stat) -> str:
    return found.key


def _condition(expect: Token | Expect) -> dict[str, str]:
    if expect is ANYTHING:
        return {}
    return {"IfNoneMatch": "*"} if expect is ABSENT else {"IfMatch": str(expect)}


async def _pause(attempt: int) -> None:
    """Wait 0.1 s, twice as long with each attempt, and up to twice that by chance."""
    await asyncio.sleep(min(2.0, 0.1 * 2**attempt) * random.uniform(1, 2))
