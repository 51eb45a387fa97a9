"""A span of each request through the gateway, before stand-ins of nodes and a collector."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deployments.gateway.state import TargetState
from deployments.gateway.traces import RequestTraces
from infra.traces.sending import Sending
from tests.deployments.gateway.house import MODEL, House, house, node, until
from tests.trace_collector import Collector, collector

triton_grpc: Any = importlib.import_module("tritonclient.grpc")
TRACE, CALLER = "a" * 32, "b" * 16
SENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
REBUILD = f"{'c' * 32}-{'d' * 16}"


@pytest.fixture(scope="module")
def spans() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def sending(spans: Collector) -> Iterator[Sending]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        made = Sending(f"{spans.endpoint}/v1/traces", "gateway")
    yield made
    made.end()


@pytest.fixture(scope="module")
def one(sending: Sending) -> Iterator[House]:
    with house(front={"traced": RequestTraces(sending.provider).traced}) as made:
        made.add_node("one", contract=2, counts_tokens=True)
        made.public()
        yield made


def trace(number: int) -> dict[str, str]:
    return {"traceparent": f"00-{number:032x}-{CALLER}-01"}


def test_a_request_over_http_goes_on_with_its_trace_and_says_what_it_was(one: House, spans: Collector) -> None:
    began = time.time()
    assert len(one.stream("count 3 0.05", headers={**SENT, "x-request-id": "mine"})) == 3
    spans.wait(lambda: spans.of(TRACE), "span")
    (span,) = spans.of(TRACE).values()
    assert (span.name, span.parent, span.service, span.kind) == (f"text_completion {MODEL}", CALLER, "gateway", 2)
    assert began <= span.began <= span.events["first response"] <= span.ended <= time.time()
    assert 0.05 <= span.events["first response"] - span.began <= span.ended - span.began - 0.1
    assert span.attributes.pop("gen_ai.response.time_to_first_chunk") >= 0.05
    assert span.attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "enginehouse",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": f"{MODEL}@1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 9,
        "enginehouse.node": "one",
        "enginehouse.release": 1,
        "enginehouse.request_id": "mine",
        "enginehouse.target": "test",
        "url.path": f"/v2/models/{MODEL}/generate_stream",
    }
    assert not span.failed and not span.links
    # The node is told this span, not the caller's.
    assert one.nodes["one"].traceparents[-1] == f"00-{TRACE}-{span.id}-01"
    assert not any(b"count 3" in body for body in spans.bodies)


def test_a_request_over_grpc_has_the_same(one: House, spans: Collector) -> None:
    inputs: list[Any] = []
    for name, datatype, value in (("text_input", "BYTES", b"what"), ("max_tokens", "INT32", 4)):
        inputs.append(triton_grpc.InferInput(name, [1, 1], datatype))
        inputs[-1].set_data_from_numpy(np.array([[value]], dtype=np.object_ if datatype == "BYTES" else np.int32))
    client = triton_grpc.InferenceServerClient(one.grpc)
    client.infer(MODEL, inputs, headers=trace(2))
    client.close()
    spans.wait(lambda: spans.of(f"{2:032x}"), "span")
    (span,) = spans.of(f"{2:032x}").values()
    assert (span.parent, span.attributes["enginehouse.node"]) == (CALLER, "one") and "first response" in span.events
    assert one.nodes["one"].traceparents[-1] == f"00-{2:032x}-{span.id}-01"


def test_what_is_refused_and_who_leaves_is_said_and_only_our_own_failures_are_failures(
    one: House, spans: Collector
) -> None:
    assert one.generate("refuse", headers=trace(3)).status_code == 400
    assert one.generate("x", model="unheard-of", headers=trace(4)).status_code == 404
    with one.client() as client:
        body = {"text_input": "count 100 0.02", "max_tokens": 4}
        with client.stream("POST", f"/v2/models/{MODEL}/generate_stream", json=body, headers=trace(5)) as answer:
            next(answer.iter_lines())
    spans.wait(lambda: spans.of(f"{5:032x}"), "span of the one that left")
    found = [next(iter(spans.of(f"{number:032x}").values())) for number in (3, 4, 5)]
    assert [span.attributes["error.type"] for span in found] == ["triton-refused", "model-unknown", "client-left"]
    assert not any(span.failed for span in found) and found[1].name == "text_completion"


def test_a_node_that_is_lost_is_a_failure(sending: Sending, spans: Collector) -> None:
    with house(front={"traced": RequestTraces(sending.provider).traced, "patience_s": 0.2}) as lonely:
        lonely.add_node("one")
        lonely.public(on={})
        assert lonely.generate("x", headers=trace(6)).status_code == 503
    spans.wait(lambda: spans.of(f"{6:032x}"), "span")
    assert spans.of(f"{6:032x}")[f"text_completion {MODEL}"].failed


def test_what_asks_no_model_has_no_span_and_what_is_not_sampled_is_not_told_to_the_node(
    one: House, spans: Collector
) -> None:
    with one.client() as client:
        assert client.get(f"/v2/models/{MODEL}", headers=trace(7)).status_code == 200
    unsampled = {"traceparent": f"00-{8:032x}-{CALLER}-00"}
    assert one.generate("x", headers=unsampled).status_code == 200
    assert one.nodes["one"].traceparents[-1] == ""
    assert one.generate("x", headers=trace(9)).status_code == 200
    spans.wait(lambda: spans.of(f"{9:032x}"), "span")
    assert not spans.of(f"{7:032x}") and not spans.of(f"{8:032x}")


def test_a_request_is_linked_to_the_rebuild_that_made_its_release(sending: Sending, spans: Collector) -> None:
    origins = {(MODEL, 1): "", (MODEL, 2): f"00-{REBUILD}-01"}
    with house(front={"traced": RequestTraces(sending.provider).traced}) as linked:
        linked.add_node("one")
        linked.nodes["one"].models |= {f"{MODEL}--r2", f"{MODEL}--r2--llm"}
        for release, number in ((1, 10), (2, 11)):
            one = node("one", linked.nodes["one"].grpc, {MODEL: release})
            linked.watch.tell(TargetState("test", {MODEL: release}, (one,), origins=origins))
            assert linked.generate("x", headers=trace(number)).status_code == 200
    spans.wait(lambda: spans.of(f"{11:032x}") and spans.of(f"{10:032x}"), "spans")
    name = f"text_completion {MODEL}"
    assert spans.of(f"{10:032x}")[name].links == ()  # its record is one of before, or its rebuild was not recorded
    assert spans.of(f"{11:032x}")[name].links == (REBUILD,)


class Heard(logging.Handler):
    """What a log would have."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_collector_that_is_away_holds_nobody_up_and_is_said_once() -> None:
    log = Heard()
    logging.getLogger().addHandler(log)
    with collector() as spans, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        spans.status = 400  # one that may be retried would be tried again for ten seconds
        made = Sending(f"{spans.endpoint}/v1/traces", "gateway")
        with house(front={"traced": RequestTraces(made.provider).traced}) as gateway:
            gateway.add_node("one")
            gateway.public()
            for _ in range(3):
                asked = spans.asked
                assert gateway.generate("x").status_code == 200
                until(lambda asked=asked: spans.asked > asked, "batch")
        began = time.monotonic()
        made.end()
        assert time.monotonic() - began < 3
    logging.getLogger().removeHandler(log)
    (line,) = log.lines
    assert line.endswith("takes none: they are dropped while that is so")
