"""The watch after a promotion, against the records of a real store, with nodes that report what a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.errors import GateRefused
from infra.s3.bucket import Bucket
from infra.triton.client import Completion
from tasks.explain.releases import release_lines, releases
from tasks.gates.protocol import Trial
from tasks.models.catalogue import load_model
from tasks.models.spec import Model
from tasks.models.watch import WatchSpec
from tasks.steps import promote as promoting
from tasks.steps.returned import require_not_returned
from tasks.steps.unwatched import look_at_unwatched
from tasks.steps.watch import begin, watch
from tasks.store.lease import held
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.observed import NodeObserved, Observed
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.watch_record import WatchOutcome, WatchRecords
from tests.tasks.gates.trials import Answered

NAME = "smollm2-135m"
LASTS = 200.0


class House:
    """Releases 1 (live before) and 2 (just promoted) on a node; time passes as the watch sleeps."""

    def __init__(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, **asked: object) -> None:
        self.target = Target(bucket, "test", node_lifetime_s=3600)
        model = load_model(Path(__file__).parents[3] / "deployments" / "models" / f"{NAME}.yaml")
        self.model: Model = model.model_copy(
            update={"watch": WatchSpec.model_validate({"for": LASTS, **asked}), "prompts": model.prompts[:1]}
        )
        self.now = 0.0
        self.starts, self.state, self.triton = 1, "ready", 1
        self.memory = 500 << 20
        self.seen = {1: Observed(ended={"stop": 995, "internal": 5}, first={"0.15": 1000}), 2: Observed()}
        self.each_second: Callable[[], None] = lambda: None
        self.failing: set[str] = set()
        self.asked: list[str] = []
        for number in (1, 2):
            self.target.reserve(NAME, self._intent)
            self.target.conclude(NAME, Result(release=number, state="passed"))
        self.target.move(NAME, lambda current: current.promoted(1))
        monkeypatch.setattr(Trial, "client", lambda trial, node: Answered(self._answer))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        # The store has the records of releases alone, which is all that a watch reads.
        monkeypatch.setattr(promoting, "_require_servable", Target.intent)
        self.report()

    @staticmethod
    def _intent(number: int) -> Intent:
        return Intent(
            model=NAME, release=number, repository=f"repository/{number:064x}", digest="d", recipe={}, source="s",
            flow_run="",
        )  # fmt: skip

    def _answer(self, name: str, request: object) -> Completion | str:
        self.asked.append(name)
        text = "" if name in self.failing else "one two three four five six seven eight nine ten"
        return Completion(text, (), 0.1, tokens=0 if name in self.failing else 64)

    def report(self) -> None:
        current = self.target.current(NAME)[0]
        releases = {
            1: ReleaseReport(state="ready", starts=1),
            2: ReleaseReport.model_validate({"state": self.state, "starts": self.starts, "memory_bytes": self.memory}),
        }
        self.target.report(
            NodeReport(
                node="one", target="test", http="", grpc="", triton_pid=self.triton, memory_total_bytes=1,
                memory_available_bytes=1, models={NAME: ModelReport(public=current.public, releases=releases)},
                observed=NodeObserved(epoch="e", models={NAME: self.seen}),
            )
        )  # fmt: skip

    def promote(self) -> None:
        begin(self.target, self.model, 2)
        self.target.move(NAME, lambda current: current.promoted(2))
        self.report()

    def sleep(self, seconds: float) -> None:
        self.now += 10 * seconds
        self.each_second()
        self.report()

    def watch(self) -> WatchOutcome | None:
        return watch(self.target, self.model, 2, clock=lambda: self.now, sleep=self.sleep)

    def clients(self, answers: int, failures: int = 0) -> Callable[[], None]:
        def more() -> None:
            self.seen[2] += Observed(ended={"stop": answers, "internal": failures}, first={"0.15": answers})

        return more

    @property
    def outcome(self) -> WatchOutcome:
        found = WatchRecords(self.target, NAME).outcome(2)
        assert found is not None
        return found

    def name(self) -> int | None:
        return self.target.current(NAME)[0].public


@pytest.fixture
def house(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(promoting, "wait_until_public", lambda *arguments: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    return House(bucket, monkeypatch, probe_every=10)


def test_clients_that_fare_as_before_are_healthy_and_nobody_probes(house: House) -> None:
    house.seen[2] = Observed(ended={"internal": 40})  # of a gate's own program, before the promotion
    house.report()
    house.promote()
    house.each_second = house.clients(60)
    outcome = house.watch()
    assert outcome is not None and outcome.state == "healthy" and house.name() == 2
    assert outcome.observed.ended["stop"] >= 1000 and "internal" not in outcome.observed.ended
    assert outcome.probes <= 2 and outcome.seconds >= LASTS
    assert house.outcome == outcome
    assert house.watch() is None, "it is over"


def test_failing_requests_give_the_name_back_and_the_bytes_do_not_come_again(house: House) -> None:
    house.promote()
    house.each_second = house.clients(45, 15)
    with pytest.raises(GateRefused) as refused:
        house.watch()
    assert refused.value.code == "watch-returned" and house.name() == 1
    assert house.outcome.state == "returned" and "failed requests" in house.outcome.reason
    assert house.outcome.seconds < 60
    shown = [line.strip() for line in release_lines(releases(house.target, NAME))]
    assert f"watched for {house.outcome.seconds:.0f} s, returned: {house.outcome.reason}" in shown
    second = house.target.intent(NAME, 2)
    with pytest.raises(GateRefused) as again:
        require_not_returned(house.target, house.model, second.artifact, second.digest)
    assert again.value.code == "watch-returned"
    first = house.target.intent(NAME, 1)
    require_not_returned(house.target, house.model, first.artifact, first.digest)
    longer = house.model.model_copy(update={"watch": WatchSpec.model_validate({"for": 2 * LASTS})})
    require_not_returned(house.target, longer, second.artifact, second.digest)


def test_who_brings_a_returned_release_back_is_not_overruled(house: House) -> None:
    house.promote()
    house.each_second = house.clients(0, 20)
    with pytest.raises(GateRefused):
        house.watch()
    house.target.move(NAME, lambda current: current.promoted(2))
    assert house.watch() is None and house.name() == 2
    assert look_at_unwatched(house.target.bucket, "r", 1.0) == []
    assert house.name() == 2


def test_without_clients_probes_tell_a_broken_release(house: House) -> None:
    house.promote()
    house.failing = {f"{NAME}--r2"}
    with pytest.raises(GateRefused) as refused:
        house.watch()
    assert refused.value.code == "watch-returned" and house.name() == 1
    assert "failed test prompts" in house.outcome.reason and house.outcome.probes >= 5
    assert {*house.asked} == {f"{NAME}--r1", f"{NAME}--r2"}


def test_nothing_that_decides_is_not_healthy(house: House) -> None:
    house.promote()
    outcome = house.watch()
    assert outcome is not None and outcome.state == "undecided" and house.name() == 2
    assert 10 < outcome.probes < 100 and "too few" in outcome.reason


def test_a_release_that_died_is_returned(house: House) -> None:
    house.promote()

    def die() -> None:
        house.starts = 2

    house.each_second = die
    with pytest.raises(GateRefused):
        house.watch()
    assert house.name() == 1 and "died" in house.outcome.reason


def test_a_release_under_which_triton_ends_again_and_again_is_returned(house: House) -> None:
    house.promote()
    seen: list[int] = []

    def end() -> None:
        seen.append(house.triton)
        house.triton += 1

    house.each_second = end
    with pytest.raises(GateRefused):
        house.watch()
    assert house.name() == 1 and house.outcome.reason == "Triton ended 2 times" and seen == [1, 2]


def grows(house: House, mib: int, *, until_s: float = LASTS) -> None:
    """More memory at each look, beside clients who are well."""
    clients = house.clients(60)

    def more() -> None:
        clients()
        if house.now <= until_s:
            house.memory += mib << 20

    house.each_second = more


def test_memory_that_leaks_while_clients_are_well_gives_the_name_back(house: House) -> None:
    house.promote()
    grows(house, 12)
    with pytest.raises(GateRefused) as refused:
        house.watch()
    assert refused.value.code == "watch-returned" and house.name() == 1
    assert house.outcome.reason.startswith("memory of its processes") and house.outcome.seconds < LASTS / 1.5
    found = house.outcome.comparisons[-1]
    assert found.unit == "MiB" and 500 <= found.other < 560 < found.candidate


@pytest.mark.parametrize(("mib", "until_s"), [(40, 40.0), (4, LASTS)], ids=["warms up", "within what is allowed"])
def test_memory_that_is_taken_and_kept_is_none_that_leaks(house: House, mib: int, until_s: float) -> None:
    house.promote()
    grows(house, mib, until_s=until_s)
    outcome = house.watch()
    assert outcome is not None and outcome.state == "healthy" and house.memory > 560 << 20
    assert outcome.comparisons[-1].measure == "memory of its processes" and outcome.comparisons[-1].samples > 15


def test_memory_that_nobody_asks_about_may_grow(house: House) -> None:
    house.model = house.model.model_copy(update={"watch": WatchSpec.model_validate({"for": LASTS, "memory": None})})
    house.promote()
    grows(house, 100)
    outcome = house.watch()
    assert outcome is not None and outcome.state == "healthy"


def test_a_first_release_has_nothing_to_go_back_to(house: House) -> None:
    house.target.move(NAME, lambda current: current.model_copy(update={"public": None}))
    house.promote()
    house.target.move(NAME, lambda current: current.model_copy(update={"previous": None}))
    house.failing = {f"{NAME}--r2"}
    with pytest.raises(GateRefused) as refused:
        house.watch()
    assert refused.value.code == "watch-failing" and house.name() == 2 and house.outcome.state == "failing"


def test_a_name_that_somebody_moves_ends_the_watch(house: House) -> None:
    house.promote()
    house.each_second = lambda: house.target.move(NAME, lambda current: current.promoted(1)) and None
    outcome = house.watch()
    assert outcome is not None and outcome.state == "overtaken" and house.name() == 1


def test_a_watch_whose_run_died_is_gone_on_with(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.promote()
    bucket = house.target.bucket
    monkeypatch.setattr("tasks.steps.unwatched.targets", lambda bucket: [house.target])  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert look_at_unwatched(bucket, "r", 1.0) == [] and house.name() == 2, "nothing is known yet"
    house.clients(30, 30)()
    house.report()
    with held(bucket, f"watch-test-{NAME}", "somebody", 1.0):
        assert look_at_unwatched(bucket, "r", 1.0) == [] and house.name() == 2, "somebody watches"
    (line,) = look_at_unwatched(bucket, "r", 1.0)
    assert "was returned" in line and house.name() == 1 and house.outcome.flow_run == "r"


def test_a_run_that_died_before_the_name_moved_back_is_finished(house: House) -> None:
    house.promote()
    WatchRecords(house.target, NAME).conclude(WatchOutcome(release=2, previous=1, state="returned", reason="r"))
    with pytest.raises(GateRefused):
        house.watch()
    assert house.name() == 1


def test_a_file_without_a_watch_has_none(house: House) -> None:
    house.model = house.model.model_copy(update={"watch": None})
    house.promote()
    assert WatchRecords(house.target, NAME).last().release == 0 and house.watch() is None
    second = house.target.intent(NAME, 2)
    require_not_returned(house.target, house.model, second.artifact, second.digest)


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), (45, 45)])
def test_times_are_written_as_people_do(text: object, seconds: float) -> None:
    assert WatchSpec.model_validate({"for": text}).lasts == seconds


@pytest.mark.parametrize("fields", [{"for": "soon"}, {"for": ""}, {"for": 1}, {"errors": 2}, {"lasts": 60}, {"of": 1}])
def test_what_a_watch_cannot_be_asked(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WatchSpec.model_validate(fields)
