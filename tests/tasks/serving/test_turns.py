"""Gemma and Phi-3, whose answers end with a turn, on the real Triton and through the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from deployments.gateway.state import TargetState
from tests.deployments.gateway.house import House, house, node
from tests.tasks.kinds.served_kinds import Kind, Role, llmapi, trt_engine
from tests.tasks.serving.test_serving import load, place, point
from tests.tasks.serving.turns import ANSWER, GEMMA, PHI_3, QUESTION

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RunningTriton

pytestmark = pytest.mark.slow

MODELS: dict[str, Kind] = {
    "gemma-engine": trt_engine("1.2.1", spoken=GEMMA),
    "phi-3-engine": trt_engine("0.8.0", spoken=PHI_3),
    "gemma-llm": llmapi("1.2.1", spoken=GEMMA),
    "phi-3-llm": llmapi("1.2.1", spoken=PHI_3),
}
ASKED = {"max_tokens": 200, "temperature": 0.0}


@pytest.fixture(scope="module")
def triton(
    start_triton: Callable[[str], RunningTriton], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningTriton]:
    started = start_triton("turns")
    for name, kind in MODELS.items():
        folder: Path = tmp_path_factory.mktemp(name)
        place(started, kind, name, 1, Role(4, 512, chat_template=True, timeout_s=60.0), folder)
    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(load, started, name, 1) for name in MODELS]
    for each in loads:
        each.result()
    for name in MODELS:
        point(started, name, 1)
    yield started
    started.process.terminate()
    started.process.wait(20)


@pytest.fixture(scope="module")
def gateway(triton: RunningTriton) -> Iterator[House]:
    public = dict.fromkeys(MODELS, 1)
    with house() as started:
        started.watch.tell(TargetState("test", public, (node("one", triton.client.grpc, public),)))
        yield started


@pytest.mark.parametrize("model", MODELS)
def test_an_answer_ends_at_the_turn(triton: RunningTriton, model: str) -> None:
    asked: dict[str, Any] = {"text_input": QUESTION, **ASKED}
    assert triton.client.generate(model, asked).text == ANSWER
    assert "".join(piece.text for piece in triton.client.generate_stream(model, {**asked, "stream": True})) == ANSWER
    # As a client that has rendered the prompt itself would see it, with every mark in it.
    marked = {**asked, "skip_special_tokens": False}
    assert triton.client.generate(model, marked).text == ANSWER


@pytest.mark.parametrize("model", MODELS)
def test_and_so_it_does_through_the_gateway(gateway: House, model: str) -> None:
    chat = {"model": model, "messages": [{"role": "user", "content": QUESTION}], **ASKED}
    with gateway.client() as client:
        whole = client.post("/v1/chat/completions", json=chat).json()["choices"][0]
        streamed = client.post("/v1/chat/completions", json={**chat, "stream": True}).text
        published = client.post(f"/v2/models/{model}/generate", json={"text_input": QUESTION, **ASKED}).json()
    assert (whole["message"]["content"], whole["finish_reason"]) == (ANSWER, "stop")
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    choices = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == ANSWER
    assert choices[-1]["finish_reason"] == "stop"
    assert (published["text_output"], published["finish_reason"]) == (ANSWER, "stop")
