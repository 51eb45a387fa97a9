"""What a node knows of its wanted state, whatever the store and its records are like."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from deployments.node.known import KnownModel, follow
from deployments.node.reports import Reports, instance
from deployments.node.wanted import Reading, Wanted
from infra.s3.bucket import Bucket
from tasks.targets.current import Current
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target
from tests.fleet import Fleet


class Read(Protocol):
    """The first reading that a condition holds of, by a reader that was started just now, of this target or another."""

    def __call__(self, holds: Callable[[Reading], bool], target: Target | None = None) -> Reading: ...


@pytest.fixture
def read(fleet: Fleet, tmp_path: Path) -> Iterator[Read]:
    readers: list[Wanted] = []

    def start(holds: Callable[[Reading], bool], target: Target | None = None) -> Reading:
        readers.append(Wanted(target or fleet.target, tmp_path / "wanted.json"))
        readers[-1].start()
        until = time.monotonic() + 10
        while not holds(found := readers[-1].reading):
            assert time.monotonic() < until, found
            time.sleep(0.02)
        readers[-1].stop()
        return found

    yield start
    for reader in readers:
        reader.stop()


def key(fleet: Fleet, name: str) -> str:
    return f"{fleet.target.prefix}{name}"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"schema_version": 2}', b'{"public": "one"}', b"[" * 5000])
def test_a_record_that_cannot_be_read_is_named_under_its_own_model(fleet: Fleet, read: Read, body: bytes) -> None:
    fleet.release(fleet.rebuild("good"))
    fleet.release(fleet.rebuild("bad"))
    read(lambda reading: set(reading.models) == {"good", "bad"})
    fleet.target.bucket.put(key(fleet, "bad/current.json"), body)
    found = read(lambda reading: reading.fresh and "bad" in reading.errors)
    assert set(found.errors) == {"bad"} and found.error == ""
    assert found.models["bad"].current == found.models["good"].current == Current(public=1), "as it was known before"
    assert found.models["good"].intents[1].model == "good"


def test_an_intent_that_cannot_be_read_costs_its_own_release(fleet: Fleet, read: Read) -> None:
    made = fleet.rebuild("m")
    fleet.release(made)
    assert fleet.release(made) == 2
    fleet.target.bucket.put(key(fleet, "m/2/intent.json"), b"{")
    found = read(lambda reading: ("m", 2) in reading.unread)
    assert found.models["m"].intents.keys() == {1} and not found.errors
    models: dict[str, KnownModel] = {}
    follow(models, found)
    assert models["m"].releases[2].state == "failed" and models["m"].releases[2].given_up
    assert models["m"].report({}).releases.keys() == {2}
    # Triton has started meanwhile: the reason is still known.
    models["m"] = models["m"].after_triton()
    follow(models, found)
    assert models["m"].releases[2].state == "failed" and "intent.json" in models["m"].releases[2].error


def test_the_last_state_is_on_the_disk(fleet: Fleet, read: Read, tmp_path: Path) -> None:
    fleet.release(fleet.rebuild("m"))
    before = read(lambda reading: reading.fresh and "m" in reading.models)
    away = replace(fleet.target, bucket=replace(fleet.target.bucket, endpoint="http://127.0.0.1:9"))
    found = read(lambda reading: reading.error != "", away)
    assert found.models == before.models and found.is_known and not found.fresh
    other = read(lambda reading: reading.error != "", replace(away, name="other"))
    assert not other.models and not other.is_known, "it is another target's"
    (tmp_path / "wanted.json").write_text("{")
    assert not read(lambda reading: reading.error != "", away).models
    assert read(lambda reading: reading.fresh).models == before.models


def test_a_record_that_is_lost_takes_no_model_from_its_clients(fleet: Fleet, tmp_path: Path) -> None:
    fleet.release(fleet.rebuild("m"))
    reader = Wanted(fleet.target, tmp_path / "wanted.json")
    reader.start()
    try:
        until = time.monotonic() + 10
        while not reader.reading.fresh:
            assert time.monotonic() < until
            time.sleep(0.02)
        fleet.target.bucket.delete(key(fleet, "m/current.json"))
        while "m" not in reader.reading.errors:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert reader.reading.models["m"].current.public == 1
    finally:
        reader.stop()


def report(name: str, of: str) -> NodeReport:
    return NodeReport(
        node=name,
        target="test",
        http="",
        grpc="",
        triton_pid=1,
        memory_total_bytes=1,
        memory_available_bytes=1,
        instance=of,
    )


def test_a_name_belongs_to_the_node_that_reports_by_it(bucket: Bucket, tmp_path: Path) -> None:
    target = Target(bucket, "test")
    (tmp_path / "first").mkdir()
    mine = instance(tmp_path / "first")
    assert instance(tmp_path / "first") == mine, "also for the next agent"
    first, second, again = Reports(target), Reports(target), Reports(target)

    def wait(condition: Callable[[], bool], *offered: tuple[Reports, NodeReport]) -> None:
        until = time.monotonic() + 20
        while not condition():
            for reports, each in offered:
                reports.offer(each)
            assert time.monotonic() < until
            time.sleep(0.05)

    def written(of: str) -> bool:
        return [each.instance for each in target.nodes()] == [of]

    try:
        first.start()
        wait(lambda: written(mine), (first, report("n", mine)))
        second.start()
        wait(lambda: second.refused is not None, (first, report("n", mine)), (second, report("n", "other")))
        assert second.refused is not None and second.refused.code == "node-name-taken"
        assert written(mine) and first.refused is None and first.error == ""
        first.stop()
        again.start()
        changed = report("n", mine).model_copy(update={"error": "of the next agent"})
        wait(lambda: target.nodes()[0].error == changed.error, (again, changed))
    finally:
        for each in (first, second, again):
            each.stop()
