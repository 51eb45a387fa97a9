"""Nodes that come, go and die under requests, through the gateway's HTTP door."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from deployments.gateway.front import Caller
from deployments.gateway.generate import Given
from deployments.gateway.serve import Options
from deployments.gateway.state import TargetState
from tests.deployments.gateway.house import MODEL, House, house, node, until


@pytest.fixture
def two() -> Iterator[House]:
    with house(front={"patience_s": 3.0}) as made:
        made.add_node("one")
        made.add_node("two")
        made.public()
        yield made


def in_thread(work: Any, *arguments: Any) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(work(*arguments)))
    thread.start()
    return thread, got


def who_runs(two: House) -> str:
    until(lambda: any(each.running for each in two.nodes.values()), "request on a node")
    return next(name for name, each in two.nodes.items() if each.running)


def test_the_node_with_the_fewest_running_gets_the_next(two: House) -> None:
    threads = [in_thread(two.stream, "hold 30")[0] for _ in range(8)]
    until(lambda: sum(each.running for each in two.nodes.values()) == 8, "eight requests")
    assert {name: each.running for name, each in two.nodes.items()} == {"one": 4, "two": 4}
    two.let_go()
    for thread in threads:
        thread.join(20)


def test_a_session_stays_on_one_node_and_sessions_spread(two: House) -> None:
    seen: dict[str, set[str]] = {}
    for number in range(16):
        session = {"x-enginehouse-session": f"chat {number}"}
        for turn in range(3):
            assert two.generate(f"{number}/{turn}", headers=session).status_code == 200
        asked = {name: {prompt for _, prompt in each.asked} for name, each in two.nodes.items()}
        seen[str(number)] = {name for name, prompts in asked.items() if f"{number}/0" in prompts}
        assert all(f"{number}/{turn}" in asked[name] for name in seen[str(number)] for turn in range(3))
    where = Counter(name for names in seen.values() for name in names)
    assert sum(where.values()) == 16 and len(where) == 2


def test_a_session_gives_way_where_its_node_has_too_much(two: House) -> None:
    session = {"x-enginehouse-session": "one chat"}
    threads = [in_thread(two.stream, "hold 30", session)[0] for _ in range(10)]
    until(lambda: sum(each.running for each in two.nodes.values()) == 10, "ten requests")
    running = sorted(each.running for each in two.nodes.values())
    assert running[1] <= 7 and running[0] >= 3, "its own node takes at most a quarter more than the average"
    two.let_go()
    for thread in threads:
        thread.join(20)


def test_a_node_that_dies_before_the_first_token_costs_nothing(two: House) -> None:
    thread, got = in_thread(two.generate, "count 1 0.5")
    first = who_runs(two)
    two.run(two.nodes[first].stop())
    thread.join(20)
    assert got[0].status_code == 200 and got[0].json()["text_output"] == "0 "
    # The dead one is still in the reports, and is left alone.
    assert [two.generate(f"after {number}").status_code for number in range(4)] == [200] * 4


def test_a_node_that_dies_after_the_first_token_ends_the_answer(two: House) -> None:
    thread, got = in_thread(two.stream, "count 100 0.05")
    first = who_runs(two)
    time.sleep(0.3)
    two.run(two.nodes[first].stop())
    thread.join(20)
    *pieces, last = got[0]
    assert [piece["text_output"] for piece in pieces] == [f"{number} " for number in range(len(pieces))] and pieces
    assert last["code"] == "node-lost"
    assert [each.asked for name, each in two.nodes.items() if name != first] == [[]]


def test_a_node_that_does_not_have_the_model_yet_is_passed_over(two: House) -> None:
    two.nodes["one"].models.clear()
    assert [two.generate(f"{number}").status_code for number in range(6)] == [200] * 6
    assert len(two.nodes["two"].asked) == 6


def test_a_request_that_ends_each_model_ends_two_at_most(two: House) -> None:
    answer = two.generate("stub")
    assert (answer.status_code, answer.json()["code"]) == (502, "node-lost")
    assert sum(len(each.asked) for each in two.nodes.values()) == 2


def test_the_only_node_comes_back_on_its_port(two: House) -> None:
    one = two.nodes["one"]
    two.public(on={"one": 1})
    assert two.generate("warm").status_code == 200
    two.run(one.stop())
    thread, got = in_thread(two.generate, "waits")
    time.sleep(0.5)
    two.run(one.start(one.port))
    thread.join(20)
    assert got[0].status_code == 200


def test_a_node_that_moved_is_asked_at_its_new_address(two: House) -> None:
    two.public(on={"one": 1})
    assert two.generate("there").status_code == 200
    two.watch.tell(TargetState("test", {MODEL: 1}, (node("one", two.nodes["two"].grpc, {MODEL: 1}),)))
    assert two.generate("here").status_code == 200
    assert [prompt for _, prompt in two.nodes["two"].asked] == ["here"]


def test_a_promotion_moves_requests_to_nodes_that_have_moved(two: House) -> None:
    for each in two.nodes.values():
        each.models.add(f"{MODEL}--r2--llm")
    two.public(2, on={"one": 1, "two": 1})
    assert two.generate("before any has moved").status_code == 200
    two.public(2, on={"one": 1, "two": 2})
    asked = len(two.nodes["two"].asked)
    assert [two.generate("moved").status_code for _ in range(4)] == [200] * 4
    assert len(two.nodes["two"].asked) == asked + 4


def test_a_release_that_its_node_has_just_unloaded_is_followed_to_the_next(two: House) -> None:
    one = two.nodes["one"]
    two.public(on={"one": 1})
    assert two.generate("before").status_code == 200
    one.models = {MODEL, f"{MODEL}--r2", f"{MODEL}--r2--llm"}
    assert two.generate("unsaid").json()["model_name"] == MODEL
    assert one.asked[1:] == [(MODEL, "unsaid")], "the public name follows though no report says so yet"
    two.public(2, on={"one": 2})
    assert two.generate("said").status_code == 200
    assert one.asked[2:] == [(f"{MODEL}--r2--llm", "said")]


def test_a_release_that_is_gone_is_not_answered_for_by_another(two: House) -> None:
    one = two.nodes["one"]
    two.watch.tell(TargetState("test", {MODEL: 1}, (node("one", one.grpc, {MODEL: 1}, {MODEL: [7]}),)))
    answer = two.generate("the old one", model=f"{MODEL}@7")
    assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
    assert one.asked == []


def test_a_release_without_a_model_of_its_own_is_asked_by_its_ensemble(two: House) -> None:
    one = two.nodes["one"]
    one.models = {MODEL, f"{MODEL}--r1"}
    two.public(on={"one": 1})
    assert two.generate("hello").json()["model_name"] == MODEL
    assert one.asked == [(f"{MODEL}--r1", "hello")]


def test_nobody_answers(two: House) -> None:
    for each in two.nodes.values():
        two.run(each.stop())
    began = time.monotonic()
    answer = two.generate("x")
    assert (answer.status_code, answer.json()["code"]) == (503, "model-not-ready")
    assert answer.headers["retry-after"] == "2" and 2 < time.monotonic() - began < 10


def test_the_deadline_ends_a_request_and_the_node_is_told() -> None:
    with house(front={"deadline_s": 0.5}) as made:
        one = made.add_node("one")
        made.public()
        answer = made.generate("count 1 20")
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline")
        until(lambda: one.cancelled == ["count 1 20"], "cancellation")
        assert made.stream("count 100 0.1")[-1]["code"] == "deadline"


def test_too_much_at_once_is_refused_and_the_rest_is_answered() -> None:
    with house(front={"most_requests": 2}) as made:
        one = made.add_node("one")
        made.public()
        threads = [in_thread(made.stream, "hold 20") for _ in range(2)]
        until(lambda: one.running == 2, "two requests")
        refused = made.generate("third")
        assert (refused.status_code, refused.json()["code"]) == (429, "requests-limit")
        assert int(refused.headers["retry-after"]) >= 1
        made.let_go()
        for thread, got in threads:
            thread.join(20)
            assert len(got[0]) == 20
        assert made.generate("third").status_code == 200


def test_other_protocols_ask_by_inputs_and_get_outputs(two: House) -> None:
    """The seam for routes of other protocols."""

    async def ask() -> list[str]:
        with two.front.call(Caller(session="a user")) as call:
            two.front.named(call, MODEL)
            given: dict[str, Given] = {"text_input": "count 3 0", "max_tokens": 4, "stop_words": ["x"]}
            async with aclosing(two.front.generate(call, given)) as answers:
                return [str(answer["text_output"][0]) async for answer in answers]

    assert two.run(ask()) == ["0 ", "1 ", "2 "]


def test_draining_finishes_what_runs_and_takes_nothing_more() -> None:
    with house() as made:
        one = made.add_node("one")
        made.public()
        thread, got = in_thread(made.stream, "hold 20")
        until(lambda: one.running == 1, "request")
        made.loop.call_soon_threadsafe(made.gateway.end)
        with made.client() as client:
            until(lambda: client.get("/ready").status_code == 503, "no to clients")
            assert client.get("/health").status_code == 200
        refused = made.generate("late")
        assert (refused.status_code, refused.json()["code"]) == (503, "gateway-ending")
        made.let_go()
        thread.join(20)
        assert [piece["text_output"] for piece in got[0]] == [f"{number} " for number in range(20)]
        assert made.serving is not None and made.serving.result(10) is None


def test_after_the_grace_time_an_answer_ends_by_an_error() -> None:
    with house(options=Options(grace_s=0.3)) as made:
        one = made.add_node("one")
        made.public()
        thread, got = in_thread(made.stream, "count 500 0.05")
        until(lambda: one.running == 1, "request")
        made.loop.call_soon_threadsafe(made.gateway.end)
        thread.join(20)
        assert got[0][-1]["code"] == "gateway-ending" and got[0][0]["text_output"] == "0 "
        until(lambda: one.cancelled == ["count 500 0.05"], "cancellation")
        assert made.serving is not None and made.serving.result(10) is None


def test_an_alias_is_asked_as_the_model_it_stands_for_and_answers_by_its_own_name(two: House) -> None:
    answering = node("one", two.nodes["one"].grpc, {MODEL: 1}, aliases={"ensemble": MODEL})
    two.watch.tell(TargetState("test", {MODEL: 1}, (answering,), {"ensemble": MODEL}))
    answer = two.generate("x", model="ensemble")
    assert (answer.status_code, answer.json()["model_name"]) == (200, "ensemble")
    assert two.generate("x", model="ensemble@1").json()["model_name"] == "ensemble@1"
    assert {asked.partition("--")[0] for asked, _ in two.nodes["one"].asked} == {MODEL}
    assert two.generate("x", model="tensorrt_llm_bls").status_code == 404
    with two.client() as client:
        assert client.get("/v2/models").json() == {"models": [{"name": MODEL}, {"name": "ensemble"}]}
        assert client.get("/v2/models/ensemble/ready").status_code == 200
        assert client.get("/v2/models/ensemble").json()["name"] == "ensemble"
        assert 'model="ensemble"' not in client.get("/metrics").text, "figures are the model's"
