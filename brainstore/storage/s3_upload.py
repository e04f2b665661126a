"""Sending one object to S3: in one request, or in parts when it is large.

An upload is prepared, then sent as often as it takes, then let go of. Only `send`
makes the object appear, under its condition.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Protocol

from brainstore.errors import Corrupt
from brainstore.storage.base import Body, Token, pieces, size_bytes
from brainstore.storage.s3_clients import Clients
from brainstore.storage.s3_errors import FAILURES, UploadStalled, code_of, field_of

PART_BYTES = 8 << 20
LARGE_BYTES = 16 << 20
_PARTS_IN_FLIGHT = 3
_MAX_PARTS = 10_000
# What the buffers of a connection hold in any case, so that sending it cannot get stuck.
_SMALL_BYTES = 64 << 10


class Upload(Protocol):
    """One object on its way to a bucket and key, under a condition, such as If-Match."""

    async def prepare(self) -> None:
        """Do all that can be done without making the object appear. Retried."""

    async def send(self) -> Token:
        """Make the object appear, with one request that is not retried; may be repeated."""

    async def let_go(self) -> None:
        """Remove what is left in the store of an upload that was not completed."""


class WholeUpload:
    """An object that goes in one request."""

    def __init__(
        self, clients: Clients, payload: bytes, condition: dict[str, str], **target: str
    ) -> None:
        # Without a condition, sending it twice is harmless: botocore may retry.
        self._client = clients.single if condition else clients.ordinary
        self._patience_s = clients.patience_s
        self._payload = payload
        self._arguments = {**condition, **target}

    async def prepare(self) -> None:
        return

    async def send(self) -> Token:
        put = partial(self._client.put_object, **self._arguments)
        reply = await send_body(put, self._payload, self._patience_s)
        return Token(field_of(reply, "ETag"))

    async def let_go(self) -> None:
        return


class PartsUpload:
    """An object that goes in parts, a few at a time: memory holds no more than those."""

    def __init__(
        self, clients: Clients, body: Body, condition: dict[str, str], **target: str
    ) -> None:
        self._clients = clients
        self._body = body
        self._condition = condition
        self._target = target
        self._upload_id = ""
        self._parts: list[dict[str, Any]] = []

    async def prepare(self) -> None:
        for is_last_try in (False, True):
            if self._upload_id:
                return
            try:
                await self._send_all()
            except FAILURES as failure:
                if code_of(failure) != "NoSuchUpload" or is_last_try:
                    raise
                # Somebody took it for what a dead writer has left, and removed it.
                self._upload_id = ""

    async def _send_all(self) -> None:
        reply = await self._clients.ordinary.create_multipart_upload(**self._target)
        self._upload_id = field_of(reply, "UploadId")
        self._parts = await self._send_parts()

    async def send(self) -> Token:
        try:
            reply = await self._clients.single.complete_multipart_upload(
                UploadId=self._upload_id,
                MultipartUpload={"Parts": self._parts},
                **self._condition,
                **self._target,
            )
        except FAILURES as failure:
            if code_of(failure) == "NoSuchUpload":
                self._upload_id = ""
            raise
        self._upload_id = ""
        return Token(field_of(reply, "ETag"))

    async def let_go(self) -> None:
        if self._upload_id:
            # What stays is invisible, and one of the store's leftovers.
            with suppress(*FAILURES):
                await self._clients.ordinary.abort_multipart_upload(
                    UploadId=self._upload_id, **self._target
                )

    async def _send_parts(self) -> list[dict[str, Any]]:
        room = asyncio.Semaphore(_PARTS_IN_FLIGHT)
        parts = split(self._body, part_size(self._body.size_bytes))
        sent: list[asyncio.Task[dict[str, Any]]] = []
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                for number in count(1):
                    await room.acquire()
                    part = await loop.run_in_executor(self._clients.reader, next, parts, b"")
                    if not part:
                        break
                    sent.append(group.create_task(self._send_part(number, part, room)))
                    del part
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in sent]

    async def _send_part(self, number: int, part: bytes, room: asyncio.Semaphore) -> dict[str, Any]:
        try:
            upload = partial(
                self._clients.ordinary.upload_part,
                PartNumber=number,
                UploadId=self._upload_id,
                **self._target,
            )
            reply = await send_body(upload, part, self._clients.patience_s)
        finally:
            room.release()
        return {"PartNumber": number, "ETag": field_of(reply, "ETag")}


class _Stream(io.BytesIO):
    """Bytes that know when somebody last took some of them."""

    moved_at = 0.0

    def read(self, size: int | None = -1) -> bytes:
        self.moved_at = time.monotonic()
        return super().read(size)


async def send_body(
    call: Callable[..., Coroutine[Any, Any, Any]], body: bytes, still_s: float
) -> Any:
    """Return the reply to `call` with `body`.

    Raises:
        UploadStalled: the server took none of it for `still_s` seconds. The clients' own
            time-outs begin when the whole body is on its way.
    """
    if len(body) <= _SMALL_BYTES:
        return await call(Body=body)
    stream = _Stream(body)
    stream.moved_at = time.monotonic()
    sending = asyncio.create_task(call(Body=stream))
    try:
        while not sending.done():
            if time.monotonic() - stream.moved_at > still_s:
                raise UploadStalled(still_s)
            await asyncio.wait([sending], timeout=still_s / 4)
        return sending.result()
    finally:
        sending.cancel()


def part_size(total_bytes: int) -> int:
    """Return the size of the parts: 8 MiB, or what makes 10,000 parts enough."""
    needed = -(-total_bytes // _MAX_PARTS)
    return max(PART_BYTES, -(-needed // PART_BYTES) * PART_BYTES)


def split(body: bytes | Body, part_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of `body` in parts of `part_bytes`; only the last may be shorter.

    Raises:
        Corrupt: the pieces of the body do not add up to its size.
    """
    part = io.BytesIO()
    total = 0
    for piece in pieces(body):
        rest = piece.cast("B")
        total += len(rest)
        while rest:
            length = min(len(rest), part_bytes - part.tell())
            part.write(rest[:length])
            rest = rest[length:]
            if part.tell() == part_bytes:
                yield part.getvalue()
                part = io.BytesIO()
    if total != size_bytes(body):
        raise Corrupt(
            f"Expected a body of {size_bytes(body):,} bytes, found {total:,}; nothing was stored"
        )
    if part.tell():
        yield part.getvalue()
