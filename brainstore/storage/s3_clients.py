"""The two S3 clients of a store, configured by s3fs, and the thread that runs them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.configprovider import ConfiguredEndpointProvider

from brainstore.errors import Unsupported

Result = TypeVar("Result")

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
_MAX_CONNECTIONS = 32
_CLEAN_UP_TIMEOUT_S = 10.0


class _SendingOnce(AIOHTTPSession):  # type: ignore[misc]  # it has no types
    """Connections of which none sends a request again."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        # aiohttp sends a PUT or DELETE a second time when the connection breaks, and tells
        # nobody: a refusal could be the answer to our own success. It has no public switch.
        session._retry_connection = False
        return session


class Clients:
    """`ordinary` retries as botocore does; `single` sends each request once.

    So what a reply to `single` says is said of the only request that there was.

    Both come from s3fs, which reads the options, the environment and the profiles,
    and run in its thread. Every request that goes out, retries too, is counted.
    """

    def __init__(self, options: dict[str, Any], requests: Counter[str]) -> None:
        self._requests = requests
        self._process_id = os.getpid()
        self._ordinary_fs = s3fs.S3FileSystem(**{**options, **_UNCACHED})
        session = self._ordinary_fs.session or AioSession(**self._ordinary_fs.kwargs)
        self.configured_endpoint = _configured_endpoint(self._ordinary_fs, session)
        self.config = _config(self._ordinary_fs, session, is_outside_aws=self.is_outside_aws)
        # One thread reads all bodies: malloc keeps what each thread has freed. Not the
        # thread of the clients, since a body may be read through them.
        self.reader = ThreadPoolExecutor(1, "brainstore-body")
        self._ordinary_fs.session = session
        self._ordinary_fs.config_kwargs = self.config
        once = {
            **self.config,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "http_session_cls": _SendingOnce,
        }
        self._single_fs = s3fs.S3FileSystem(
            **{**options, **_UNCACHED, "config_kwargs": once, "session": session}
        )
        self._lock = threading.Lock()
        self._connected = False

    @property
    def is_outside_aws(self) -> bool:
        return bool(self.configured_endpoint)

    @property
    def ordinary(self) -> Any:
        return self._ordinary_fs.s3

    @property
    def single(self) -> Any:
        return self._single_fs.s3

    @property
    def endpoint_url(self) -> str:
        return str(self.ordinary.meta.endpoint_url)

    @property
    def patience_s(self) -> float:
        """How long an upload may stand still; longer than any time-out of the clients."""
        return float(self.config["connect_timeout"] + 2 * self.config["read_timeout"])

    async def access(self) -> dict[str, str]:
        """Return whom requests are signed as, where the credentials are from, and the way.

        Of the access key only its ends; the rest of it, and the secret, tell nobody anything.
        """
        client, session = self.ordinary, self._ordinary_fs.session
        found = {"endpoint": self.endpoint_url, "region": str(client.meta.region_name)}
        if profile := session.get_config_variable("profile"):
            found["profile"] = str(profile)
        # botocore tells nowhere else what it signs with, once a client is made.
        signer = getattr(client, "_request_signer", None)
        if signer is None:
            return found
        credentials = getattr(signer, "_credentials", None)
        if credentials is None:
            return {"identity": "nobody: requests are not signed", **found}
        key = (await credentials.get_frozen_credentials()).access_key
        shown = f"{key[:4]}…{key[-4:]}" if len(key) > 12 else f"{key[:2]}…"
        return {"identity": shown, "from": str(credentials.method), **found}

    def connect(self) -> None:
        """Make the clients, unless they are there.

        Raises:
            Unsupported: botocore is too old, or this process was forked.
        """
        if os.getpid() != self._process_id:
            raise Unsupported(
                "This S3 store was opened before the process forked, and its connections "
                "and threads stayed with the parent. Open the store in the child, or start "
                "processes with multiprocessing.get_context('spawn')."
            )
        with self._lock:
            if self._connected:
                return
            for fs in (self._ordinary_fs, self._single_fs):
                fs.connect()
                fs.s3.meta.events.register("before-send.s3", self._see_off)
            _require_conditional_writes(self.single)
            self._connected = True

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return what `work` returns, from any thread.

        When the wait is interrupted (Ctrl-C), `work` is cancelled, and has cleaned up
        when the interruption goes on.
        """
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_announced(work, ended), self._ordinary_fs.loop)
        try:
            return future.result()
        except (KeyboardInterrupt, SystemExit):
            future.cancel()
            ended.wait(_CLEAN_UP_TIMEOUT_S)
            raise

    def close(self) -> None:
        self.reader.shutdown(wait=False)
        if self._connected and os.getpid() == self._process_id:
            self._connected = False
            for fs in (self._single_fs, self._ordinary_fs):
                with contextlib.suppress(Exception):
                    self.run(fs.s3.__aexit__(None, None, None))

    def _see_off(self, request: Any, event_name: str, **_: Any) -> None:
        self._requests[event_name.rpartition(".")[2]] += 1
        # aiohttp waits for "100 Continue" without end, however short its time-outs are.
        request.headers.pop("Expect", None)


async def _announced(work: Coroutine[Any, Any, Result], ended: threading.Event) -> Result:
    try:
        return await work
    finally:
        ended.set()


_UNCACHED = {"skip_instance_cache": True, "use_listings_cache": False, "asynchronous": False}


def _config(fs: Any, session: Any, *, is_outside_aws: bool) -> dict[str, Any]:
    """Return the botocore configuration: what was asked for, and our defaults."""
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "max_pool_connections": _MAX_CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    }
    if is_outside_aws:
        # botocore sends a checksum with every upload otherwise, which not all servers take.
        config["request_checksum_calculation"] = "when_required"
        config["response_checksum_validation"] = "when_required"
        style = (session.get_scoped_config().get("s3") or {}).get("addressing_style", "path")
        config["s3"] = {"addressing_style": style}
    asked = dict(fs.config_kwargs)
    if "s3" in asked and "s3" in config:
        asked["s3"] = {**config["s3"], **asked["s3"]}
    return {**config, **asked}


def _configured_endpoint(fs: Any, session: Any) -> str:
    """Return the endpoint that options, environment or profile name; "" for AWS itself."""
    configured = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name="s3",
    )
    named = fs.endpoint_url or fs.client_kwargs.get("endpoint_url") or configured.provide()
    return str(named or "")


def _require_conditional_writes(client: Any) -> None:
    known = client.meta.service_model.operation_model("PutObject").input_shape.members
    if not {"IfNoneMatch", "IfMatch"} <= set(known):
        import botocore

        raise Unsupported(
            f"botocore {botocore.__version__} knows no conditional writes, and would drop the "
            "conditions without a word. Run: pip install -U 's3fs>=2025.3'"
        )
