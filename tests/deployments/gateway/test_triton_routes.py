"""Triton's protocol over HTTP through a real gateway, before stand-ins of nodes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.gateway.contract import Contract
from deployments.gateway.keys import Keys
from deployments.gateway.state import TargetState
from tests.deployments.gateway.house import MODEL, House, house, node, post, until


@pytest.fixture(scope="module")
def served() -> Iterator[House]:
    with house() as made:
        made.add_node("one")
        made.public()
        yield made


def ask(served: House, path: str, body: Any, method: str = "POST", headers: dict[str, str] | None = None) -> Any:
    with served.client() as client:
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        return client.request(method, path, content=content, headers=headers)


def test_generate_answers_as_triton_does(served: House) -> None:
    answer = served.generate("hello")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"model_name": MODEL, "model_version": "1", "sequence_id": 0, "text_output": "hello"}
    assert served.nodes["one"].asked[-1] == (f"{MODEL}--r1--llm", "hello")
    assert len(answer.headers["x-request-id"]) == 32


def test_inputs_become_tensors_and_the_rest_parameters(served: House) -> None:
    body = {
        "id": "42",
        "text_input": "all",
        "max_tokens": 3,
        "stop_words": ["a", "bé"],
        "parameters": {"temperature": 1, "stream": False, "mine": "yes", "share": 0.5},
        "priority": 3,
        "seed": 2**64 - 1,
    }
    answer = ask(served, f"/v2/models/{MODEL}/versions/1/generate", body)
    assert answer.status_code == 200 and answer.json()["id"] == "42"
    request = served.nodes["one"].requests[-1]
    raw = dict(zip([each.name for each in request.inputs], request.raw_input_contents, strict=True))
    assert {each.name: (each.datatype, list(each.shape)) for each in request.inputs} == {
        "text_input": ("BYTES", [1, 1]),
        "max_tokens": ("INT32", [1, 1]),
        "stop_words": ("BYTES", [1, 2]),
        "temperature": ("FP32", [1, 1]),
        "stream": ("BOOL", [1, 1]),
        "seed": ("UINT64", [1, 1]),
    }
    assert raw["stop_words"] == b"\x01\0\0\0a\x03\0\0\0b\xc3\xa9" and raw["temperature"] == b"\0\0\x80?"
    assert request.parameters["mine"].string_param == "yes" and request.parameters["share"].double_param == 0.5
    assert request.parameters["priority"].int64_param == 3 and request.id == "42"


def test_a_stream_is_events_and_ends(served: House) -> None:
    assert [event["text_output"] for event in served.stream("count 3 0")] == ["0 ", "1 ", "2 "]
    with served.client() as client:
        body = {"text_input": "count 2 0", "max_tokens": 4}
        answer = client.post(f"/v2/models/{MODEL}/generate_stream", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.count("data: ") == 2 and answer.text.endswith("\n\n")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"text_input": "a", "text_input": "b"}', "twice"),
        (b'{"text_input": "a", "max_tokens": NaN}', "NaN"),
        (b'{"text_input": "a", "max_tokens": 4294967297}', "'max_tokens' has a number that does not fit into INT32"),
        (b'{"text_input": "a", "max_tokens": 1.5}', "'max_tokens' takes whole numbers"),
        (b'{"text_input": 1, "max_tokens": 1}', "'text_input' takes text"),
        (b'{"text_input": "\\ud800", "max_tokens": 1}', "surrogate"),
        (b'{"text_input": "a", "max_tokens": 1, "stream": 1}', "'stream' takes true or false"),
        (b'{"text_input": "a", "max_tokens": 1, "temperature": 1e300}', "'temperature' has a number that does not fit"),
        (b'{"text_input": "a", "max_tokens": 1, "mine": {"a": 1}}', "'mine' is no input"),
        (b'{"text_input": "a", "max_tokens": 1, "mine": 1' + b"0" * 40 + b"}", "'mine' cannot be a parameter"),
        (b'{"text_input": "a", "id": "\\ud800"}', "'id' is text"),
        (b'{"text_input": "a", "\\ud800": 1}', "cannot be a parameter"),
        (b'{"text_input": "a", "parameters": 1}', "'parameters' is an object"),
        (b'{"text_input": "a", "max_tokens": [1, 2]}', "max_tokens"),
    ],
)
def test_malformed_requests_reach_no_node(served: House, body: bytes, says: str) -> None:
    before = len(served.nodes["one"].asked)
    answer = ask(served, f"/v2/models/{MODEL}/generate", body)
    assert (answer.status_code, answer.json().get("code")) in ((400, "request-malformed"), (400, "triton-refused"))
    assert says in answer.json()["error"] and len(served.nodes["one"].asked) == before


def test_what_a_model_refuses_is_a_status_and_in_a_stream_too(served: House) -> None:
    answer = served.generate("refuse")
    assert answer.status_code == 400 and answer.json()["code"] == "triton-refused"
    assert "the least is 0" in answer.json()["error"]
    streamed = ask(served, f"/v2/models/{MODEL}/generate_stream", {"text_input": "refuse", "max_tokens": 1})
    assert streamed.status_code == 400 and streamed.headers["content-type"] == "application/json"


def test_several_answers_are_no_one_answer(served: House) -> None:
    answer = served.generate("twice")
    assert answer.status_code == 400 and answer.json()["code"] == "answers-many"
    assert "generate_stream" in answer.json()["hint"]


def test_infer_with_json(served: House) -> None:
    body = {
        "id": "7",
        "inputs": [
            {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [["in JSON"]]},
            {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [4]},
        ],
        "outputs": [{"name": "text_output"}],
    }
    answer = ask(served, f"/v2/models/{MODEL}/infer", body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "model_name": MODEL,
        "model_version": "1",
        "id": "7",
        "parameters": {"sequence_id": 0},
        "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1, 1], "data": ["in JSON"]}],
    }


def test_infer_with_bytes_behind_the_json_both_ways(served: House) -> None:
    prompt = b"\x09\0\0\0in binary"
    head = json.dumps(
        {
            "inputs": [
                {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 13}},
                {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "parameters": {"binary_data_size": 4}},
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = ask(served, f"/v2/models/{MODEL}/infer", head + prompt + b"\4\0\0\0", headers=headers)
    size = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:size])["outputs"][0]["parameters"] == {"binary_data_size": 13}
    assert answer.content[size:] == prompt


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([{"name": "text_input", "shape": [1, 2], "datatype": "BYTES", "data": ["one"]}], "1 elements"),
        ([{"name": "text_input", "shape": [-1, 1], "datatype": "BYTES", "data": []}], "shape"),
        ([{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["one"]}], "has the shape [1]"),
        ([{"name": "text_input", "shape": [1, 1], "datatype": "INT32", "data": [1]}], "is BYTES, not INT32"),
        ([{"name": "\ud800", "shape": [1, 1], "datatype": "INT32", "data": [1]}], "inputs.0.name"),
        ([{"name": "other", "shape": [1, 1], "datatype": "INT32", "data": [1]}], "'other' is no input"),
        ([{"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [[[1]]]}], "nested deeper"),
        (
            [{"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "parameters": {"binary_data_size": 4}}],
            "4 bytes of binary data, and 0 are there",
        ),
        (
            [
                {
                    "name": "max_tokens",
                    "shape": [1, 1],
                    "datatype": "INT32",
                    "data": [1],
                    "parameters": {"shared_memory_region": "x"},
                }
            ],
            "shared memory",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_model_reach_no_node(served: House, inputs: Any, says: str) -> None:
    before = len(served.nodes["one"].requests)
    answer = ask(served, f"/v2/models/{MODEL}/infer", {"inputs": inputs})
    assert answer.status_code == 400 and answer.json()["code"] == "request-malformed"
    assert says in answer.json()["error"] and len(served.nodes["one"].requests) == before


def test_metadata_config_and_readiness(served: House) -> None:
    metadata = ask(served, f"/v2/models/{MODEL}", None, "GET").json()
    assert metadata["name"] == MODEL and metadata["versions"] == ["1"] and metadata["platform"] == "ensemble"
    assert {"name": "text_input", "datatype": "BYTES", "shape": ["-1", "1"]} in metadata["inputs"]
    config = ask(served, f"/v2/models/{MODEL}/config", None, "GET").json()
    assert (config["name"], config["max_batch_size"]) == (MODEL, 64)
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert [each["dims"] for each in config["input"] if each["name"] == "stop_words"] == [["-1"]]
    assert ask(served, f"/v2/models/{MODEL}/ready", None, "GET").status_code == 200
    assert ask(served, "/v2/health/live", None, "GET").status_code == 200
    assert ask(served, "/v2/health/ready", None, "GET").status_code == 200
    assert "binary_tensor_data" in ask(served, "/v2", None, "GET").json()["extensions"]
    assert ask(served, "/v2/models", None, "GET").json() == {"models": [{"name": MODEL}]}
    assert served.nodes["one"].metadata_asked == [f"{MODEL}--r1--llm"], "what a release takes is asked once"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v2/models/nobody/generate", 404, "model-unknown"),
        ("POST", f"/v2/models/{MODEL}--r1/generate", 404, "model-unknown"),
        ("POST", "/v2/models/..%2f..%2fx/generate", 404, "path-unknown"),
        ("POST", f"/v2/models/{MODEL}@9/generate", 404, "release-not-loaded"),
        ("POST", f"/v2/models/{MODEL}/versions/2/generate", 404, "version-unknown"),
        ("GET", f"/v2/models/{MODEL}/generate", 405, "path-unknown"),
        ("GET", f"/v2/models/{MODEL}/stats", 404, "path-unknown"),
        ("POST", "/v2/repository/index", 404, "path-unknown"),
        ("POST", f"/v2/repository/models/{MODEL}/unload", 404, "path-unknown"),
        ("GET", "/v2/systemsharedmemory/status", 404, "path-unknown"),
    ],
)
def test_everything_else_is_refused(served: House, method: str, path: str, status: int, code: str) -> None:
    answer = ask(served, path, {"text_input": "x", "max_tokens": 1} if method == "POST" else None, method)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_release_is_asked_by_its_number(served: House) -> None:
    with house() as made:
        one = made.add_node("one", release=2)
        one.models.add(f"{MODEL}--r1--llm")
        held = node("one", one.grpc, {MODEL: 2}, {MODEL: (1,)})
        made.watch.tell(TargetState("test", {MODEL: 2}, (held,)))
        answer = made.generate("older", model=f"{MODEL}@1")
        assert answer.status_code == 200 and answer.json()["model_name"] == f"{MODEL}@1"
        assert one.asked == [(f"{MODEL}--r1--llm", "older")]


def test_request_ids_and_log_lines_without_prompts(served: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "enginehouse.gateway"):
        given = served.generate("secret words", headers={"x-request-id": "mine-1"})
        odd = served.generate("count 2 0", headers={"x-request-id": "two words"})
    assert given.headers["x-request-id"] == "mine-1" and odd.headers["x-request-id"] != "two words"
    assert served.nodes["one"].requests[-2].id == "mine-1"
    lines = [record.getMessage() for record in caplog.records]
    first = next(line for line in lines if "request=mine-1 " in line)
    assert f"key=- model={MODEL} release=1 node=test/one outcome=ok" in first and "tokens_out=1" in first
    assert not any("secret" in line for line in lines)


@pytest.mark.parametrize("path", ["generate", "generate_stream", "infer"])
def test_a_client_that_leaves_is_seen_by_the_node_at_once(served: House, path: str) -> None:
    one = served.nodes["one"]
    before = len(one.cancelled)
    prompt = "count 500 0.02" if path == "generate_stream" else "count 1 20"
    body: dict[str, Any] = {"text_input": prompt, "max_tokens": 4}
    if path == "infer":
        inputs = [("text_input", "BYTES", prompt), ("max_tokens", "INT32", 4)]
        body = {"inputs": [{"name": n, "shape": [1, 1], "datatype": d, "data": [v]} for n, d, v in inputs]}
    with served.connect() as client:
        client.sendall(post(f"/v2/models/{MODEL}/{path}", json.dumps(body).encode()))
        until(lambda: one.running > 0, "request on the node")
        if path == "generate_stream":
            assert b"200 OK" in client.recv(100)
    assert until(lambda: len(one.cancelled) > before, "cancellation") < 0.5 and one.running == 0
    until(lambda: 'outcome="client-left"' in metrics(served), "figure of those that left")


def metrics(served: House) -> str:
    with served.client() as client:
        return client.get("/metrics").text


def test_figures(served: House) -> None:
    line = f'enginehouse_gateway_requests_total{{adapter="",model="{MODEL}",outcome="ok",release="1"}} '
    before = metrics(served).partition(line)[2].partition("\n")[0]
    served.stream("count 4 0")
    text = metrics(served)
    assert float(text.partition(line)[2].partition("\n")[0]) == float(before or 0) + 1
    of_release = f'{{adapter="",model="{MODEL}",release="1"}}'
    for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency", "request_queue_time"):
        assert f"enginehouse_gateway_{name}_seconds_count{of_release}" in text
    assert f'enginehouse_gateway_num_requests_running{{model="{MODEL}"}} 0.0' in text
    assert 'model="nobody"' not in text, "a client makes no label"


def test_tokens_are_those_that_a_release_counts() -> None:
    with house() as made:
        made.add_node("one", counts_tokens=True)
        made.public()
        made.stream("count 2 0")
        text = metrics(made)
        of_release = f'{{adapter="",model="{MODEL}",release="1"}}'
        assert f"enginehouse_gateway_prompt_tokens_total{of_release} 7.0" in text
        assert f"enginehouse_gateway_generation_tokens_total{of_release} 6.0" in text


def test_before_the_store_has_said_anything_it_is_not_ready() -> None:
    with house() as made:
        with made.client() as client:
            assert client.get("/health").status_code == 200
            assert client.get("/ready").json() == {"ready": False, "store": False, "nodes_by_model": {}}
            assert client.get("/ready").status_code == 503 and client.get("/v2/health/ready").status_code == 400
        early = made.generate("early")
        assert (early.status_code, early.json()["code"], early.headers["retry-after"]) == (503, "state-unknown", "2")
        made.add_node("one")
        made.public()
        with made.client() as client:
            assert client.get("/ready").json() == {"ready": True, "store": True, "nodes_by_model": {MODEL: 1}}
        assert made.generate("later").status_code == 200


def test_one_model_that_answers_nowhere_does_not_take_the_gateway() -> None:
    with house(front={"patience_s": 0.2}) as made:
        one = made.add_node("one")
        made.watch.tell(TargetState("test", {MODEL: 1, "gone": 4}, (node("one", one.grpc, {MODEL: 1}),)))
        with made.client() as client:
            assert client.get("/ready").status_code == 200
            assert client.get("/v2/models/gone/ready").status_code == 400
        answer = made.generate("x", model="gone")
        assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
        made.watch.tell(TargetState("test", {MODEL: 1, "gone": 4}, ()))
        with made.client() as client:
            assert client.get("/ready").status_code == 503


def test_thirty_two_at_once(served: House) -> None:
    got: list[str] = []

    def ask_one(number: int) -> None:
        got.append("".join(event["text_output"] for event in served.stream("count 20 0.005")))

    threads = [threading.Thread(target=ask_one, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == ["".join(f"{number} " for number in range(20))] * 32


def test_a_mistake_of_ours_is_logged_without_the_prompt(
    served: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, request: object) -> None:
        raise RuntimeError(str(request))

    monkeypatch.setattr(Contract, "check", broken)
    answer = served.generate("secret words")
    assert (answer.status_code, answer.json()["code"]) == (500, "gateway") and "secret" not in answer.text
    assert "RuntimeError in the gateway" in caplog.text and "in broken" in caplog.text
    assert "secret" not in caplog.text


def test_without_keys_nothing_is_asked_of_the_caller(served: House) -> None:
    assert not Keys(None).required
    assert served.generate("x", headers={"Authorization": "Bearer anything"}).status_code == 200


@pytest.fixture
def newer() -> Iterator[House]:
    """A gateway before a release of contract 2, which answers a batch row by row."""
    with house() as made:
        made.add_node("one", contract=2)
        made.public()
        yield made


def test_rows_of_a_batch_are_one_answer_in_their_order(newer: House) -> None:
    inputs = [
        {"name": "text_input", "shape": [3, 1], "datatype": "BYTES", "data": ["a", "bb", "ccc"]},
        {"name": "max_tokens", "shape": [3, 1], "datatype": "INT32", "data": [1, 2, 3]},
    ]
    everything = ask(newer, f"/v2/models/{MODEL}/infer", {"inputs": inputs}).json()["outputs"]
    asked = [{"name": name} for name in ("output_log_probs", "text_output")]
    some = ask(newer, f"/v2/models/{MODEL}/infer", {"inputs": inputs, "outputs": asked}).json()["outputs"]
    for outputs, has_rows in ((everything, True), (some, False)):
        found = {each["name"]: (each["shape"], each["data"]) for each in outputs}
        assert found.pop("text_output") == ([3, 1], ["a", "bb", "ccc"])
        assert found.pop("output_log_probs") == ([3, 1, 3], [-1, 0, 0, -1, -1, 0, -1, -1, -1]), "filled up with 0"
        assert found == ({"batch_index": ([3, 1], [0, 1, 2])} if has_rows else {}), "none that was not asked for"
    body = {"text_input": ["a", "bb"], "max_tokens": [1, 1]}
    assert ask(newer, f"/v2/models/{MODEL}/generate", body).json()["text_output"] == ["a", "bb"]
