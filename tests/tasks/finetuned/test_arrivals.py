"""Events in the store: kept in the order in which they came, decided once, and none that stops the others."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from infra.errors import EventRefused
from infra.s3.bucket import Bucket
from tasks.finetuned.arrivals import arrive, decide, pin, read_arrival, refused, undecided
from tasks.finetuned.event import read_event
from tasks.finetuned.plain_json import DEEPEST, parse

TINY = {"model": "tiny", "revision": "main"}


def nested(depth: int) -> Any:
    """A list in a list in a list …"""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_an_event_is_kept_from_its_coming_to_its_end(bucket: Bucket) -> None:
    payload = {"model": "tiny", "source": "file:///etc/passwd"}
    arrival = arrive(bucket, "e1", payload)
    assert (arrival.state, arrival.said) == ("received", payload)
    assert [each.id for each in undecided(bucket, 0)] == ["e1"] and not list(undecided(bucket, 3600))
    decide(bucket, refused(arrival, EventRefused("no", code="event-source")))
    assert not list(undecided(bucket, 0))
    # A replay finds what was decided.
    again = arrive(bucket, "e1", TINY)
    assert (again.state, again.code, again.said) == ("refused", "event-source", payload)
    assert again == read_arrival(bucket, "e1")
    assert len(str(arrive(bucket, "e2", {"model": "x" * 10**6}).said)) < 5000


def test_events_of_a_model_have_numbers_in_the_order_in_which_they_came(bucket: Bucket) -> None:
    came = [arrive(bucket, id, {"model": model}) for id, model in (("e9", "a"), ("e1", "b"), ("e5", "a"), ("e9", "a"))]
    assert [each.order for each in came] == [1, 1, 2, 1]
    assert arrive(bucket, "e7", {"model": "../a"}).order == arrive(bucket, "e8", {}).order == 0
    assert [each.id for each in undecided(bucket, 0) if each.said.get("model") == "a"] == ["e9", "e5"]


def test_a_decision_is_made_once(bucket: Bucket) -> None:
    arrival = arrive(bucket, "e1", TINY)
    accepted = decide(bucket, arrival.model_copy(update={"state": "accepted", "flow_run": "r"}))
    assert decide(bucket, refused(arrival, EventRefused("late", code="event-overtaken"))) == accepted
    assert read_arrival(bucket, "e1") == accepted


def test_an_event_brings_what_its_source_had_at_the_first_look(bucket: Bucket) -> None:
    arrival = arrive(bucket, "e1", TINY)
    assert pin(bucket, arrival, "hf://org/base@1", "r1").revision == "r1"
    later = pin(bucket, arrival, "hf://org/base@2", "r2")
    assert (later.pinned, later.revision) == ("hf://org/base@1", "r1")
    decide(bucket, arrival.model_copy(update={"state": "accepted"}))
    assert (kept := read_arrival(bucket, "e1")) is not None and kept.pinned == "hf://org/base@1"


@pytest.mark.parametrize(
    "value",
    [nested(199), nested(254), nested(900), nested(100_000), "\ud800", float("nan"), float("inf"), {"\udfff": 1}],
    ids=["199-deep", "254-deep", "900-deep", "100000-deep", "surrogate", "nan", "inf", "surrogate-key"],
)
def test_what_cannot_be_read_back_is_kept_as_text_and_stops_nobody(bucket: Bucket, value: Any) -> None:
    payload = {**TINY, "recipe": value}
    arrival = arrive(bucket, "e1", payload)
    assert arrival == read_arrival(bucket, "e1") and list(arrival.said) == ["text"]
    arrive(bucket, "e2", TINY)
    assert [each.id for each in undecided(bucket, 0)] == ["e1", "e2"]
    for wrong in (payload, arrival.said):
        with pytest.raises(EventRefused) as caught:
            read_event(cast(Any, wrong))
        assert caught.value.code == "event-malformed"


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 100_000, b"NaN", b"1e999", b'"\\ud800"', b"[" * 900 + b"]" * 900, b"\xff"]
)
def test_a_body_that_cannot_be_kept_is_no_document(body: bytes) -> None:
    with pytest.raises(EventRefused) as caught:
        parse(body)
    assert caught.value.code == "event-malformed"


def test_documents_may_be_as_deep_as_anybody_needs() -> None:
    assert parse(json.dumps(nested(DEEPEST)).encode()) == nested(DEEPEST)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"id": 7}', b'{"id":"e1","said":{"a":' + b"[" * 254 + b"]" * 254 + b"}}"]
)
def test_a_record_that_cannot_be_read_is_set_aside_by_name(bucket: Bucket, body: bytes) -> None:
    bucket.put("events/e1.json", body)
    bucket.put("events/e0.json", b'{"schema_version":2,"id":"e0","new":"form"}')
    arrive(bucket, "e2", TINY)
    said: list[str] = []
    assert [each.id for each in undecided(bucket, 0, said.append)] == ["e2"]
    assert len(said) == 2 and "e0" in said[0] and "e1" in said[1]
    aside = read_arrival(bucket, "e1")
    assert aside is not None and (aside.state, aside.code) == ("refused", "event-unreadable")
    assert aside.said == {"text": body.decode()} and arrive(bucket, "e1", TINY) == aside
    said.clear()
    assert [each.id for each in undecided(bucket, 0, said.append)] == ["e2"] and len(said) == 1  # of the newer one
