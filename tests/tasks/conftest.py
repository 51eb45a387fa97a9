"""Servers and hostile files that several tests of the steps need."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import boto3
import pytest

from infra import seaweedfs as server
from infra.processes import free_ports, terminate
from infra.s3 import Bucket

if TYPE_CHECKING:
    from hub_server import Hub
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "enginehouse-tests"
SECRET_KEY = "only-on-loopback"


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """A real S3 server: endpoint, access key, secret key. Tests share it: each makes a bucket of its own."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = dict(zip(server.PORT_NAMES, free_ports(len(server.PORT_NAMES)), strict=True))
    log = folder / "seaweedfs.log"
    process = server.launch(folder / "data", log, ports, ACCESS_KEY, SECRET_KEY)
    try:
        url = server.endpoint_url(ports)
        server.wait_ready(url, ACCESS_KEY, SECRET_KEY, log=log, process=process)
        yield url, ACCESS_KEY, SECRET_KEY
    finally:
        terminate(process, 10)


@pytest.fixture
def s3(seaweedfs: tuple[str, str, str]) -> Iterator[S3Client]:
    """A boto3 client of the server above."""
    url, access_key, secret_key = seaweedfs
    client: S3Client = cast(Any, boto3).client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=server.REGION,
    )
    yield client
    client.close()


@pytest.fixture
def bucket(s3: S3Client, seaweedfs: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty prefix in a bucket of its own, with the credentials in the environment."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    url, access_key, secret_key = seaweedfs
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield Bucket.at(f"s3://{name}/some/prefix")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face hub of its own for each test, and no token of this machine's user for its client."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    specification = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    with module.Hub() as running:
        yield running


@pytest.fixture(scope="session")
def safetensors() -> Callable[..., bytes]:
    """Makes a small sound safetensors file; `fill` is the byte that its one tensor is made of."""

    def make(fill: int = 1, elements: int = 1000) -> bytes:
        entry = {"dtype": "U8", "shape": [elements], "data_offsets": [0, elements]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "weight": entry}).encode()
        return struct.pack("<Q", len(header)) + header + bytes([fill]) * elements

    return make


@pytest.fixture(scope="session")
def gguf() -> bytes:
    """The header of a GGUF without tensors, and some bytes more."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(64)
