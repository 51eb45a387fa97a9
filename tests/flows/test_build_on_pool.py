"""Rebuilds that want one engine, on a real Prefect server whose pool has no worker: who waits for which build."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.prefect_server.desired import Desired, Pool, build_pool
from deployments.prefect_server.register import deploy
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tests import prefect_api

pytestmark = pytest.mark.slow


@pytest.fixture
def seen(bucket: Bucket, tmp_path: Path) -> dict[str, Any]:
    """What `build_parents` saw, by case."""
    with prefect_api.server(tmp_path) as api:
        with temporary_settings(updates={PREFECT_API_URL: api}):
            asyncio.run(deploy(Desired((Pool("build-cpu"),), (build_pool("build-cpu"),), ()), lambda change: None))
        environment = {
            **os.environ,
            **prefect_api.OWN,
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(tmp_path / "parents"),
            "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
            "ENGINEHOUSE_HOME": str(tmp_path / "home"),
        }
        ran = subprocess.run(
            [sys.executable, "-m", "tests.flows.build_parents"],
            cwd=CHECKOUT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return {name: what for line in ran.stdout.splitlines() for name, what in json.loads(line).items()}


def test_rebuilds_that_want_one_engine(seen: dict[str, Any]) -> None:
    at_once = seen["two_at_once"]
    assert at_once["builds"] == 1 and sorted(at_once["ours"]) == [False, True]
    assert at_once["one is cancelled"] == ["SCHEDULED"] and at_once["both are cancelled"] == ["CANCELLED"]

    # The third is content with the second's build, and so is the fourth, whichever of the two it attaches to.
    refreshed = seen["refreshes"]
    assert refreshed["asked"][:3] == [[], ["build", "upload"], ["build", "upload"]] and refreshed["builds"] == 2
    assert refreshed["end"] == ["CANCELLED", "CANCELLED"]

    # Whoever needs no reference is content with either.
    compared = seen["references"]
    assert compared["builds"] == 2 and compared["asked"][:2] == [False, True] and compared["asked"][3]

    assert seen["not_taken"] == {"code": "build-not-taken", "end": ["CANCELLED"]}
    assert seen["never_ends"] == {"code": "build-too-long", "end": ["CANCELLING"]}
