"""A store that ignores conditional writes is refused before anything is done with it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tests.unconditional_server import unconditional

if TYPE_CHECKING:
    from pathlib import Path

    from mypy_boto3_s3 import S3Client


@pytest.mark.parametrize("command", ["node", "deploy"])
def test_it_is_refused_at_start(command: str, bucket: Bucket, s3: S3Client, tmp_path: Path) -> None:
    with unconditional(bucket.endpoint, s3, "If-Match") as endpoint:
        environment = os.environ | {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "ENGINEHOUSE_HOME": str(tmp_path),
            "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
            "ENGINEHOUSE_TRITON_HTTP": "http://127.0.0.1:9",
            "ENGINEHOUSE_TRITON_GRPC": "127.0.0.1:9",
            "ENGINEHOUSE_NODE_METRICS_PORT": "9",
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        }
        done = subprocess.run(
            [sys.executable, "-m", "deployments.cli.main", command],
            cwd=CHECKOUT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1 and "[store-unconditional]" in done.stderr, done.stderr
    assert "hint: use a server that honours conditional writes" in done.stderr
    assert not (tmp_path / "node").exists()
