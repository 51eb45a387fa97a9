"""What the gateway knows of its targets, from a real store that changes, goes away and hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from pydantic import JsonValue

from deployments.gateway import state as state_module
from deployments.gateway.names import Name, asked_names
from deployments.gateway.state import Known, Watch
from infra.errors import GatewayError
from infra.s3.bucket import Bucket
from tasks.store.record import record_bytes
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.parsers import ModelParsers
from tasks.targets.target import Target
from tasks.targets.traffic import LARGEST_RECORD, Canary, Traffic, send_to_canary
from tests.deployments.node.served import Door
from tests.fleet import Fleet
from tests.waiting import wait


def report(
    target: Target,
    name: str,
    models: dict[str, tuple[int | None, dict[int, Any]]],
    port: int = 8001,
    aliases: tuple[str, ...] = (),
) -> None:
    """A node's report: of each model the release that its public name answers with, and the states of releases."""
    target.report(
        NodeReport(
            node=name,
            target=target.name,
            http="127.0.0.1:8000",
            grpc=f"127.0.0.1:{port}",
            triton_pid=1,
            memory_total_bytes=1,
            memory_available_bytes=1,
            models={
                model: ModelReport(
                    public=public,
                    aliases=aliases,
                    releases={number: ReleaseReport(state=state) for number, state in states.items()},
                )
                for model, (public, states) in models.items()
            },
        )
    )


@contextmanager
def watching(*targets: Target, poll_s: float = 0.1) -> Generator[Watch]:
    watch = Watch(targets, poll_s)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def asked(known: Known, name: str = "tiny") -> list[tuple[str, int]]:
    """The nodes where a name may be asked, with the release that answers there."""
    return sorted((place.node.name, place.release) for place in known.places(Name.parse(name)).nodes)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(GatewayError) as refused:
        call()
    return refused.value.code


def test_a_model_is_asked_where_its_public_release_is_ready(fleet: Fleet) -> None:
    made = fleet.rebuild()
    first, second = fleet.release(made), fleet.release(made)
    assert (first, second) == (1, 2)
    report(fleet.target, "moved", {"tiny": (2, {2: "ready", 1: "ready"})})
    report(fleet.target, "behind", {"tiny": (1, {1: "ready", 2: "loading"})})
    report(fleet.target, "broken", {"tiny": (2, {2: "failed"})})
    report(fleet.target, "empty", {})
    with watching(fleet.target) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        assert asked(watch.known) == [("moved", 2)]
        assert asked(watch.known, "tiny@1") == [("behind", 1), ("moved", 1)]
        assert watch.known.ready and watch.known.places(Name("tiny")).release == 2
        report(fleet.target, "moved", {"tiny": (None, {2: "failed"})})
        wait(lambda: asked(watch.known) == [("behind", 1)], "node that still answers")
        assert code_of(lambda: asked(watch.known, "tiny@2")) == "release-not-loaded"
        assert code_of(lambda: asked(watch.known, "other")) == "model-unknown"
        assert code_of(lambda: asked(watch.known, "other@1")) == "model-unknown"


def test_a_promotion_is_known_within_the_poll_interval(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    report(fleet.target, "one", {"tiny": (1, {1: "ready"})})
    with watching(fleet.target, poll_s=1.0) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        for number in range(2, 5):
            fleet.release(made)
            report(fleet.target, "one", {"tiny": (number, {number: "ready", number - 1: "ready"})})
            began = time.monotonic()
            wait(lambda number=number: asked(watch.known) == [("one", number)], "promotion")
            assert time.monotonic() - began < 2.0


TRACEPARENT = f"00-{1:032x}-{2:016x}-01"


def test_a_release_brings_its_parsers_and_they_are_read_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    serving: dict[str, JsonValue] = {"tool_parser": "hermes", "reasoning_parser": "of a later version"}
    fleet.release(fleet.rebuild(), serving=serving, traceparent=TRACEPARENT)
    report(fleet.target, "one", {"tiny": (1, {1: "ready", 7: "ready"})})
    with watching(fleet.target) as watch:
        wait(lambda: watch.known.reading > 2, "readings")
        (place,) = watch.known.places(Name("tiny")).nodes
        assert watch.known.parsers(place, "tiny") == ModelParsers("hermes")
        assert watch.known.origin(place, "tiny") == TRACEPARENT
        # One whose record is missing is served without.
        assert watch.known.parsers(replace(place, release=7), "tiny") == ModelParsers()
        assert watch.known.origin(replace(place, release=7), "tiny") == ""
    assert caplog.text.count("release 7 of tiny") == 1


def test_an_unchanged_state_is_one_listing(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    report(fleet.target, "one", {"tiny": (1, {1: "ready"})})
    with watching(fleet.target) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        calls: list[str] = []

        def note(model: Any, **_: object) -> None:
            calls.append(model.name)

        events = fleet.target.bucket.impatient(5.0).client.meta.events
        events.register("provide-client-params.s3", note)
        try:
            seen = watch.known.reading
            wait(lambda: watch.known.reading >= seen + 5, "five readings")
        finally:
            events.unregister("provide-client-params.s3", note)
        assert set(calls) == {"ListObjectsV2"} and len(calls) <= 7


def test_a_node_that_is_silent_for_long_is_not_asked(fleet: Fleet) -> None:
    fleet.release(fleet.rebuild())
    report(fleet.target, "one", {"tiny": (1, {1: "ready"})})
    with watching(replace(fleet.target, node_lifetime_s=2.0)) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        assert asked(watch.known) == [("one", 1)]
        wait(lambda: asked(watch.known) == [], "node that is taken for gone")
        assert not watch.known.ready


def test_records_that_cannot_be_read_cost_only_themselves(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.release(fleet.rebuild())
    fleet.release(fleet.rebuild("other"))
    report(fleet.target, "one", {"tiny": (1, {1: "ready"}), "other": (1, {1: "ready"})})
    bucket, prefix = fleet.target.bucket, fleet.target.prefix
    with watching(fleet.target) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        with caplog.at_level(logging.WARNING, "enginehouse.gateway"):
            bucket.put(f"{prefix}other/current.json", b"{")
            bucket.put(f"{prefix}nodes/two.json", b"{}")
            bucket.put(f"{prefix}tiny--r7/current.json", b'{"public": 1}')
            seen = watch.known.reading
            wait(lambda: watch.known.reading > seen + 2, "reading")
        assert asked(watch.known) == [("one", 1)] and asked(watch.known, "other") == [("one", 1)]
        assert set(watch.known.models) == {"tiny", "other"}
        assert sum("other" in record.getMessage() for record in caplog.records) == 1, "said once in five seconds"
        bucket.delete(f"{prefix}other/current.json")
        seen = watch.known.reading
        wait(lambda: watch.known.reading > seen + 1, "reading")
        assert asked(watch.known, "other") == [("one", 1)], "a record that is lost takes no model from its clients"


def test_of_two_targets_the_first_serves_a_model_that_both_have(fleet: Fleet) -> None:
    second = Fleet(fleet.store, Target(fleet.target.bucket, "second"), fleet.folder)
    for each, model in ((fleet, "tiny"), (second, "tiny"), (second, "more")):
        each.release(each.rebuild(model))
    report(fleet.target, "one", {"tiny": (1, {1: "ready"})})
    report(second.target, "one", {"tiny": (1, {1: "ready"}), "more": (1, {1: "ready"})})
    with watching(second.target, fleet.target) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        assert watch.known.places(Name("tiny")).target == "second"
        assert watch.known.places(Name("more")).target == "second"
        assert len(watch.known.nodes) == 2
    with watching(fleet.target, second.target) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        assert watch.known.places(Name("tiny")).target == "test"
        assert watch.known.places(Name("more")).target == "second"


def test_with_the_store_away_or_hanging_the_last_known_state_goes_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "_SILENT_SECONDS", 1.0)
    made = fleet.rebuild()
    fleet.release(made)
    report(fleet.target, "one", {"tiny": (1, {1: "ready"})})
    door = Door(int(fleet.store.bucket.endpoint.rpartition(":")[2]))
    try:
        target = replace(fleet.target, bucket=_through(fleet.target.bucket, door))
        with watching(target) as watch:
            wait(lambda: watch.known.reading > 0, "reading")
            for state in ("away", "hang"):
                door.state = state
                wait(lambda: bool(watch.known.error), "error", 60)
                began = time.monotonic()
                assert asked(watch.known) == [("one", 1)] and watch.known.ready
                assert time.monotonic() - began < 0.1, "nobody who asks waits for the store"
                door.state = "open"
                watch.hurry()
                wait(lambda: not watch.known.error, "store that is back", 60)
    finally:
        door.close()


def test_a_start_with_the_store_away_is_not_ready_until_it_comes(fleet: Fleet) -> None:
    fleet.release(fleet.rebuild())
    door = Door(int(fleet.store.bucket.endpoint.rpartition(":")[2]))
    door.state = "away"
    try:
        with watching(replace(fleet.target, bucket=_through(fleet.target.bucket, door))) as watch:
            wait(lambda: bool(watch.known.error), "error", 60)
            assert not watch.known.ready and code_of(lambda: asked(watch.known)) == "state-unknown"
            door.state = "open"
            wait(lambda: watch.known.reading > 0, "reading", 60)
            assert watch.known.error == "" and asked(watch.known) == []
    finally:
        door.close()


def _through(bucket: Bucket, door: Door) -> Bucket:
    return replace(bucket, endpoint=door.endpoint)


def test_what_a_node_is_asked_for() -> None:
    assert Name.parse("tiny") == Name("tiny") and Name.parse("tiny@7") == Name("tiny", 7)
    for text, adapted in (("tiny:sql", Name("tiny", adapter="sql")), ("tiny@7:s.1", Name("tiny", 7, adapter="s.1"))):
        assert Name.parse(text) == adapted and str(adapted) == text
    assert asked_names("tiny", 7) == ("tiny--r7--llm", "tiny--r7")
    odds = ("", "a/b", "tiny@", "tiny@-1", "tiny@7@8", "tiny@1e3", "a" * 300, "tiny\n", "tiny@99999999999")
    for odd in (*odds, "tiny:", "tiny:A", "tiny:a:b", "tiny:a@1"):
        assert code_of(lambda odd=odd: Name.parse(odd)) == "model-unknown"


def test_an_alias_is_known_as_long_as_a_node_says_so_or_none_does(fleet: Fleet) -> None:
    fleet.release(fleet.rebuild())
    target = replace(fleet.target, node_lifetime_s=1.0)
    report(target, "one", {"tiny": (1, {1: "ready"})}, aliases=("ensemble", "tiny", "odd"))
    with watching(target) as watch:
        wait(lambda: watch.known.aliases != {}, "alias")
        assert watch.known.aliases == {"ensemble": "tiny"}, "no other name becomes one"
        name = watch.known.model_of(Name.parse("ensemble@1"))
        assert (name.model, name.release, str(name)) == ("tiny", 1, "ensemble@1")
        wait(lambda: watch.known.nodes == (), "end of the node")
        assert watch.known.places(watch.known.model_of(Name("ensemble"))).nodes == ()
        report(target, "one", {"tiny": (1, {1: "ready"})})
        wait(lambda: watch.known.aliases == {}, "end of the alias")
        assert code_of(lambda: watch.known.places(watch.known.model_of(Name("ensemble")))) == "model-unknown"


def test_traffic_counts_as_long_as_its_release_is_a_candidate(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "_RETRY_SECONDS", 1.0)
    for model in ("tiny", "other"):
        made = fleet.rebuild(model)
        fleet.release(made)
        fleet.release(made, public=False)
        fleet.target.move(model, lambda current: current.with_candidate(2))
    report(fleet.target, "one", {model: (1, {1: "ready", 2: "ready"}) for model in ("tiny", "other")})
    canary = Canary(release=2, share=0.25)
    send_to_canary(fleet.target, "tiny", canary)
    send_to_canary(fleet.target, "other", canary)

    def of(watch: Watch, model: str = "tiny") -> Canary | None:
        return watch.known.traffic(watch.known.places(Name(model)), model).canary

    with watching(fleet.target) as watch:
        wait(lambda: watch.known.reading > 0, "reading")
        assert of(watch) == of(watch, "other") == canary
        beside = watch.known.beside(watch.known.places(Name("tiny")), "tiny", 2)
        assert [(place.node.name, place.release) for place in beside.nodes] == [("one", 2)]
        bucket, prefix = fleet.target.bucket, fleet.target.prefix
        bucket.put(f"{prefix}tiny/traffic.json", b'{"canary": {"release": 2, "share": 7}}')
        wait(lambda: of(watch) is None, "all of it to the public release")
        assert asked(watch.known) == [("one", 1)] and of(watch, "other") == canary and not watch.known.error
        bucket.put(f"{prefix}other/traffic.json", record_bytes(Traffic(canary=canary)) + b" " * LARGEST_RECORD)
        wait(lambda: of(watch, "other") is None, "a record that is too large to be one")
        for model in ("tiny", "other"):
            bucket.put(f"{prefix}{model}/traffic.json", record_bytes(Traffic(canary=canary)))
        wait(lambda: of(watch) == of(watch, "other") == canary, "canaries", 15)
        fleet.target.move("tiny", lambda current: current.promoted(2))
        wait(lambda: of(watch) is None, "promotion")
        fleet.target.move("other", lambda current: current.without_candidates(2))
        wait(lambda: of(watch, "other") is None, "withdrawal")
    assert "the traffic of tiny" in caplog.text
