"""Traces of a whole stack: of requests through gateway, Triton and `llm`, and of the rebuild that made the release."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from infra.s3.bucket import Bucket
from tasks.targets.target import Target
from tests.trace_collector import Collector, Seen, collector

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "smollm2-135m"
triton_grpc: Any = importlib.import_module("tritonclient.grpc")


class Stack:
    """A stack in a folder of its own, whose spans a collector takes."""

    def __init__(self, home: Path, spans: Collector) -> None:
        foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_", "OTEL_")
        self.spans = spans
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "ENGINEHOUSE_HOME": str(home),
            "OTEL_EXPORTER_OTLP_ENDPOINT": spans.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def run(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "deployments.cli.main", *arguments]
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with collector() as spans:
        made = Stack(tmp_path_factory.mktemp("traced") / "home", spans)
        try:
            made.run("up")
            yield made
        finally:
            made.run("down")


def test_x(stack: Stack) -> None:
    t = time.time()
    print(stack.run("rebuild", MODEL, "--json"))
    print("rebuild", time.time() - t)
    env = json.loads((Path(stack.environment["ENGINEHOUSE_HOME"]) / "environment.json").read_text())
    tp = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    r = httpx.post(
        env["ENGINEHOUSE_GATEWAY_HTTP"] + "/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "Secret words"}], "max_tokens": 8},
        headers={"traceparent": tp},
        timeout=60,
    )
    print(r.text)
    time.sleep(2)
    t0: dict[str, float] = {}
    for s in sorted(stack.spans.spans, key=lambda s: (s.trace, s.began)):
        b = t0.setdefault(s.trace, s.began)
        print(s.trace[:6], s.id, "<-", s.parent, s.service, repr(s.name), f"{s.began - b:.4f}..{s.ended - b:.4f}",
              s.attributes if "prefect.run.type" not in s.attributes else "", list(s.events), s.links)
    print(stack.spans.mistakes)
    assert not any(b"Secret words" in body for body in stack.spans.bodies)
