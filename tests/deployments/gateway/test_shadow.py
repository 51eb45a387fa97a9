"""Copies of requests for a candidate: clients wait for none of them, and real requests go first."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from deployments.gateway.shadow import first_difference
from deployments.gateway.state import TargetState
from tasks.targets.traffic import Canary, Shadow, Traffic
from tests.deployments.gateway.house import MODEL, House, house, node, until
from tests.deployments.gateway.test_front import in_thread

CANDIDATE = f"{MODEL}--r2--llm"


@contextmanager
def shadowed(says: str = "", *, slots: int = 8, traffic: Traffic | None = None, **front: Any) -> Generator[House]:
    """The candidate answers every prompt as it `says`, or as the public release does."""
    with house(front=front) as made:
        one = made.add_node("one")
        one.models.add(CANDIDATE)
        one.broken, one.broken_says = ({CANDIDATE}, says) if says else (set(), "")
        made.watch.tell(
            TargetState(
                "test",
                {MODEL: 1},
                (node("one", one.grpc, {MODEL: 1}, {MODEL: [2]}),),
                slots={(MODEL, 1): slots, (MODEL, 2): slots},
                traffic={MODEL: traffic or Traffic(shadow=Shadow(release=2, share=1))},
            )
        )
        yield made


def counted(made: House) -> dict[str, int]:
    """Copies by what became of them."""
    with made.client() as client:
        told = client.get("/metrics").text
    found = re.findall(r'shadow_requests_total\{.*outcome="([a-z-]+)",release="2"\} (\d+)', told)
    return {outcome: int(number) for outcome, number in found}


def ended(made: House, **expected: int) -> None:
    until(lambda: counted(made) == expected, f"copies {expected}")


def test_what_the_public_release_answered_is_asked_of_the_candidate(caplog: pytest.LogCaptureFixture) -> None:
    with shadowed() as made, caplog.at_level(logging.DEBUG):
        assert made.generate("hello").json()["text_output"] == "hello"
        assert len(made.stream("count 3 0")) == 3
        ended(made, same=2)
        asked = made.nodes["one"].asked
        assert sorted(asked) == [
            (f"{MODEL}--r{release}--llm", said) for release in (1, 2) for said in ("count 3 0", "hello")
        ]
        assert made.generate("x", model=f"{MODEL}@1").status_code == 200
        assert made.generate("refuse").status_code == 400
        time.sleep(0.2)
        assert counted(made) == {"same": 2}, "neither a release by its number nor what failed"
        with made.client() as client:
            told = client.get("/metrics").text
        assert f'requests_total{{adapter="",model="{MODEL}",outcome="ok",release="1"}} 3.0' in told
        assert 'outcome="ok",release="2"' not in told, "clients asked the candidate for nothing"
    assert "hello" not in caplog.text


def test_where_answers_differ_is_a_figure() -> None:
    with shadowed("say hello you") as made:
        assert made.generate("hello").json()["text_output"] == "hello"
        ended(made, differs=1)
        with made.client() as client:
            told = client.get("/metrics").text
        assert f'first_difference_characters_sum{{adapter="",model="{MODEL}",release="2"}} 5.0' in told


@pytest.mark.parametrize(
    ("one", "other", "at"),
    [("", "", None), ("same", "same", None), ("käse", "käfer", 2), ("long", "longer", 4), ("", "x", 0)],
)
def test_the_first_character_that_differs(one: str, other: str, at: int | None) -> None:
    assert first_difference(one.encode(), other.encode()) == at


def test_a_candidate_that_fails_costs_nobody_anything() -> None:
    with shadowed("fail internal") as made:
        assert made.generate("hello").json()["text_output"] == "hello"
        ended(made, **{"model-failed": 1})
        made.nodes["one"].models.remove(CANDIDATE)
        assert made.generate("hello").status_code == 200
        ended(made, **{"model-failed": 1, "node-lost": 1})


def test_clients_do_not_wait_and_copies_that_are_too_many_are_dropped() -> None:
    with shadowed("count 1 20", most_shadows=2) as made:
        began = time.monotonic()
        answers = [made.generate("hello") for _ in range(5)]
        assert time.monotonic() - began < 10, "a copy takes 20 s"
        assert {answer.json()["text_output"] for answer in answers} == {"hello"}
        assert counted(made) == {"dropped": 3} and made.nodes["one"].running == 2
        until(lambda: made.front.ready, "readiness")
    # The end of the gateway does not wait for them either.
    assert made.nodes["one"].cancelled == ["hello"] * 2


def test_real_requests_have_the_node_first() -> None:
    with shadowed("count 1 20", slots=2) as made:
        assert made.generate("first").status_code == 200
        until(lambda: made.nodes["one"].running == 1, "copy")
        busy = [in_thread(made.stream, "hold 60") for _ in range(2)]
        ended(made, dropped=1)
        assert made.nodes["one"].cancelled == ["first"], "a copy that runs gives way"
        assert made.generate("while it is full").status_code == 200
        ended(made, dropped=2)
        made.let_go()
        for thread, got in busy:
            thread.join(20)
            assert len(got[0]) == 60


def test_a_request_for_the_canary_is_not_copied() -> None:
    both = Traffic(canary=Canary(release=2, share=1), shadow=Shadow(release=2, share=1))
    with shadowed(traffic=both) as made:
        assert made.generate("hello").status_code == 200
        time.sleep(0.1)
        assert made.nodes["one"].asked == [(CANDIDATE, "hello")] and counted(made) == {}
