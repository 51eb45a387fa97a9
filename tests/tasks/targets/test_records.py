"""Leases and the records of releases, against a real S3 server."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from pydantic import JsonValue

from infra.errors import GateRefused, TritonError, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.releases import releases
from tasks.steps.nodes import live_nodes
from tasks.steps.promote import promote, roll_back
from tasks.steps.roll_out import conclude
from tasks.store.lease import Watch, held
from tasks.targets.current import Current
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target

if TYPE_CHECKING:
    from tests.fleet import Fleet

MODEL = "tiny"


def intent(number: int) -> Intent:
    return Intent(
        model=MODEL, release=number, repository=f"repository/{0:064x}", digest="d", recipe={}, source="s", flow_run=""
    )


@pytest.fixture
def target(bucket: Bucket) -> Target:
    return Target(bucket, "test")


def report(target: Target, public: int | None, *ready: int, node: str = "one") -> None:
    releases = {number: ReleaseReport(state="ready") for number in ready}
    target.report(
        NodeReport(
            node=node,
            target=target.name,
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=1,
            memory_available_bytes=1,
            models={MODEL: ModelReport(public=public, releases=releases)},
        )
    )


def test_one_holder_at_a_time(bucket: Bucket) -> None:
    inside = 0
    most = 0
    lock = threading.Lock()

    def work(name: str) -> None:
        nonlocal inside, most
        with held(bucket, "x", name, 5.0):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.1)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert Watch(bucket, "x", 5.0).holder() is None  # released


def test_a_holder_that_renews_stays_and_a_dead_one_goes(bucket: Bucket) -> None:
    watch = Watch(bucket, "x", 0.6)
    with held(bucket, "x", "alive", 0.6):
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert watch.holder() == "alive"
            time.sleep(0.05)
    # What a killed holder leaves: a lease that is not renewed.
    bucket.create("leases/y.json", b'{"schema": 1, "holder": "dead", "nonce": "1"}')
    started = time.monotonic()
    with held(bucket, "y", "next", 0.6):
        assert time.monotonic() - started >= 0.6
        assert Watch(bucket, "y", 0.6).holder() == "next"


def test_numbers_are_spent_once(target: Target) -> None:
    made: list[int] = []
    threads = [threading.Thread(target=lambda: made.append(target.reserve(MODEL, intent).release)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(1, 7)) == target.releases(MODEL)


def test_concurrent_moves_are_all_kept(target: Target) -> None:
    def add(number: int) -> None:
        target.move(MODEL, lambda current: current.with_candidate(number))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(target.current(MODEL)[0].candidates) == list(range(1, 7))


def test_wanted_state_of_promotions() -> None:
    current = Current().with_candidate(1).promoted(1)
    assert current == Current(public=1)
    current = current.with_candidate(2).with_candidate(2)
    assert current.loaded == (1, 2)
    current = current.promoted(2)
    assert (current.public, current.previous, current.candidates) == (2, 1, ())
    assert current.promoted(2) == current
    assert current.promoted(1).loaded == (1, 2)


def test_what_became_of_releases() -> None:
    current = Current(public=5, previous=4, candidates=(6, 5))
    passed, refused = (Result(release=0, state=state) for state in ("passed", "refused"))
    assert current.state_of(5, passed) == "live" == current.state_of(5, None)
    assert current.state_of(4, passed) == "previous"
    assert current.state_of(4, None) == "abandoned"
    assert (current.state_of(3, passed), current.state_of(2, refused)) == ("passed", "refused")
    assert (current.state_of(6, None), current.state_of(6, passed)) == ("candidate", "passed")
    assert current.state_of(1, None) == "abandoned"


def test_the_list_of_releases_gives_the_verdict_of_the_previous_one(target: Target) -> None:
    for number, state in ((1, "passed"), (2, "passed"), (3, "refused")):
        target.reserve(MODEL, intent)
        target.conclude(MODEL, Result.model_validate({"release": number, "state": state}))
    target.reserve(MODEL, intent)
    target.move(MODEL, lambda current: current.promoted(1).promoted(2).with_candidate(4))
    report(target, 2, 2, 1)
    found = releases(target, MODEL)
    assert [row.standing.state for row in found.rows] == ["candidate", "refused", "live", "previous"]
    document = found.document()
    rows = cast("list[dict[str, JsonValue]]", document["releases"])
    assert [(row["release"], row["state"], row["loaded"]) for row in rows] == [
        (4, "candidate", True),
        (3, "refused", False),
        (2, "live", True),
        (1, "passed", True),
    ]
    assert (document["public"], list(found.nodes)) == (2, ["one"])
    with pytest.raises(UsageError) as caught:
        releases(target, "another")
    assert caught.value.code == "release-missing"


def test_alone_there_is_one_release_and_a_candidate_takes_its_place() -> None:
    current = Current(public=2, previous=1).with_candidate(3, alone=True)
    assert current.loaded == (3,)
    assert current.without_candidates(3).loaded == (2,)  # refused: the live one comes back
    assert current.promoted(2).loaded == (2,)  # rolled back to the live one while another one is tested in its place
    assert current.promoted(1).loaded == (1,)
    assert current.promoted(3) == Current(public=3, previous=2, alone=True)
    assert current.promoted(3).loaded == (3,)
    assert current.promoted(3).with_candidate(4).loaded == (3, 2, 4)


def test_a_result_is_written_once(target: Target) -> None:
    first = target.conclude(MODEL, Result(release=1, state="passed"))
    assert target.conclude(MODEL, Result(release=1, state="refused", reason="late")) == first


def test_a_refused_release_is_never_promoted(target: Target) -> None:
    target.reserve(MODEL, intent)
    target.move(MODEL, lambda current: current.with_candidate(1))
    for state in ("refused", "passed"):  # the second is late: another run had it refused
        with pytest.raises(GateRefused) as refused:
            conclude(target, MODEL, Result.model_validate({"release": 1, "state": state, "reason": "a prompt"}))
        assert refused.value.exit_code == 3 and "a prompt" in refused.value.message
    assert target.current(MODEL)[0] == Current()
    with pytest.raises(UsageError) as caught:
        promote(target, MODEL, 1)
    assert caught.value.code == "release-not-passed"
    for number in (7, None):  # never made; no previous one
        with pytest.raises(UsageError) as caught:
            roll_back(target, MODEL, number)
        assert caught.value.code == "release-missing"


def test_promotion_waits_for_every_node(target: Target, fleet: Fleet) -> None:
    made = fleet.rebuild(MODEL)
    for _ in range(2):
        fleet.release(made, public=False)
    with pytest.raises(TritonError) as caught:
        live_nodes(target)
    assert caught.value.code == "no-live-node" and caught.value.retryable
    report(target, 1, 1, 2, node="one")
    report(target, None, 1, 2, node="two")
    with pytest.raises(TritonError) as caught:
        promote(target, MODEL, 1, timeout_s=0.3)
    assert caught.value.code == "node-behind" and "two:" in caught.value.message and caught.value.retryable
    assert target.current(MODEL)[0].public == 1  # rolls forward: the nodes go on
    report(target, 1, 1, 2, node="two")
    promote(target, MODEL, 1)
    # A node whose report is old is not waited for.
    with pytest.raises(TritonError) as caught:
        promote(replace(target, node_lifetime_s=-1.0), MODEL, 2, timeout_s=0.3)
    assert caught.value.code == "no-live-node"
