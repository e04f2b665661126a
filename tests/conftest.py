"""Servers and stores that tests share; each is started when a test first asks for it."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

from brainstore.demo.seaweed import S3Server, seaweed

BUCKET = "zoo"


@dataclass(frozen=True)
class S3Place:
    """An empty place in a bucket, and how to get in."""

    url: str
    storage_options: dict[str, Any]

    @property
    def with_one_attempt(self) -> dict[str, Any]:
        """The options, so that nothing is tried twice and failures come fast."""
        once = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
        return {**self.storage_options, **once}


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture
def s3_place(seaweed_server: S3Server) -> S3Place:
    """A fresh prefix of a bucket on SeaweedFS."""
    return S3Place(f"s3://{BUCKET}/{secrets.token_hex(8)}", seaweed_server.storage_options)


@pytest.fixture
def s3_by_environment(s3_place: S3Place, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """A fresh prefix, reached by the ordinary AWS settings, as programs reach it."""
    options = s3_place.storage_options
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    return s3_place


@pytest.fixture(scope="session")
def moto_server() -> Iterator[dict[str, Any]]:
    """The storage options of a moto server, whose S3 has the bucket `zoo`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint_url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint_url,
        aws_access_key_id="anybody",
        aws_secret_access_key="anything",
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield {"key": "anybody", "secret": "anything", "endpoint_url": endpoint_url}
    server.stop()


@pytest.fixture
def moto_place(moto_server: dict[str, Any]) -> S3Place:
    """A fresh prefix of a bucket on moto."""
    return S3Place(f"s3://{BUCKET}/{secrets.token_hex(8)}", moto_server)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Writes down what a long test has counted, for the table that `scripts/soak` prints.

    `tally("kill -9 in a save", cases=412, lost=0)` adds a line of JSON to the file that
    BRAINSTORE_TALLY names, if it names one.
    """

    def write(what: str, **counts: int) -> None:
        if path := os.environ.get("BRAINSTORE_TALLY"):
            line = json.dumps({"what": what, **counts, "test": request.node.nodeid})
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    return write


@pytest.fixture
def soak_s() -> float:
    """How many seconds a long test that could go on for ever is to go on."""
    return float(os.environ.get("BRAINSTORE_SOAK_S", "60"))


def pytest_configure() -> None:
    # A machine may be as slow as it likes.
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")
    # A run in the background inherits an ignored Ctrl-C, and so would the programs under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long tests, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        for item in items:
            if "soak" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="long; runs with --soak"))
