"""Traces of a whole stack: a rebuild that a fine-tuning event asked for, and requests to the release that it made."""

from __future__ import annotations

import importlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.trace_collector import Collector, Seen, collector

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

MODEL = "smollm2-135m"
CALLER = "b" * 16
EVENT, HTTP, GRPC = "a" * 32, "c" * 32, "d" * 32
STEPS = ("resolve", "fetch", "convert", "build", "upload", "assemble", "roll out", "validate", "promote")

triton_grpc: Any = importlib.import_module("tritonclient.grpc")

# What the flow `finetuned` does with an event that it accepts.
START = f"""
import asyncio
from infra import settings
settings.activate()
from flows.finetuned import start_rebuild
asyncio.run(start_rebuild({MODEL!r}, "event", traceparent="00-{EVENT}-{CALLER}-01"))
"""


class Stack:
    """A stack in a folder of its own, whose spans a collector takes."""

    def __init__(self, home: Path, spans: Collector) -> None:
        foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_", "OTEL_")
        self.spans = spans
        self._home = home
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "ENGINEHOUSE_HOME": str(home),
            "OTEL_EXPORTER_OTLP_ENDPOINT": spans.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def run(self, *command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command], env=self._environment, text=True, capture_output=True, timeout=400
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def address(self, name: str) -> str:
        return json.loads((self._home / "environment.json").read_text())[name]

    def log(self, service: str) -> str:
        return (self._home / "logs" / f"{service}.log").read_text()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with collector() as spans:
        made = Stack(tmp_path_factory.mktemp("traced") / "home", spans)
        try:
            made.run("-m", "deployments.cli.main", "up")
            made.run("-c", START)
            yield made
        finally:
            made.run("-m", "deployments.cli.main", "down")


@pytest.fixture(scope="module")
def rebuilt(stack: Stack) -> Seen:
    """The span of the rebuild."""
    spans = stack.spans
    spans.wait(lambda: f"rebuild {MODEL}" in spans.of(EVENT), "rebuild that has ended", 400)
    return spans.of(EVENT)[f"rebuild {MODEL}"]


def below(spans: list[Seen], span: Seen) -> list[str]:
    """The names from the root's child down to a span."""
    by_id = {each.id: each for each in spans}
    names = [span.name]
    while span.parent in by_id:
        span = by_id[span.parent]
        names.insert(0, span.name)
    return names


def test_a_rebuild_is_one_trace_from_its_event_to_a_first_token(stack: Stack, rebuilt: Seen) -> None:
    found = [span for span in stack.spans.spans if span.trace == EVENT]
    assert rebuilt.parent == CALLER and not rebuilt.failed
    steps = {name: next(span for span in found if span.name.startswith(f"{name} ")) for name in STEPS}
    (child,) = (span for span in found if span.name.startswith(f"build {MODEL} "))
    for name, span in steps.items():
        if name == "build":
            span = next(each for each in found if each.name == f"build {MODEL}")
        parent = child if name in ("convert", "build", "upload") else rebuilt
        assert span.parent == parent.id, name
        assert rebuilt.began <= span.began <= span.ended <= rebuilt.ended, name
    assert child.parent == rebuilt.id and {span.service for span in steps.values()} == {"enginehouse-flows"}
    tokens = [span for span in found if span.name == "first token"]
    assert tokens and all(
        below(found, span)[:2] == [rebuilt.name, steps["validate"].name] and below(found, span)[-2] == "llm"
        for span in tokens
    )


def ask_http(stack: Stack) -> None:
    message = {"role": "user", "content": "Secret words"}
    answer = httpx.post(
        f"{stack.address('ENGINEHOUSE_GATEWAY_HTTP')}/v1/chat/completions",
        json={"model": MODEL, "messages": [message], "max_tokens": 8, "stream": True},
        headers={"traceparent": f"00-{HTTP}-{CALLER}-01"},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text


def ask_grpc(stack: Stack) -> None:
    inputs: list[Any] = []
    given = (("text_input", "BYTES", b"Secret words"), ("max_tokens", "INT32", 8), ("stream", "BOOL", True))
    for name, datatype, value in given:
        inputs.append(triton_grpc.InferInput(name, [1, 1], datatype))
        types = {"BYTES": np.object_, "INT32": np.int32, "BOOL": np.bool_}
        inputs[-1].set_data_from_numpy(np.array([[value]], dtype=types[datatype]))
    client = triton_grpc.InferenceServerClient(stack.address("ENGINEHOUSE_GATEWAY_GRPC"))
    heard: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def hear(result: Any, error: Any) -> None:
        heard.put((result, error))

    client.start_stream(hear, headers={"traceparent": f"00-{GRPC}-{CALLER}-01"})
    client.async_stream_infer(MODEL, inputs, enable_empty_final_response=True)
    final = False
    while not final:
        result, error = heard.get(timeout=60)
        assert error is None
        final = result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    client.close()


@pytest.mark.parametrize(("trace", "ask"), [(HTTP, ask_http), (GRPC, ask_grpc)])
def test_a_request_is_one_trace_from_the_gateway_to_its_tokens(
    stack: Stack, rebuilt: Seen, trace: str, ask: Any
) -> None:
    ask(stack)
    spans = stack.spans
    senders = {"enginehouse-gateway", "enginehouse-triton", "enginehouse-llm"}

    def is_whole() -> bool:
        seen = spans.of(trace)
        return {span.service for span in seen.values()} == senders and {"InferRequest", "generation"} <= set(seen)

    spans.wait(is_whole, "trace", 60)
    found = spans.of(trace)
    gateway = next(span for span in found.values() if span.service == "enginehouse-gateway")
    assert gateway.parent == CALLER and found["InferRequest"].parent == gateway.id
    path = below(list(found.values()), found["generation"])
    assert path[:2] == [gateway.name, "InferRequest"] and path[-2:] == ["llm", "generation"]
    assert any(name.startswith(f"{MODEL}--r1--") for name in path)
    for name in ("InferRequest", "llm", "first token", "generation"):
        # Triton has the time of the day from when it began.
        assert gateway.began - 0.1 <= found[name].began <= found[name].ended <= gateway.ended + 0.1, name
    assert found["llm"].attributes["gen_ai.usage.output_tokens"] == 8
    assert gateway.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert gateway.attributes["gen_ai.response.model"] == f"{MODEL}@1"
    # The run's own place in its trace is that of the step which made the release.
    (link,) = gateway.links
    assert link.partition("-")[0] == EVENT
    assert {span.id: span.name for span in spans.spans}[link.partition("-")[2]].startswith("roll out ")
    assert not any(b"Secret words" in body for body in spans.bodies)
