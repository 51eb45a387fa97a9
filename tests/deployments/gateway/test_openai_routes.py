"""OpenAI's API at the gateway, before a stand-in of a node: what a client sends reaches it, and comes back whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deployments.gateway.adapters import choose_adapter
from deployments.gateway.call import Call
from deployments.gateway.contract import Contract, Tensor
from deployments.gateway.keys import Keys
from deployments.gateway.messages import infer_request
from deployments.gateway.names import Name
from deployments.gateway.state import TargetState
from infra.errors import GatewayError
from tasks.targets.parsers import ModelParsers
from tests.deployments.gateway.fake_node import text, texts
from tests.deployments.gateway.house import MODEL, House, house, node, until


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


@pytest.mark.parametrize(
    ("code", "status", "name", "param"),
    [
        ("invalid", 400, None, None),
        ("context-length", 400, "context_length_exceeded", "messages"),
        ("unavailable", 503, "unavailable", None),
        ("deadline", 504, "deadline_exceeded", None),
        ("cancelled", 503, "cancelled", None),
        ("internal", 500, "internal_error", None),
    ],
)
def test_what_a_release_says_of_a_failure_has_its_status(
    gateway: House, code: str, status: int, name: str | None, param: str | None
) -> None:
    for stream in (False, True):
        answer = chat(gateway, f"fail {code}", stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, name, param)
        assert error["message"].removeprefix("the prompt is too long: ") == "what happened"
    assert gateway.generate(f"fail {code}").status_code == status


def serve(gateway: House, public: int, parsers: ModelParsers, *held: int) -> None:
    """The release is public, and the node has those that are held beside it."""
    numbers = frozenset((public, *held))
    gateway.nodes["one"].models |= {f"{MODEL}--r{number}" for number in numbers}
    known = node("one", gateway.nodes["one"].grpc, {MODEL: public}, {MODEL: list(held)})
    gateway.watch.tell(
        TargetState("test", {MODEL: public}, (known,), parsers={(MODEL, each): parsers for each in numbers})
    )


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}


def test_the_parsers_are_those_of_the_release(gateway: House) -> None:
    said = 'say <think>\nHm.</think><tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    refused = chat(gateway, said, tools=[TOOL])
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"
    serve(gateway, 1, ModelParsers("hermes", "think"))
    message = chat(gateway, said, tools=[TOOL]).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "Hm." and message["tool_calls"][0]["function"]["name"] == "clock"
    assert inputs(gateway)["skip_special_tokens"] == b"\0"
    # A guide leaves no room for marks.
    chat(gateway, said, response_format={"type": "json_object"})
    assert "skip_special_tokens" not in inputs(gateway)
    serve(gateway, 2, ModelParsers())
    assert "<think>" in chat(gateway, said).json()["choices"][0]["message"]["content"]


def with_adapters(gateway: House, adapters: tuple[str, ...]) -> None:
    known = node("one", gateway.nodes["one"].grpc, {MODEL: 1}, {MODEL: [1]})
    gateway.watch.tell(TargetState("test", {MODEL: 1}, (known,), adapters={(MODEL, 1): adapters}))


def test_an_adapter_is_a_model_of_its_own_to_its_clients(gateway: House) -> None:
    with_adapters(gateway, ("french", "sql"))
    with gateway.client() as client:
        listed = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
        assert listed == [MODEL, f"{MODEL}:french", f"{MODEL}:sql"]
        assert client.get(f"/v1/models/{MODEL}:sql").json()["id"] == f"{MODEL}:sql"
        asked = {"model": f"{MODEL}:sql", "messages": [{"role": "user", "content": "count 3 0"}]}
        answer = client.post("/v1/chat/completions", json=asked).json()
        assert answer["model"] == f"{MODEL}:sql" and inputs(gateway)["lora_name"] == "sql"
        client.post("/v1/completions", json={"model": f"{MODEL}@1:french", "prompt": "count 3 0"})
        assert inputs(gateway)["lora_name"] == "french"
        client.post("/v1/completions", json={"model": MODEL, "prompt": "count 3 0"})
        assert "lora_name" not in inputs(gateway)
        unknown = client.post("/v1/completions", json={"model": f"{MODEL}:latin", "prompt": "count 3 0"})
        error = unknown.json()["error"]
        assert unknown.status_code == 404 and "its adapters are french, sql" in error["message"]
        with_adapters(gateway, ())
        error = client.post("/v1/completions", json={"model": f"{MODEL}:sql", "prompt": "x"}).json()["error"]
        assert "it has no adapters" in error["message"]
        assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == [MODEL]
    metrics = gateway.front.figures.text().decode()
    assert f'requests_total{{adapter="sql",model="{MODEL}",outcome="ok",release="1"}}' in metrics
    assert "latin" not in metrics


def test_triton_s_own_protocol_takes_an_adapter_s_name_too(gateway: House) -> None:
    with_adapters(gateway, ("sql",))
    with gateway.client() as client:
        rows = {"name": "text_input", "datatype": "BYTES", "shape": [2, 1], "data": [["count 3 0"], ["count 3 0"]]}
        answer = client.post(f"/v2/models/{MODEL}:sql/infer", json={"inputs": [rows]})
        assert answer.status_code == 200, answer.text
        sent = gateway.nodes["one"].requests[-1]
        raw = dict(zip((each.name for each in sent.inputs), sent.raw_input_contents, strict=True))
        assert texts(raw["lora_name"]) == ["sql", "sql"]
        twice = {"text_input": "x", "lora_name": "sql"}
        error = client.post(f"/v2/models/{MODEL}:sql/generate", json=twice)
        assert error.status_code == 400 and "named by the model already" in error.text
    # Of a client that sends its texts in the message, and not as raw bytes behind it.
    request, contract = infer_request(), Contract("any", "", {"lora_name": Tensor("lora_name", "BYTES", (-1, 1))}, {})
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1], contents={"bytes_contents": [b"x"]})
    choose_adapter(request, contract, Name(MODEL, adapter="sql"))
    added: Any = request.inputs[1]
    assert list(added.contents.bytes_contents) == [b"sql"] and not request.raw_input_contents
    with pytest.raises(GatewayError, match="has no adapters"):
        choose_adapter(infer_request(), replace(contract, inputs={}), Name(MODEL, adapter="sql"))


def test_of_two_calls_the_first_one_stays_where_one_is_wanted(gateway: House) -> None:
    serve(gateway, 1, ModelParsers("hermes"))
    said = 'say <tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    for fields, calls in (({}, 2), ({"parallel_tool_calls": False}, 1)):
        (choice,) = chat(gateway, said + said[4:], tools=[TOOL], **fields).json()["choices"]
        assert len(choice["message"]["tool_calls"]) == calls and choice["finish_reason"] == "tool_calls"


def test_a_request_goes_to_the_release_that_it_was_made_for(gateway: House) -> None:
    async def ask(call: Call) -> None:
        async for _ in gateway.front.generate(call, {"text_input": "what"}):
            pass

    serve(gateway, 1, ModelParsers("hermes"))
    call = Call("id", time.monotonic() + 10)
    gateway.front.named(call, MODEL)
    assert gateway.run(gateway.front.pin(call))[1] == ModelParsers("hermes")
    serve(gateway, 2, ModelParsers(), 1)
    gateway.run(ask(call))
    assert gateway.nodes["one"].asked[-1][0].startswith(f"{MODEL}--r1")
    serve(gateway, 2, ModelParsers())
    with pytest.raises(GatewayError, match="loaded on no node"):
        gateway.run(ask(call))
    assert gateway.run(gateway.front.pin(call))[1] == ModelParsers()


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
