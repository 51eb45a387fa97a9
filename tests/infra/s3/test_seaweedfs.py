from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.errors import SettingsError, StoreUnavailable
from infra.processes.sessions import free_ports, terminate
from infra.s3 import seaweedfs
from tests.deployments.stack import stranger


def _ports() -> dict[str, int]:
    return dict(zip(seaweedfs.PORT_NAMES, free_ports(len(seaweedfs.PORT_NAMES)), strict=True))


def _client(url: str, secret: str) -> Any:
    return cast(Any, boto3).client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="test-key",
        aws_secret_access_key=secret,
        region_name=seaweedfs.REGION,
    )


def test_objects_outlive_a_kill_and_other_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Credentials in the environment are meant for other servers; this one must not honour them.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another-server")
    data, log = tmp_path / "data", tmp_path / "logs" / "seaweedfs.log"
    ports = _ports()
    process = seaweedfs.launch(data, log, ports, "test-key", "test-secret")
    try:
        url = seaweedfs.endpoint_url(ports)
        seaweedfs.wait_ready(url, "test-key", "test-secret", log=log, process=process)
        for name in ("s3.json", "own.key", "security.toml"):
            assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
        client = _client(url, "test-secret")
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="a/b", Body=b"weights")
        with pytest.raises(ClientError) as refused:
            _client(url, "of-another-server").list_buckets()
        assert refused.value.response.get("Error", {}).get("Code") == "SignatureDoesNotMatch"
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    ports = _ports()
    process = seaweedfs.launch(data, log, ports, "test-key", "rotated-secret")
    try:
        url = seaweedfs.endpoint_url(ports)
        seaweedfs.wait_ready(url, "test-key", "rotated-secret", log=log, process=process)
        assert _client(url, "rotated-secret").get_object(Bucket="models", Key="a/b")["Body"].read() == b"weights"
        with pytest.raises(StoreUnavailable) as caught:
            seaweedfs.wait_ready(url, "test-key", "wrong", log=log, timeout_s=0)
        assert caught.value.code == "store-unavailable" and url in caught.value.message
    finally:
        terminate(process, 10)


def test_its_own_ports_take_nobody_else(tmp_path: Path) -> None:
    """Least of all the filer's gRPC, by which one does everything, and which answers who has the certificate."""
    data, log, ports = tmp_path / "data", tmp_path / "log", _ports()
    process = seaweedfs.launch(data, log, ports, "test-key", "test-secret")
    try:
        seaweedfs.wait_ready(seaweedfs.endpoint_url(ports), "test-key", "test-secret", log=log, process=process)
        let_in = {name: list(stranger.closed(port, {})) for name, port in ports.items() if name != "s3"}
        assert let_in == {name: [] for name in ports if name != "s3"}
        certificate, key = (data / "own.crt").read_bytes(), (data / "own.key").read_bytes()
        own = stranger.grpc.ssl_channel_credentials(certificate, key, certificate)
        channel = stranger.grpc.secure_channel(f"127.0.0.1:{ports['filer-grpc']}", own)
        assert channel.unary_unary("/filer_pb.SeaweedFiler/GetFilerConfiguration")(b"", timeout=10)
    finally:
        terminate(process, 10)


def test_an_early_death_is_reported_with_the_log(tmp_path: Path) -> None:
    log = tmp_path / "seaweedfs.log"
    ports: dict[str, int] = dict.fromkeys(seaweedfs.PORT_NAMES, 1)
    process = seaweedfs.launch(tmp_path / "data", log, ports, "test-key", "test-secret")
    try:
        with pytest.raises(StoreUnavailable) as caught:
            seaweedfs.wait_ready(seaweedfs.endpoint_url(ports), "test-key", "test-secret", log=log, process=process)
        assert f"status {process.returncode}" in caught.value.message and str(log) in caught.value.hint
    finally:
        terminate(process, 5)


def test_a_missing_program_is_a_settings_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(SettingsError) as caught:
        seaweedfs.launch(tmp_path / "data", tmp_path / "log", {}, "test-key", "test-secret")
    assert caught.value.code == "settings" and "[embedded]" in caught.value.hint
