"""A share of the requests goes to a candidate: how many, whose, and what becomes of them if it fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from deployments.gateway.call import Call
from deployments.gateway.canary import canary_of, client_of, is_chosen
from deployments.gateway.names import Name
from deployments.gateway.places import Node
from deployments.gateway.state import Known, TargetState
from tasks.targets.parsers import ModelParsers
from tasks.targets.traffic import Canary, Traffic
from tests.deployments.gateway.house import MODEL, House, house
from tests.deployments.gateway.house import node as reported

REQUESTS = 5000
NAME = Name(MODEL)


def known(canary: Canary | None, *nodes: Node, **options: Any) -> Known:
    traffic = {} if canary is None else {MODEL: Traffic(canary=canary)}
    return Known((TargetState("test", {MODEL: 1}, nodes, traffic=traffic, **options),), 1)


def both(name: str = "one", grpc: str = "127.0.0.1:1") -> Node:
    return reported(name, grpc, {MODEL: 1}, {MODEL: [2]})


def call(session: str = "") -> Call:
    return Call("id", time.monotonic() + 60, session)


def goes(state: Known, name: Name = NAME, session: str = "") -> int | None:
    return canary_of(state, state.places(name), name, call(session))


@pytest.mark.parametrize("sessions", [False, True])
def test_the_share_is_within_its_interval(sessions: bool) -> None:
    state = known(Canary(release=2, share=0.1), both())
    taken = sum(goes(state, session=f"client {number}" if sessions else "") == 2 for number in range(REQUESTS))
    # 4.4 standard deviations of a binomial of 5,000 at 10 %: one run in 100,000 is outside. Sessions are no chance.
    assert abs(taken - 500) <= 93


def test_a_client_stays_and_a_growing_share_only_adds_clients() -> None:
    clients = [f"client {number}" for number in range(1000)]
    before: set[str] = set()
    for share in (0.01, 0.05, 0.25, 0.5, 1.0):
        state = known(Canary(release=2, share=share), both())
        of_it = {each for each in clients if goes(state, session=each) == 2}
        assert of_it == {each for each in clients if goes(state, session=each) == 2}, "asked again"
        assert before <= of_it
        before = of_it
    assert len(before) == 1000
    first = {each for each in clients if is_chosen(Canary(release=2, share=0.1), MODEL, each)}
    other = {each for each in clients if is_chosen(Canary(release=3, share=0.1), MODEL, each)}
    assert len(first & other) < 50, "the same clients are not first each time"


def test_without_sticky_chance_decides_for_each_request() -> None:
    state = known(Canary(release=2, share=0.5, sticky=False), both())
    assert len({goes(state, session="one client") for _ in range(100)}) == 2


def test_what_is_no_request_for_the_public_name_or_has_no_canary_stays() -> None:
    all_of_it = Canary(release=2, share=1)
    state = known(all_of_it, both())
    assert goes(state) == 2 and goes(state, Name(MODEL, alias="ensemble")) == 2
    assert goes(state, Name(MODEL, 1)) is None and goes(state, Name(MODEL, 2)) is None
    assert goes(known(None, both())) is None
    assert goes(known(all_of_it, reported("one", "127.0.0.1:1", {MODEL: 1}))) is None, "no node has it ready"


def test_a_request_for_an_adapter_goes_to_a_canary_that_has_it() -> None:
    asked = Name(MODEL, adapter="sql")
    for adapters, expected in (({(MODEL, 2): ("sql",)}, 2), ({(MODEL, 2): ("poet",)}, None), ({}, None)):
        state = known(Canary(release=2, share=1), both(), adapters={(MODEL, 1): ("sql",), **adapters})
        assert goes(state, asked) == expected


def test_a_session_comes_before_the_key() -> None:
    assert client_of(call("chat")) == "chat" and client_of(call()) == ""


@pytest.fixture
def served() -> Iterator[House]:
    with house(front={"patience_s": 3.0}) as made:
        one = made.add_node("one")
        one.models.add(f"{MODEL}--r2--llm")
        shift(made, 1.0)
        yield made


def shift(made: House, share: float, **options: Any) -> None:
    nodes = tuple(both(name, each.grpc) for name, each in made.nodes.items())
    traffic = {MODEL: Traffic(canary=Canary(release=2, share=share))}
    made.watch.tell(TargetState("test", {MODEL: 1}, nodes, traffic=traffic, **options))


def asked_of(made: House, name: str = "one") -> Counter[str]:
    return Counter(model.removeprefix(f"{MODEL}--") for model, _ in made.nodes[name].asked)


def figures(made: House) -> str:
    with made.client() as client:
        return client.get("/metrics").text


def test_requests_go_to_the_canary_under_the_public_name(served: House) -> None:
    assert served.generate("x").json()["model_name"] == MODEL
    assert [each["text_output"] for each in served.stream("count 3 0")] == ["0 ", "1 ", "2 "]
    assert served.generate("pinned", model=f"{MODEL}@1").status_code == 200
    assert asked_of(served) == {"r2--llm": 2, "r1--llm": 1}
    told = figures(served)
    assert f'enginehouse_gateway_requests_total{{adapter="",model="{MODEL}",outcome="ok",release="2"}} 2.0' in told
    assert f'time_to_first_token_seconds_count{{adapter="",model="{MODEL}",release="2"}} 2.0' in told
    half = Canary(release=2, share=0.5)
    shift(served, half.share)
    served.nodes["one"].asked.clear()
    clients = [f"client {number}" for number in range(6)] * 2
    with served.client() as client:
        for each in clients:
            body = {"text_input": each, "max_tokens": 4}
            headers = {"x-enginehouse-session": each}
            assert client.post(f"/v2/models/{MODEL}/generate", json=body, headers=headers).status_code == 200
    expected = [(f"{MODEL}--r{2 if is_chosen(half, MODEL, each) else 1}--llm", each) for each in clients]
    assert served.nodes["one"].asked == expected and len({model for model, _ in expected}) == 2


@pytest.mark.parametrize(
    ("prompt", "outcome"),
    [("fail internal", "model-failed"), ("fail unavailable", "model-busy"), ("fail cancelled", "model-cancelled")],
)
def test_a_canary_that_fails_costs_its_clients_nothing(served: House, prompt: str, outcome: str) -> None:
    one = served.nodes["one"]
    one.broken = {f"{MODEL}--r2--llm"}
    one.broken_says = prompt
    assert served.generate("hello").json()["text_output"] == "hello"
    assert asked_of(served) == {"r2--llm": 1, "r1--llm": 1}
    told = figures(served)
    assert f'canary_fallbacks_total{{adapter="",model="{MODEL}",outcome="{outcome}",release="2"}} 1.0' in told
    assert f'requests_total{{adapter="",model="{MODEL}",outcome="ok",release="1"}} 1.0' in told


def test_a_canary_that_is_not_loaded_any_more_is_left_for_the_public_release(served: House) -> None:
    assert served.generate("warm").status_code == 200
    served.nodes["one"].models.remove(f"{MODEL}--r2--llm")
    began = time.monotonic()
    assert served.generate("x").json()["text_output"] == "x"
    assert time.monotonic() - began < 1, "nobody waits for a canary"
    assert asked_of(served)["r1--llm"] == 1


def test_a_canary_on_a_node_that_died_is_left_for_the_public_release_on_another(served: House) -> None:
    served.add_node("two")
    shift_to = (both("one", served.nodes["one"].grpc), reported("two", served.nodes["two"].grpc, {MODEL: 1}))
    traffic = {MODEL: Traffic(canary=Canary(release=2, share=1))}
    served.watch.tell(TargetState("test", {MODEL: 1}, shift_to, traffic=traffic))
    assert served.generate("warm").status_code == 200
    served.run(served.nodes["one"].stop())
    assert served.generate("x").json()["text_output"] == "x"
    assert asked_of(served, "two") == {"r1--llm": 1}


def test_an_answer_that_has_begun_stays_with_the_canary(served: House) -> None:
    served.nodes["one"].broken = {f"{MODEL}--r2--llm"}
    served.nodes["one"].broken_says = "torn"
    *pieces, last = served.stream("count 5 0")
    assert [each["text_output"] for each in pieces] == ["0 "] and last["code"] == "model-failed"
    assert asked_of(served) == {"r2--llm": 1}, "nothing of another release is put behind"


def test_a_request_that_the_canary_does_not_take_is_answered_by_the_public_release() -> None:
    with house() as made:
        one = made.add_node("one", contract=2)
        made.add_node("two", contract=1)
        made.nodes["two"].models = {f"{MODEL}--r2--llm"}
        nodes = (
            reported("one", one.grpc, {MODEL: 1}),
            Node("test", "two", made.nodes["two"].grpc, {MODEL: frozenset({2})}, {}),
        )
        traffic = {MODEL: Traffic(canary=Canary(release=2, share=1))}
        made.watch.tell(TargetState("test", {MODEL: 1}, nodes, traffic=traffic))
        body = {"text_input": "x", "max_tokens": 4, "return_num_output_tokens": True}
        with made.client() as client:
            assert client.post(f"/v2/models/{MODEL}/generate", json=body).json()["text_output"] == "x"
            assert (
                client.get(f"/v2/models/{MODEL}").json()["inputs"]
                == client.get(f"/v2/models/{MODEL}@1").json()["inputs"]
            )
        assert (asked_of(made), asked_of(made, "two")) == ({"r1--llm": 1}, {})
        assert 'outcome="request-malformed",release="2"} 1.0' in figures(made)


def test_a_chat_is_made_for_the_canary_as_a_whole_and_for_the_public_release_if_that_fails() -> None:
    with house() as made:
        one = made.add_node("one", contract=2)
        one.models.add(f"{MODEL}--r2--llm")
        shift(made, 1.0, parsers={(MODEL, 1): ModelParsers(), (MODEL, 2): ModelParsers(reasoning_parser="think")})
        body = {"model": MODEL, "messages": [{"role": "user", "content": "say <think>why</think>what"}], "n": 2}
        with made.client() as client:
            ask = partial(client.post, "/v1/chat/completions", json=body)
            told = [choice["message"] for choice in ask().json()["choices"]]
            assert [(each["content"], each["reasoning_content"]) for each in told] == [("what", "why")] * 2
            assert asked_of(made) == {"r2--llm": 2}, "it is read as the canary writes it"
            one.broken, one.broken_says = {f"{MODEL}--r2--llm"}, "fail internal"
            told = [choice["message"] for choice in ask().json()["choices"]]
            assert [each["content"] for each in told] == ["<think>why</think>what"] * 2
            assert asked_of(made)["r1--llm"] == 2
            one.models.remove(f"{MODEL}--r2--llm")
            assert ask().status_code == 200 and asked_of(made)["r1--llm"] == 4
        assert 'outcome="model-failed",release="2"} 1.0' in figures(made)
