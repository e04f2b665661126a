"""What replies and failures of S3 mean, and what to tell people about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import aiohttp
from botocore import exceptions as botocore

from brainstore.errors import (
    BadParams,
    BrainstoreError,
    Corrupt,
    NotFound,
    ReadOnly,
    StoreUnavailable,
    Unsupported,
)


class ForeignReply(aiohttp.ClientError):
    """A reply that no S3 server gives, such as the page of a proxy that wants a password."""

    def __init__(self, field: str) -> None:
        super().__init__(f"the reply lacks {field}, so it is not the store's; is it a proxy's?")


class UploadStalled(TimeoutError):
    """The server has stopped taking what is sent to it."""

    def __init__(self, still_s: float) -> None:
        super().__init__(f"the server took nothing for {still_s:g} s")


FAILURES = (botocore.BotoCoreError, botocore.ClientError, aiohttp.ClientError, TimeoutError)
"""Whatever a call of a client, or reading the body of its reply, can raise."""

_BAD_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_NO_CREDENTIALS = (
    botocore.NoCredentialsError,
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.ProfileNotFound,
    botocore.TokenRetrievalError,
    botocore.UnauthorizedSSOTokenError,
)
_TIME_OUTS = (botocore.ConnectTimeoutError, botocore.ReadTimeoutError, TimeoutError)
_CONNECTION_FAILURES = (
    botocore.ConnectionError,
    botocore.HTTPClientError,
    botocore.ResponseStreamingError,
    botocore.IncompleteReadError,
    aiohttp.ClientError,
)
_FULL = {"EntityTooLargeForQuota", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
_ELSEWHERE = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraint"}


class Reply(Enum):
    """What a failed conditional put says about the object."""

    PRECONDITION_FAILED = auto()
    BUSY = auto()
    NO_OBJECT = auto()
    NO_UPLOAD = auto()
    NOT_SENT = auto()
    LOST = auto()
    REFUSED = auto()


def field_of(reply: Mapping[str, Any], field: str) -> Any:
    """Return a field that every reply of this kind has.

    Raises:
        ForeignReply: it lacks the field.
    """
    if field not in reply:
        raise ForeignReply(field)
    return reply[field]


def code_of(error: BaseException) -> str:
    """Return the S3 error code, such as NoSuchKey; "" when there was no reply."""
    if not isinstance(error, botocore.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """Return the HTTP status; 0 when there was no reply."""
    if not isinstance(error, botocore.ClientError):
        return 0
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status)


def is_missing_key(error: BaseException) -> bool:
    return status_of(error) == 404 and code_of(error) in ("NoSuchKey", "404", "NotFound", "")


def is_retryable(error: BaseException) -> bool:
    """Return whether the same request may well succeed when it is sent again."""
    if isinstance(error, botocore.ClientError):
        status = status_of(error)
        return (
            (status >= 500 and status != 501)
            or status == 429
            or code_of(error)
            in (
                "RequestTimeout",
                "SlowDown",
            )
        )
    return isinstance(error, (*_TIME_OUTS, *_CONNECTION_FAILURES))


def meaning_of(error: BaseException) -> Reply:
    """Return what a put that failed says; see the table of replies in the design notes."""
    status, code = status_of(error), code_of(error)
    if code == "NoSuchUpload":
        return Reply.NO_UPLOAD
    if status == 412:
        return Reply.PRECONDITION_FAILED
    if status == 409:
        return Reply.BUSY
    if status == 404 and code != "NoSuchBucket":
        return Reply.NO_OBJECT
    if is_retryable(error):
        return Reply.LOST if _may_have_been_sent(error) else Reply.NOT_SENT
    return Reply.REFUSED


def _may_have_been_sent(error: BaseException) -> bool:
    if isinstance(error, botocore.ConnectTimeoutError):
        return False
    if isinstance(error, botocore.EndpointConnectionError):
        # aiobotocore says so of resets, too; only this cause means that no one listened.
        return not isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
    return True


@dataclass(frozen=True)
class Explainer:
    """Turns failures of the clients of one store into errors that say what to do."""

    url: str
    bucket: str
    endpoint_url: str
    time_out_s: float

    def explain(
        self, error: BaseException, action: str, key: str, *, outcome_unknown: bool = False
    ) -> BrainstoreError:
        """Return the error to raise when `action` on `key` ended with `error`."""
        explained = self._explain(error, action, key)
        if not outcome_unknown:
            return explained
        return StoreUnavailable(
            f"{explained} Whether the write took effect is unknown.", outcome_unknown=True
        )

    def _explain(self, error: BaseException, action: str, key: str) -> BrainstoreError:
        where = f"Cannot {action} {key or 'the keys'} in {self.url} at {self.endpoint_url}"
        code, status = code_of(error), status_of(error)
        if code == "NoSuchBucket":
            return NotFound(
                f"{where}: bucket {self.bucket!r} does not exist. Create it, or correct the URL."
            )
        if isinstance(error, botocore.ParamValidationError):
            return BadParams(f"{where}: {' '.join(str(error).split())}")
        if isinstance(error, _NO_CREDENTIALS):
            return StoreUnavailable(f"{where}: {_first_line(error)}. {_CREDENTIALS_HINT}")
        if code in _BAD_CREDENTIALS:
            return StoreUnavailable(f"{where}: credentials refused ({code}). {_CREDENTIALS_HINT}")
        if status in (401, 403):
            return self._explain_denial(f"{where}: access denied ({code or status})", action)
        if status == 416 or code == "InvalidRange":
            return Corrupt(f"{where}: it ends before the bytes to read. Run: brainstore fsck")
        if action == "write" and is_refused_condition(error):
            return Unsupported(
                f"{where}: the server cannot decide conditional writes ({code or status}), so "
                "several writers cannot share it. Use a server that can: AWS, MinIO, SeaweedFS."
            )
        return StoreUnavailable(f"{where}: {self._reason(error, code)}")

    def _explain_denial(self, what: str, action: str) -> BrainstoreError:
        if action in ("write", "delete"):
            return ReadOnly(f"{what}. These credentials may not write; ask for the right to.")
        return StoreUnavailable(f"{what}. These credentials may not read. {_CREDENTIALS_HINT}")

    def _reason(self, error: BaseException, code: str) -> str:
        if isinstance(error, _TIME_OUTS):
            stalled = isinstance(error, UploadStalled)
            waited = str(error) if stalled else f"no answer within {self.time_out_s:g} s"
            return (
                f"time-out, {waited}. Is the server overloaded, or the network cut? Try again, "
                "or raise config_kwargs['read_timeout'] in storage_options."
            )
        if isinstance(error, botocore.SSLError):
            return f"{_first_line(error)}. Check the certificate, or http instead of https."
        if isinstance(error, _CONNECTION_FAILURES):
            return f"connection failed ({_first_line(error)}). Is the server down? Try again."
        if code in _FULL:
            return f"the store is full ({code}). Free some space, then try again"
        if code in _ELSEWHERE:
            return f"the bucket lies elsewhere ({code}). Set AWS_REGION to its region."
        return f"{_first_line(error)}. Try again."


def is_refused_condition(error: BaseException) -> bool:
    """Return whether the server says that it knows no If-Match or If-None-Match."""
    if status_of(error) == 501 or code_of(error) == "NotImplemented":
        return True
    text = str(error).lower()
    return status_of(error) == 400 and any(
        header in text for header in ("if-none-match", "if-match", "header you provided")
    )


_CREDENTIALS_HINT = (
    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or key and secret in "
    "storage_options."
)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
