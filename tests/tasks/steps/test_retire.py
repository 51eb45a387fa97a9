"""A model leaves: the name first, then what nodes hold; killed at any write and done again it ends the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from infra.errors import EnginehouseError, TritonError, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.history import history
from tasks.explain.releases import releases
from tasks.steps.promote import roll_back
from tasks.steps.retire import RETIRED, alone, is_retired, places, retire, retired_models
from tasks.steps.turn import model_key, turn_key
from tasks.store.lease import held
from tasks.targets.approval import ApprovalRequest
from tasks.targets.approvals import Approvals
from tasks.targets.move_records import MoveRecords
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.retirement import Retirement
from tasks.targets.target import Target
from tasks.targets.traffic import NO_TRAFFIC, Canary, send_to_canary, traffic
from tasks.targets.waves import Waves, WavesRecords
from tests.flows.interleaved import MemoryBucket, Stage
from tests.tasks.targets.test_aliases import answering, public

if TYPE_CHECKING:
    from tests.fleet import Fleet

SECONDS = 0.3
"""A lease that lasts as long."""


def intent(number: int) -> Intent:
    repository = f"repository/{'0' * 64}"
    return Intent(model="tiny", release=number, repository=repository, digest="d", recipe={}, source="s", flow_run="")


@dataclass
class Store:
    """On targets a and b release 2 of `tiny` is public, and 3 waits for a person with a share of the requests."""

    stage: Stage = field(default_factory=lambda: Stage(0))
    writes: list[str] = field(default_factory=list[str])
    bucket: MemoryBucket = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = MemoryBucket(
            "memory", "", stage=self.stage, noticed=lambda key, body: self.writes.append(key) if body else None
        )
        for target in (self.target("a"), self.target("b")):
            for number in (1, 2, 3, 4):  # the run that reserved 4 has died
                target.reserve("tiny", intent)
                if number < 4:
                    target.conclude("tiny", Result(release=number, state="passed"))
                if number < 3:
                    target.move("tiny", lambda current, number=number: current.promoted(number))
            target.move("tiny", lambda current: current.with_candidate(3))
            Approvals(target, "tiny", 3).ask(ApprovalRequest(release=3, timeout_s=3600))
            send_to_canary(target, "tiny", Canary(release=3, share=0.5))
        self.waves.begin(Waves(repository=intent(3).repository, waves=(("a",), ("b",))))
        self.writes.clear()

    def target(self, name: str) -> Target:
        return Target(self.bucket, name)

    @property
    def waves(self) -> WavesRecords:
        return WavesRecords(self.target("a"), "tiny")

    def retire(self, *names: str) -> None:
        retire(self.bucket, "tiny", names or ("a", "b"), reason="nobody asks it")

    def has_left(self, name: str) -> bool:
        """Whether nothing is loaded there, nothing waits, and the record of it is kept."""
        target = self.target(name)
        current, _ = target.current("tiny")
        assert current.retired is not None and (current.public, current.previous, current.candidates) == (None,) * 2 + (
            (),
        )
        assert (current.retired.number, current.retired.release) == (1, 2)
        decided = Approvals(target, "tiny", 3).decision()
        assert decided is not None and (decided.state, decided.note) == ("superseded", RETIRED)
        left = target.result("tiny", 4)
        assert left is not None and (left.state, left.reason) == ("refused", RETIRED)
        assert traffic(target, "tiny").read()[0] == NO_TRAFFIC
        return MoveRecords(target, "tiny").retirements() == 1

    def dies(self, objects: Mapping[str, tuple[bytes, int]], write: int) -> bool:
        """Retire from this state of the store, and die at a write, negative: just before. Whether it came so far."""
        self.bucket.objects.clear()
        self.bucket.objects.update(objects)
        ended: list[bool] = []
        self.stage.start("retire", self.retire, write, lambda actor: ended.append(actor.killed))
        while self.stage.actors:
            self.stage.step()
        return ended[0]


def test_nothing_is_loaded_nothing_waits_and_the_records_stay() -> None:
    store = Store()
    store.retire()
    assert store.has_left("a") and store.has_left("b")
    last = store.waves.last()
    assert last is not None and last[1].state == "overtaken" and "tiny was retired on 'a' by " in last[1].reason
    assert is_retired(store.bucket, "tiny")
    found = releases(store.target("a"), "tiny")
    assert found.public is None and [row.intent.release for row in found.rows] == [4, 3, 2, 1]
    told = next(event for event in history(store.target("a"), "tiny").events if event.what == "retired")
    assert (told.release, told.reason) == (2, "nobody asks it") and "@" in told.by


def test_the_second_time_writes_nothing() -> None:
    store = Store()
    first = retire(store.bucket, "tiny", ["a"])
    store.writes.clear()
    again = retire(store.bucket, "tiny", ["a"], reason="once more")
    assert store.writes == [] and [each.first for each in (*first, *again)] == [True, False]
    assert first[0].retirement == again[0].retirement


def test_one_target_is_left_alone_with_the_other() -> None:
    store = Store()
    store.retire("a")
    assert store.has_left("a") and store.target("b").current("tiny")[0].public == 2
    assert not is_retired(store.bucket, "tiny")
    assert [target.name for target in places(store.bucket, "tiny")] == ["a", "b"]


def test_one_look_finds_those_that_are_retired(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, here, there = fleet.store.bucket, Target(fleet.store.bucket, "a"), Target(fleet.store.bucket, "b")
    names = {"gone", "gone-here", "live", "damaged", "neither"}
    for target, models in ((here, names - {"neither"}), (there, {"gone", "gone-here"})):
        for model in models:
            target.move(model, lambda current: current.promoted(1))
    for target, model in ((here, "gone"), (there, "gone"), (here, "gone-here"), (here, "damaged")):
        target.move(model, lambda current: current.without_releases(Retirement(number=1, release=1)))
    bucket.put("targets/b/damaged/current.json", b"{")
    assert {model for model in names - {"damaged"} if is_retired(bucket, model)} == {"gone"}

    read: list[str] = []
    get = Bucket.get
    monkeypatch.setattr(Bucket, "get", lambda bucket, key: (read.append(key), get(bucket, key))[1])  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert retired_models(bucket, names) == {"gone"} and len(read) == 2 * len(names)
    empty = Bucket(bucket.name, "nowhere/", bucket.endpoint)
    assert retired_models(bucket, []) == retired_models(empty, names) == set() and len(read) == 2 * len(names)


def test_killed_at_any_write_and_done_again_it_ends_the_same() -> None:
    store = Store()
    begin, deaths = dict(store.bucket.objects), 0
    for write in (sign * write for write in range(1, 100) for sign in (-1, 1)):
        killed = store.dies(begin, write)
        if write < 0 and not killed:
            break
        deaths += killed
        store.retire()
        assert store.has_left("a") and store.has_left("b")
        last = store.waves.last()
        assert last is not None and last[1].state == "overtaken"
        names = [key for key in store.bucket.objects if "/retirements/" in key]
        assert names == [f"targets/{name}/tiny/retirements/000001.json" for name in "ab"]
    assert deaths > 20, deaths


def moved_without_nodes(fleet: Fleet, release: int) -> None:
    with pytest.raises(TritonError) as caught:
        roll_back(fleet.target, "tiny", to=release)
    assert caught.value.code == "no-live-node"


def test_a_rollback_brings_it_back_and_the_record_of_one_who_died_is_made_up_for(fleet: Fleet) -> None:
    number, bucket = fleet.release(fleet.rebuild()), fleet.store.bucket
    retire(bucket, "tiny", ["test"], reason="first")
    record = "targets/test/tiny/retirements/000001.json"
    bucket.delete(record)  # as if it had died before
    assert [event.reason for event in history(fleet.target, "tiny").events if event.what == "retired"] == ["first"]
    moved_without_nodes(fleet, number)
    current, _ = fleet.target.current("tiny")
    assert (current.public, current.retired) == (number, None) and bucket.get(record) is not None
    retire(bucket, "tiny", ["test"], reason="second")
    found = [event for event in history(fleet.target, "tiny").events if event.what in ("retired", "promoted")]
    assert [(event.what, event.reason) for event in found] == [
        ("retired", "second"),
        ("promoted", ""),
        ("retired", "first"),
    ]
    assert MoveRecords(fleet.target, "tiny").retirements() == 2


def test_it_waits_until_no_node_holds_it(fleet: Fleet) -> None:
    bucket = fleet.store.bucket
    public(fleet, "tiny")
    answering(fleet, tiny=1)
    said: list[str] = []
    with pytest.raises(TritonError) as caught:
        retire(bucket, "tiny", ["test"], timeout_s=0.3, say=said.append)
    assert caught.value.code == "node-behind" and caught.value.retryable
    assert said == ["test: one: the name still answers with release 1"]

    def hears(text: str) -> None:
        """The node goes on with each line that the command says."""
        said.append(text)
        unloads = "still answers" in text
        report(fleet, ModelReport(public=None, releases={1: ReleaseReport(state="unloading")} if unloads else {}))

    (done,) = retire(bucket, "tiny", ["test"], timeout_s=60, say=hears)
    assert not done.first and said[-1] == "test: one: unloads release 1"


def report(fleet: Fleet, model: ModelReport) -> None:
    known = fleet.target.node_report("one")
    assert isinstance(known, NodeReport)
    fleet.target.report(known.model_copy(update={"models": {"tiny": model}}))


def test_it_does_not_begin_while_a_run_rolls_the_model_out(bucket: Bucket) -> None:
    for lease in (
        held(bucket, model_key("tiny"), "run 1", SECONDS),
        held(bucket, turn_key("b", "tiny"), "run 1", SECONDS),  # as a worker of before has it
    ):
        said: list[str] = []
        beginning = alone(bucket, "tiny", ["a", "b"], "retire", SECONDS, said.append)
        with lease, pytest.raises(EnginehouseError) as caught, beginning:
            pass
        assert caught.value.code == "rollout-running" and "'run 1'" in caught.value.message
        assert len(said) == 1 and said[0].startswith("'run 1' rolls tiny out: waiting up to ")
    dead = {"schema": 1, "holder": "run 2", "nonce": "n", "seconds": SECONDS}
    bucket.put(f"leases/{turn_key('a', 'tiny')}.json", json.dumps(dead).encode())
    with alone(bucket, "tiny", ["a", "b"], "retire", SECONDS):  # its run has died
        pass


def test_what_was_never_released_cannot_be_retired(fleet: Fleet) -> None:
    public(fleet, "tiny")
    for model, asked in (("tiny", ("elsewhere",)), ("nothing", ()), ("tiny", ("test", "elsewhere"))):
        with pytest.raises(UsageError) as caught:
            places(fleet.store.bucket, model, asked)
        assert caught.value.code == "release-missing"
    assert [target.name for target in places(fleet.store.bucket, "tiny", ("test", "test"))] == ["test"]
    assert not is_retired(fleet.store.bucket, "tiny") and not is_retired(fleet.store.bucket, "nothing")
