"""A person's decision on a candidate: which one counts, what it changes, and what no approval can bring about."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest

from infra.errors import GateRefused, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.releases import release_lines, releases
from tasks.models.approval import ApprovalSpec
from tasks.models.catalogue import load_model
from tasks.models.gates import Gates
from tasks.models.spec import Model
from tasks.steps.abandoned import give_up_abandoned
from tasks.steps.approve import Decided, approval, ask, decide, follow_up, needs_person
from tasks.steps.promote import promote
from tasks.targets.approval import Approval
from tasks.targets.approvals import Approvals
from tasks.targets.current import Current
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.watch.waiting import decided
from tasks.watch.waves import RebuildRun

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
NAME = "smollm2-135m"
State = Literal["approved", "rejected"]


@pytest.fixture
def target(bucket: Bucket) -> Target:
    """A target with release 1 live, and release 2 as a candidate that passed its gates and waits."""
    target = Target(bucket, "test")
    reserve(target)
    target.conclude(NAME, Result(release=1, state="passed"))
    target.move(NAME, lambda current: current.promoted(1))
    reserve(target)
    target.move(NAME, lambda current: current.with_candidate(2))
    asked(target)
    target.conclude(NAME, Result(release=2, state="passed"))
    return target


def reserve(target: Target) -> None:
    def intent(number: int) -> Intent:
        repository = f"repository/{number:064x}"
        return Intent(model=NAME, release=number, repository=repository, digest="d", recipe={}, source="s", flow_run="")

    target.reserve(NAME, intent)


def asked(target: Target, hours: float = 24) -> None:
    ask(target, model(hours=hours), 2, 1, "run", {"model": NAME, "recipe": {"dtype": "x"}, "refresh": "build"})


def model(when: Literal["never", "undecided", "always"] = "always", hours: float = 24, **gates: str) -> Model:
    """The model of the catalogue with an approval, and with the gates' section where one is given."""
    found = load_model(CATALOGUE / f"{NAME}.yaml")
    spec = ApprovalSpec(when=when, timeout_hours=hours)
    return found.model_copy(update={"approval": spec, "gates": Gates.model_validate(gates) if gates else None})


def code_of(target: Target, state: State, release: int | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        decide(target, NAME, release, state, "late@there", "")
    return caught.value.code


def test_who_is_asked() -> None:
    passed, refused = Result(release=1, state="passed"), Result(release=1, state="refused")
    ask_, refuse, promote_ = (
        Result(schema_version=2, release=1, state="undecided", undecided=each) for each in ("ask", "refuse", "promote")
    )
    always, undecided, never = model(), model("undecided", undecided="ask"), model("never")
    assert [needs_person(always, each) for each in (passed, ask_, promote_, refuse, refused)] == [True] * 3 + [
        False
    ] * 2
    assert [needs_person(undecided, each) for each in (passed, ask_, promote_, refused)] == [False, True, False, False]
    assert not any(needs_person(never, each) for each in (passed, ask_, promote_, refused))


def test_the_first_decision_counts(target: Target) -> None:
    assert approval(target, NAME, 2) is None
    made = decide(target, NAME, None, "approved", "a@b", "the figures are good")
    assert made.first and (made.approval.by, made.approval.note) == ("a@b", "the figures are good")
    # What it goes on with makes nothing again, and is for this target alone.
    assert made.parameters == {"model": NAME, "recipe": {"dtype": "x"}, "refresh": "nothing", "targets": ["test"]}
    with pytest.raises(UsageError, match=r"was approved by a@b: the figures are good, at \d{4}-") as caught:
        decide(target, NAME, None, "rejected", "late@there", "")
    assert caught.value.code == "approval-decided"
    again = decide(target, NAME, 2, "approved", "late@there", "")
    assert not again.first and again.approval == made.approval == approval(target, NAME, 2)


def test_nothing_is_public_without_its_approval(target: Target) -> None:
    def refused() -> str:
        with pytest.raises(UsageError) as caught:
            promote(target, NAME, 2, timeout_s=0)
        return caught.value.code

    assert refused() == "release-not-approved"
    decide(target, NAME, None, "approved", "a@b", "")
    assert refused() == "release-not-in-store"  # of which this target has the records alone
    assert target.current(NAME)[0].public == 1


def test_a_rejected_candidate_goes_and_its_record_says_who_and_why(target: Target) -> None:
    decide(target, NAME, None, "rejected", "a@b", "its French is worse")
    assert target.current(NAME)[0] == Current(public=1)
    with pytest.raises(GateRefused, match="was rejected by a@b: its French is worse") as caught:
        approval(target, NAME, 2)
    assert (caught.value.code, caught.value.exit_code) == ("approval-rejected", 3)
    with pytest.raises(UsageError) as kept:  # nor by a rollback
        promote(target, NAME, 2)
    assert kept.value.code == "release-not-approved"
    assert code_of(target, "approved", 2) == "approval-decided" and code_of(target, "approved") == "approval-missing"
    found = releases(target, NAME)
    assert found.rows[0].standing.word == "refused" and found.rows[0].document()["approval"] is not None
    assert any("was rejected by a@b: its French is worse" in line for line in release_lines(found))


def test_after_the_time_out_nobody_approves(target: Target) -> None:
    reserve(target)
    target.move(NAME, lambda current: current.without_candidates(2).with_candidate(3))
    request = Approvals(target, NAME, 2).request()
    assert request is not None
    timed = Approvals(target, NAME, 3)
    timed.ask(request.model_copy(update={"release": 3, "timeout_s": 1e-6}))
    target.conclude(NAME, Result(release=3, state="passed"))
    until_older(timed)
    assert code_of(target, "approved", 3) == "approval-decided"
    decision = timed.decision()
    assert decision is not None and (decision.state, decision.by) == ("timed-out", "")
    assert [str(each) for each in follow_up(target.bucket)] == [
        f"{NAME} release 3 on 'test' timed out: nobody decided on it"
    ]
    assert target.current(NAME)[0] == Current(public=1)
    assert [*follow_up(target.bucket)] == []


def until_older(asked: Approvals) -> None:
    """The store's clock counts whole seconds."""
    for _ in range(40):
        if asked.decision() is not None:
            return
        time.sleep(0.05)
    pytest.fail("the request does not grow older")


def test_what_was_decided_while_nobody_looked_is_followed(target: Target, bucket: Bucket) -> None:
    assert [*follow_up(bucket)] == []
    decide(target, NAME, None, "approved", "a@b", "")
    (due,) = follow_up(bucket)
    assert isinstance(due, Decided) and (due.target.name, due.model, due.approval.release) == ("test", NAME, 2)
    assert due.parameters["targets"] == ["test"]


def test_a_waiting_candidate_is_not_given_up_for_its_age(target: Target, bucket: Bucket) -> None:
    assert give_up_abandoned(bucket, "", 0.2, forgiven_s=0) == []
    decide(target, NAME, None, "approved", "a@b", "")
    assert give_up_abandoned(bucket, "", 0.2, forgiven_s=0) == []  # it waits for its promotion
    assert target.current(NAME)[0].candidates == (2,)


def test_another_release_went_live_meanwhile(target: Target) -> None:
    reserve(target)
    target.conclude(NAME, Result(release=3, state="passed"))
    target.move(NAME, lambda current: current.promoted(3))
    assert code_of(target, "approved") == "release-moved"
    assert Approvals(target, NAME, 2).decision() is None
    decide(target, NAME, None, "rejected", "a@b", "")


def test_an_approved_one_takes_no_other_place_than_that_of_what_it_was_compared_with(target: Target) -> None:
    decide(target, NAME, None, "approved", "a@b", "")
    reserve(target)
    target.conclude(NAME, Result(release=3, state="passed"))
    target.move(NAME, lambda current: current.promoted(3))
    with pytest.raises(UsageError) as caught:
        approval(target, NAME, 2)
    assert caught.value.code == "release-moved"


def test_what_another_candidate_superseded_cannot_be_approved(target: Target) -> None:
    Approvals(target, NAME, 2).supersede()
    assert code_of(target, "approved", 2) == "approval-decided"
    with pytest.raises(GateRefused) as caught:
        approval(target, NAME, 2)
    assert caught.value.code == "approval-superseded"
    Approvals(target, NAME, 1).supersede()  # about which nobody was asked
    assert Approvals(target, NAME, 1).decision() is None


def test_a_decision_on_what_nobody_was_asked_about(target: Target) -> None:
    assert code_of(target, "approved", 1) == "approval-missing"
    target.move(NAME, lambda current: current.without_candidates(2))  # which a rollback in its place withdrew
    assert code_of(target, "approved", 2) == code_of(target, "rejected", 2) == "approval-missing"
    with pytest.raises(UsageError) as caught:
        decide(target, "unknown", None, "approved", "a@b", "")
    assert caught.value.code == "approval-missing"


def test_a_candidate_that_waits_is_shown_with_the_next_command(target: Target) -> None:
    found = releases(target, NAME)
    assert found.rows[0].standing.word == "waiting"
    assert f"      `enginehouse approve {NAME} --release 2`, or reject" in [*release_lines(found)]
    Approvals(target, NAME, 2).decide(Approval(release=2, state="approved", by="a@b"))
    assert releases(target, NAME).rows[0].standing.word == "passed"


def test_the_release_watch_goes_by_what_was_decided(target: Target, bucket: Bucket) -> None:
    ended = RebuildRun("run", "waiting")
    assert decided(bucket, ["test"], NAME, ended).state == "going"
    assert decided(bucket, ["test"], NAME, RebuildRun("other", "waiting")).state == "completed"
    decide(target, NAME, None, "approved", "a@b", "")
    assert decided(bucket, ["test"], NAME, ended).state == "going"  # until it is promoted
    target.move(NAME, lambda current: current.promoted(2))
    assert decided(bucket, ["test"], NAME, ended) == RebuildRun("run", "completed")


def test_the_release_watch_counts_a_rejection_as_a_failure(target: Target, bucket: Bucket) -> None:
    decide(target, NAME, None, "rejected", "a@b", "too slow")
    found = decided(bucket, ["test"], NAME, RebuildRun("run", "waiting"))
    assert (found.state, found.reason) == ("failed", "release 2 on 'test' was rejected by a@b: too slow")
