"""Traffic for a candidate, step by step, against the records of a real store."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from infra.errors import ArtifactDamaged, EnginehouseError, GateRefused, UsageError
from tasks.explain.releases import release_lines, releases
from tasks.gates.on_traffic import Judgement
from tasks.gates.protocol import Trial
from tasks.models.rollout import Rollout
from tasks.steps.promote import promote
from tasks.steps.shift_traffic import Shifting
from tasks.targets.observed import NodeObserved, Observed
from tasks.targets.traffic import NO_TRAFFIC, Canary, Shadow, Traffic, shift, traffic, withdraw_traffic
from tests.tasks.steps.test_validate import NAME, Line, line, triton

__all__ = ["line", "triton"]  # fixtures

CANARY = {"strategy": "canary", "steps": [{"share": 0.1, "soak": 0}, {"share": 0.5, "soak": 0}]}


@dataclass
class Said:
    """A judge that says what a test says, and remembers of which share it was asked."""

    line: Line
    answers: list[Judgement] = field(default_factory=list[Judgement])
    asked: list[Traffic] = field(default_factory=list[Traffic])

    def __call__(self, trial: Trial, since_s: float) -> Judgement:
        assert trial.live is not None and since_s >= 0
        self.asked.append(given(self.line))
        return self.answers.pop(0) if self.answers else Judgement("passed")


def given(line: Line) -> Traffic:
    return traffic(line.target, NAME).read()[0]


def begun(line: Line, rollout: dict[str, Any]) -> int:
    """A candidate that has passed, beside a public release; its file asks for this rollout."""
    line.live()
    release = line.rolled(5)
    line.validate(release)
    again(line, rollout)
    return release


def again(line: Line, rollout: dict[str, Any]) -> None:
    changed = line.plan.model.model_copy(update={"rollout": Rollout.model_validate(rollout)})
    line.plan = replace(line.plan, model=changed)


def shifting(line: Line, release: int, judge: Said) -> Shifting:
    return Shifting(line.context, line.plan, "test", release, judge)


def looked(shifting: Shifting) -> None:
    for _ in range(10):
        if shifting.look() is None:
            return
    raise AssertionError("it never ends")


def test_each_step_is_given_and_judged_and_the_candidate_promoted(line: Line) -> None:
    release = begun(line, CANARY)
    judge = Said(line)
    looked(shifting(line, release, judge))
    assert [each.canary for each in judge.asked] == [Canary(release=release, share=share) for share in (0.1, 0.5)]
    found = shift(line.target, NAME, release).read()
    assert found is not None and (found.state, found.share) == ("passed", 0.5)
    looked(shifting(line, release, judge))
    assert len(judge.asked) == 2, "a run that comes again asks nobody again"
    line.node(release)
    assert promote(line.target, NAME, release) and given(line) == NO_TRAFFIC
    looked(shifting(line, release, judge))


def test_a_run_that_comes_again_goes_on_with_the_step_that_was_given(line: Line) -> None:
    release = begun(line, {**CANARY, "steps": [{"share": 0.1, "soak": 0}, {"share": 0.5, "soak": "1h"}]})
    judge = Said(line)
    first = shifting(line, release, judge)
    assert first.look() == 0 and first.look() == 5.0 and first.look() == 5.0
    second = shifting(line, release, judge)
    assert second.look() == 5.0 and given(line).canary == Canary(release=release, share=0.5)
    assert len(judge.asked) == 1, "it is not judged before its time, nor begun again"


@pytest.mark.parametrize(
    ("judgement", "reason"),
    [(Judgement("refused", "slow"), "slow"), (Judgement("undecided", "3 requests"), "undecided: 3 requests")],
)
def test_a_refused_candidate_loses_its_traffic_and_its_place(line: Line, judgement: Judgement, reason: str) -> None:
    release = begun(line, CANARY)
    judge = Said(line, [Judgement("passed"), judgement])
    for _ in range(2):  # the second run only finds the record
        with pytest.raises(GateRefused) as refused:
            looked(shifting(line, release, judge))
        assert reason in refused.value.message and "50.0%" in refused.value.message
    assert given(line) == NO_TRAFFIC and line.current().candidates == () and len(judge.asked) == 2
    with pytest.raises(UsageError) as never:
        promote(line.target, NAME, release)
    assert never.value.code == "release-not-passed"
    row = releases(line.target, NAME).rows[0]
    stands = row.standing
    assert (row.intent.release, stands.state, stands.word) == (release, "passed", "refused")
    assert row.document()["state"] == "refused"
    assert any(
        f"50.0% of the requests: refused, {reason}" in said for said in release_lines(releases(line.target, NAME))
    )
    assert line.rolled(5) == release + 1, "the next rebuild tries it anew"


def test_a_record_of_traffic_that_cannot_be_read_says_where_it_lies(line: Line) -> None:
    release = begun(line, CANARY)
    line.target.bucket.put(f"{line.target.prefix}{NAME}/traffic.json", b'{"canary": {"share": 7}}')
    with pytest.raises(ArtifactDamaged) as caught:
        shifting(line, release, Said(line)).look()
    assert caught.value.code == "record-invalid" and caught.value.hint and not caught.value.retryable
    assert "traffic.json" in caught.value.message and "canary.share" in caught.value.message


def test_a_candidate_that_fails_its_prompts_by_then_is_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    release = begun(line, CANARY)
    asked = len(line.prompts)
    made = Shifting(line.context, line.plan, "test", release)
    made.look()
    line.target.report(line.target.nodes()[0].model_copy(update={"http": "127.0.0.1:9"}))
    with pytest.raises(GateRefused) as refused:
        made.look()
    assert "no answer" in refused.value.message and len(line.prompts) == asked and given(line) == NO_TRAFFIC


def clients(line: Line, **seen: tuple[int, int]) -> None:
    """How many requests of each release were answered, and how many failed, by what the node reports."""
    ended = {int(name[1:]): {"stop": answered, "internal": failed} for name, (answered, failed) in seen.items()}
    models = {NAME: {release: Observed(ended=counts) for release, counts in ended.items()}}
    (node,) = line.target.nodes()
    line.target.report(node.model_copy(update={"observed": NodeObserved(epoch="e", models=models)}))


def test_a_canary_whose_clients_fare_worse_is_refused_before_its_time(line: Line) -> None:
    release = begun(line, {**CANARY, "steps": [{"share": 0.1, "soak": "1h"}]})
    assert (line.current().public, release) == (1, 2)
    judge = Said(line)
    made = shifting(line, release, judge)
    clients(line, r1=(1000, 10), r2=(0, 90))  # what came before its share is not its clients'
    made.look()
    assert made.look() == 5.0
    for look in range(1, 9):  # as bad as the live release
        clients(line, r1=(1000 + 990 * look, 10 + 10 * look), r2=(99 * look, 90 + look))
        assert made.look() == 5.0
    with pytest.raises(GateRefused, match="failed requests: ") as refused:
        for look in range(1, 9):
            clients(line, r1=(9000 + 990 * look, 90 + 10 * look), r2=(792 + 70 * look, 98 + 30 * look))
            made.look()
    assert "10.0%" in refused.value.message and given(line) == NO_TRAFFIC and judge.asked == []


def test_copies_end_before_the_promotion(line: Line) -> None:
    release = begun(line, {"strategy": "shadow", "steps": [{"share": 1, "soak": 0}]})
    judge = Said(line)
    looked(shifting(line, release, judge))
    assert judge.asked == [Traffic(shadow=Shadow(release=release, share=1))] and given(line) == NO_TRAFFIC


def test_traffic_that_is_taken_away_refuses_and_a_candidate_that_is_taken_away_is_withdrawn(line: Line) -> None:
    release = begun(line, {**CANARY, "steps": [{"share": 0.1, "soak": "1h"}]})
    made = shifting(line, release, Said(line))
    made.look()
    withdraw_traffic(line.target, NAME, release)
    with pytest.raises(GateRefused, match="taken away"):
        made.look()


def test_a_candidate_that_was_withdrawn_gets_nothing(line: Line) -> None:
    release = begun(line, CANARY)
    line.target.move(NAME, lambda current: current.without_candidates(release))
    with pytest.raises(EnginehouseError) as withdrawn:
        shifting(line, release, Said(line)).look()
    assert withdrawn.value.code == "release-withdrawn" and given(line) == NO_TRAFFIC


def test_a_first_release_has_nothing_to_stand_beside(line: Line) -> None:
    release = line.rolled(5)
    line.validate(release)
    again(line, CANARY)
    looked(shifting(line, release, Said(line)))
    assert given(line) == NO_TRAFFIC and shift(line.target, NAME, release).read() is None


def test_a_frozen_file_begins_nothing_and_goes_on_with_what_had_begun(line: Line) -> None:
    begun(line, CANARY)
    frozen = line.plan.model.model_copy(update={"rollout": Rollout(freeze=True)})
    line.plan = replace(line.plan, model=frozen)
    release = line.rolled(5)
    assert release in line.current().candidates
    with pytest.raises(EnginehouseError) as refused:
        line.rolled(6)
    assert refused.value.code == "frozen"
