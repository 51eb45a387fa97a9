"""OpenAI's API at the gateway, before a stand-in of a node: what a client sends reaches it, and comes back whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deployments.gateway.keys import Keys
from tests.deployments.gateway.fake_node import text
from tests.deployments.gateway.house import MODEL, House, house, until


@pytest.fixture
def gateway() -> Iterator[House]:
    with house() as made:
        made.add_node("one", contract=2, counts_tokens=True)
        made.public()
        yield made


def chat(gateway: House, said: str, **fields: Any) -> httpx.Response:
    with gateway.client() as client:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]
        return client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **fields})


def inputs(gateway: House) -> dict[str, Any]:
    """The texts and the other inputs of the last request, by name."""
    request = gateway.nodes["one"].requests[-1]
    sent = zip(request.inputs, request.raw_input_contents, strict=True)
    return {each.name: text(raw) if each.datatype == "BYTES" else raw for each, raw in sent}


def events(answer: httpx.Response) -> list[Any]:
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_chat_is_answered_whole(gateway: House) -> None:
    answer = chat(gateway, "count 3 0", temperature=0, seed=7, max_completion_tokens=9, stop="x")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["object"], document["model"]) == ("chat.completion", MODEL)
    assert document["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    (choice,) = document["choices"]
    assert choice["message"]["content"] == "0 1 2 " and choice["finish_reason"] == "stop"
    assert document["usage"] == {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    sent = inputs(gateway)
    assert json.loads(sent["messages"])[0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["seed"], sent["stop_words"]) == (b"\0" * 4, b"\7" + b"\0" * 7, "x")
    assert "stream" not in sent and "tools" not in sent


def test_a_chat_is_streamed_with_its_usage(gateway: House) -> None:
    answer = chat(gateway, "count 3 0", stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer)
    assert done == "[DONE]" and chunks[-1]["usage"]["total_tokens"] == 16 and chunks[-1]["choices"] == []
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert deltas[0]["delta"]["role"] == "assistant" and deltas[-1]["finish_reason"] == "stop"
    assert "".join(each["delta"].get("content") or "" for each in deltas) == "0 1 2 "


def test_several_choices_are_several_requests(gateway: House) -> None:
    answer = chat(gateway, "hello", n=3)
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2]
    assert answer.json()["usage"] == {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    assert len(gateway.nodes["one"].asked) == 3


def test_a_completion_of_several_prompts(gateway: House) -> None:
    with gateway.client() as client:
        answer = client.post("/v1/completions", json={"model": f"{MODEL}@1", "prompt": ["a", "b"], "max_tokens": 4})
    assert [choice["text"] for choice in answer.json()["choices"]] == ["a", "b"]
    assert answer.json()["object"] == "text_completion"


def test_models(gateway: House) -> None:
    with gateway.client() as client:
        (entry,) = client.get("/v1/models").json()["data"]
        assert entry["id"] == MODEL and client.get(f"/v1/models/{MODEL}").json() == entry
        missing = client.get("/v1/models/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "status", "param", "word"),
    [
        ({"model": "nothing"}, 404, None, "nothing"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater"),
        ({"unheard_of": 1}, 400, "unheard_of", "unheard_of"),
        ({"messages": [{"role": "user", "content": "refuse"}]}, 400, "temperature", "'temperature' is -1"),
    ],
)
def test_errors_have_the_form_of_the_api(
    gateway: House, fields: dict[str, Any], status: int, param: str | None, word: str
) -> None:
    answer = chat(gateway, "hello", **fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and word in error["message"] and error["type"] == "invalid_request_error"


def test_a_key_that_is_none_is_refused_in_the_form_of_the_api(tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("keys: []")
    with house(keys=Keys(tmp_path / "keys")) as made:
        made.add_node("one", contract=2)
        made.public()
        answer = chat(made, "hello")
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


def test_a_release_without_chats_says_so() -> None:
    with house() as made:
        made.add_node("one", counts_tokens=True)
        made.public()
        answer = chat(made, "hello")
    assert answer.status_code == 400 and "serving.contract" in answer.json()["error"]["message"]


def test_a_client_that_leaves_is_seen_by_the_node(gateway: House) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "count 1000 0.05"}], "stream": True}
    with gateway.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    until(lambda: gateway.nodes["one"].cancelled == ["count 1000 0.05"], "cancelled request", 1)
