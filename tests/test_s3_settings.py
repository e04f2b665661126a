"""How a store on S3 is configured, and what it says when that is wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import botocore.session
import pytest
from conftest import S3Place
from store_contract import LATER, Pieces

from brainstore.errors import NotFound, StoreUnavailable, Unsupported
from brainstore.storage import open_store
from brainstore.storage.base import ABSENT
from brainstore.storage.s3 import S3Store

MIB = 1 << 20


CALLS = {
    "get": lambda store: store.get("registry.json"),
    "list": lambda store: list(store.list("")),
    "stat": lambda store: store.stat("registry.json"),
    "put": lambda store: store.put("registry.json", b"1"),
    "create": lambda store: store.put("registry.json", b"1", expect=ABSENT),
    "swap": lambda store: store.put("registry.json", b"1", expect='"etag"'),
    "long put": lambda store: store.put("blobs/00/b", bytes(10 * MIB), expect=ABSENT),
    "large put": lambda store: store.put("blobs/00/b", Pieces((bytes(17 * MIB),)), expect=ABSENT),
}


def _closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_retries_count_as_requests(s3_place: S3Place) -> None:
    options = {
        **s3_place.storage_options,
        "endpoint_url": _closed_port(),
        "config_kwargs": {"retries": {"total_max_attempts": 2}},
    }
    store = open_store(s3_place.url, options)
    with pytest.raises(StoreUnavailable):
        store.get("registry.json")
    assert store.requests["GetObject"] == 2
    store.close()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_is_down_is_named(s3_place: S3Place, call: object) -> None:
    endpoint_url = _closed_port()
    store = open_store(s3_place.url, {**s3_place.with_one_attempt, "endpoint_url": endpoint_url})
    with pytest.raises(StoreUnavailable, match="server down") as caught:
        call(store)
    assert endpoint_url in str(caught.value)
    assert not caught.value.outcome_unknown
    store.close()


@pytest.mark.parametrize("call", [CALLS[name] for name in ("get", "create", "long put")])
def test_a_server_that_never_answers_is_a_time_out(s3_place: S3Place, call: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stalled:
        endpoint_url = f"http://127.0.0.1:{stalled.getsockname()[1]}"
        options = {
            **s3_place.storage_options,
            "endpoint_url": endpoint_url,
            "config_kwargs": {
                "read_timeout": 0.3,
                "connect_timeout": 0.3,
                "retries": {"total_max_attempts": 1},
            },
        }
        store = open_store(s3_place.url, options)
        with pytest.raises(
            StoreUnavailable,
            match=r"time-out, (no answer within 0\.3|the server took nothing for 0\.9) s",
        ) as caught:
            call(store)
        assert endpoint_url in str(caught.value)
        store.close()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_credentials_are_named(s3_place: S3Place, wrong: str, call: object) -> None:
    store = open_store(s3_place.url, {**s3_place.storage_options, wrong: "wrong"})
    with pytest.raises(StoreUnavailable, match="Check AWS_ACCESS_KEY_ID") as caught:
        call(store)
    assert s3_place.storage_options["endpoint_url"] in str(caught.value)
    store.close()


def test_missing_credentials_are_named(
    s3_place: S3Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _isolate_from_aws_settings(monkeypatch, tmp_path)
    endpoint_url = s3_place.storage_options["endpoint_url"]
    store = open_store(s3_place.url, {"endpoint_url": endpoint_url})
    with pytest.raises(StoreUnavailable, match="Check AWS_ACCESS_KEY_ID"):
        store.get("registry.json")
    store.close()
    with pytest.raises(StoreUnavailable, match="nobody"):
        open_store(s3_place.url, {"profile": "nobody"}).get("registry.json")


@pytest.mark.parametrize("call", [CALLS[name] for name in CALLS if name != "stat"])
def test_a_missing_bucket_is_named(s3_place: S3Place, call: object) -> None:
    store = open_store("s3://no-such-bucket/zoo", s3_place.storage_options)
    with pytest.raises(NotFound, match="bucket 'no-such-bucket' does not exist"):
        call(store)
    store.close()


def test_the_environment_configures_a_store(
    s3_place: S3Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _isolate_from_aws_settings(monkeypatch, tmp_path)
    options = s3_place.storage_options
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    store = open_store(s3_place.url)
    store.put(LATER, b"1", expect=ABSENT)
    assert store.get(LATER).body == b"1"
    assert store._clients.config["request_checksum_calculation"] == "when_required"
    store.close()


def test_a_profile_configures_a_store(
    s3_place: S3Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _isolate_from_aws_settings(monkeypatch, tmp_path)
    options = s3_place.storage_options
    (tmp_path / "config").write_text(
        f"[profile team]\naws_access_key_id = {options['key']}\n"
        f"aws_secret_access_key = {options['secret']}\nendpoint_url = {options['endpoint_url']}\n"
    )
    store = open_store(s3_place.url, {"profile": "team"})
    assert store.get(LATER) is None
    assert store._clients.is_outside_aws
    store.close()


def test_aws_itself_keeps_its_own_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _isolate_from_aws_settings(monkeypatch, tmp_path)
    store = open_store("s3://bucket", {"key": "k", "secret": "s"})
    assert not {"request_checksum_calculation", "s3"} & set(store._clients.config)


def test_the_caller_may_configure_everything(s3_place: S3Place) -> None:
    asked = {"read_timeout": 7, "s3": {"addressing_style": "virtual"}}
    options = {**s3_place.storage_options, "config_kwargs": asked}
    config = open_store(s3_place.url, options)._clients.config
    assert (config["read_timeout"], config["connect_timeout"]) == (7, 5)
    assert config["s3"] == {"addressing_style": "virtual"}


def _isolate_from_aws_settings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_a_forked_child_is_told_to_spawn(
    s3_place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: S3Store = open_store(s3_place.url, s3_place.storage_options)
    assert store.get(LATER) is None
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(Unsupported, match="spawn"):
        store.get(LATER)


def test_a_botocore_without_conditions_is_refused(
    s3_place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainstore.storage import s3_clients

    client = botocore.session.Session().create_client("s3", region_name="us-east-1")
    shape = client.meta.service_model.operation_model("PutObject").input_shape
    monkeypatch.delitem(shape.members, "IfMatch")
    with pytest.raises(Unsupported, match="pip install"):
        s3_clients._require_conditional_writes(client)
