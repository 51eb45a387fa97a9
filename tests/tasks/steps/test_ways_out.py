"""Whatever a run leaves when it dies, the next command or `reconcile` turns it into a public name that answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import EnginehouseError, TritonError, UsageError
from infra.s3.bucket import Bucket
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.catalogue import load_model
from tasks.models.spec import Model
from tasks.steps.abandoned import give_up_abandoned
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.promote import RolledBack, promote, roll_back
from tasks.steps.roll_out import ABANDONED, RollOut, roll_out
from tasks.steps.turn import turn, turn_key
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.lease import held
from tasks.store.names import Alias
from tasks.targets.aliases import claim
from tasks.targets.current import Current
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tests.waiting import wait

if TYPE_CHECKING:
    from tests.fleet import Fleet

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
LEASE_SECONDS = 0.6


@dataclass
class FollowingNode:
    """A node that loads what is wanted at once, but for `broken` releases, and reports it."""

    target: Target
    model: str
    broken: frozenset[int] = frozenset()
    reported: list[ModelReport] = field(default_factory=list[ModelReport])

    def turn(self) -> None:
        wanted = self.target.current(self.model)[0]
        releases = {n: ReleaseReport(state="loading" if n in self.broken else "ready") for n in wanted.loaded}
        answers = wanted.public in releases and wanted.public not in self.broken
        report = ModelReport(public=wanted.public if answers else None, releases=releases)
        self.target.report(
            NodeReport(
                node="one",
                target=self.target.name,
                http="",
                grpc="",
                triton_pid=1,
                memory_total_bytes=1 << 50,
                memory_available_bytes=1 << 50,
                models={self.model: report},
            )
        )
        self.reported.append(report)

    @contextmanager
    def running(self) -> Generator[FollowingNode]:
        self.turn()
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(0.02):
                self.turn()

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def context(bucket: Bucket, tmp_path: Path) -> Context:
    return Context(ArtifactStore(bucket), Workspace(tmp_path / "work"), "", LEASE_SECONDS)


@pytest.fixture
def plan(context: Context, tmp_path: Path) -> Plan:
    """A plan with everything in the store that a roll-out needs."""
    made = Plan.of(load_model(CATALOGUE / "smollm2-135m.yaml"), Identity({"source": "some"}))
    files = tmp_path / "files"
    files.mkdir()
    (files / LIMITS_FILE).write_text(json.dumps({"cache_bytes_per_token": 1}))
    producer = Producer(task="test", code="test")
    context.store.publish(made.engine_ref, made.engine, files, inputs={}, producer=producer)
    inputs = {"engine": made.engine_ref}
    context.store.publish(made.repository_ref, made.repository, files, inputs=inputs, producer=producer)
    return made


@pytest.fixture
def target(context: Context) -> Target:
    return context.target("test")


@pytest.fixture
def node(target: Target, plan: Plan) -> Iterator[FollowingNode]:
    with FollowingNode(target, plan.model.name).running() as following:
        yield following


def live(context: Context, plan: Plan) -> int:
    """Roll the plan out, and make it public."""
    rolled = roll_out(context, plan, "test")
    target, name = context.target("test"), plan.model.name
    target.conclude(name, Result(release=rolled.release, state="passed"))
    promote(target, name, rolled.release)
    return rolled.release


def begun(target: Target, plan: Plan, *, alone: bool) -> int:
    """What a run leaves that brings other bytes, and is killed while its candidate is tested."""
    name = plan.model.name
    number = target.reserve(name, lambda number: intent(name, number)).release
    target.move(name, lambda current: current.with_candidate(number, alone=alone))
    return number


def intent(model: str, release: int, aliases: Sequence[str] = ()) -> Intent:
    return Intent(
        model=model,
        release=release,
        repository=f"repository/{'0' * 64}",
        digest="d",
        recipe={},
        serving={"aliases": list(aliases)},
        source="s",
        flow_run="",
    )


def test_the_name_answers_again_after_a_recreate_was_killed(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    first, name = live(context, plan), plan.model.name
    killed = begun(target, plan, alone=True)
    wait(lambda: node.reported[-1].public is None, "name that answers with nothing")
    assert roll_out(context, plan, "test") == RollOut("test", first, unchanged=True)
    assert node.reported[-1].public == first
    assert target.current(name)[0].model_copy(update={"moves": ()}) == Current(public=first, alone=True)
    counted = target.result(name, killed)
    assert counted is not None and (counted.state, counted.reason) == ("refused", ABANDONED)


def test_a_rollback_to_the_live_release_ends_a_recreate(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    first = live(context, plan)
    begun(target, plan, alone=True)
    wait(lambda: node.reported[-1].public is None, "name that answers with nothing")
    assert roll_back(target, plan.model.name, first) == RolledBack(first, instead_of=first)
    assert node.reported[-1].public == first


def test_reconcile_brings_the_name_back_and_leaves_a_run_alone_that_lives(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    first, name = live(context, plan), plan.model.name
    bucket = target.bucket
    with ExitStack() as lives:
        lives.enter_context(turn(bucket, target.name, name, "lives", LEASE_SECONDS))
        killed = begun(target, plan, alone=True)
        assert give_up_abandoned(bucket, "reconcile", LEASE_SECONDS) == []
        assert target.current(name)[0].candidates == (killed,)
    # What a killed holder leaves: a lease that nobody renews.
    key = f"leases/roll-out-{target.name}-{name}.json"
    bucket.put(key, b'{"schema": 1, "holder": "died", "nonce": "1", "seconds": %.1f}' % LEASE_SECONDS)
    assert len(give_up_abandoned(bucket, "reconcile", LEASE_SECONDS)) == 1
    wait(lambda: node.reported[-1].public == first, "first release again")
    assert target.result(name, killed) is not None
    assert give_up_abandoned(bucket, "reconcile", LEASE_SECONDS) == []


def test_reconcile_leaves_a_candidate_beside_the_live_one_to_the_run_that_starts_again(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    live(context, plan)
    killed = begun(target, plan, alone=False)
    assert give_up_abandoned(target.bucket, "reconcile", LEASE_SECONDS) == []
    assert len(give_up_abandoned(target.bucket, "reconcile", LEASE_SECONDS, forgiven_s=-1.0)) == 1
    assert killed not in target.current(plan.model.name)[0].candidates


def test_a_record_that_cannot_be_read_costs_its_own_model(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    live(context, plan)
    begun(target, plan, alone=True)
    target.bucket.put(f"{target.prefix}a-damaged/current.json", b"{")
    lines = give_up_abandoned(target.bucket, "reconcile", LEASE_SECONDS)
    assert len(lines) == 2 and "a-damaged" in lines[0]
    assert target.current(plan.model.name)[0].candidates == ()


def test_unchanged_is_said_of_a_release_that_answers(context: Context, plan: Plan, target: Target) -> None:
    with FollowingNode(target, plan.model.name).running():
        first = live(context, plan)
    with (
        FollowingNode(target, plan.model.name, broken=frozenset({first})).running(),
        pytest.raises(TritonError) as caught,
    ):
        roll_out(context, plan, "test", timeout_s=0.3)
    assert caught.value.code == "node-behind" and caught.value.retryable
    assert target.releases(plan.model.name) == [first]
    with FollowingNode(target, plan.model.name).running():
        assert roll_out(context, plan, "test").unchanged


def test_a_number_of_a_run_that_died_gets_a_result_and_is_not_taken_again(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    name = plan.model.name

    def of_the_plan(number: int) -> Intent:
        return intent(name, number).model_copy(update={"repository": str(plan.repository_ref), "digest": "other"})

    old = target.reserve(name, of_the_plan).release
    newer = target.reserve(name, lambda number: intent(name, number)).release
    target.conclude(name, Result(release=newer, state="passed"))
    target.move(name, lambda current: current.promoted(newer))
    rolled = roll_out(context, plan, "test")
    assert rolled.release == newer + 1
    assert (result := target.result(name, old)) is not None and result.reason == ABANDONED
    # The run dies, and the next one with the same bytes goes on with its number.
    assert roll_out(context, plan, "test") == rolled
    target.conclude(name, Result(release=rolled.release, state="passed"))
    assert roll_out(context, plan, "test") == rolled


def test_a_candidate_that_a_rollback_took_away_is_withdrawn(
    context: Context, plan: Plan, target: Target, tmp_path: Path
) -> None:
    name = plan.model.name
    with FollowingNode(target, name).running():
        first = live(context, plan)
    serving = plan.model.serving.model_copy(update={"chat_template": False})
    other = Plan.of(plan.model.model_copy(update={"serving": serving}), plan.snapshot)
    producer = Producer(task="test", code="test")
    context.store.publish(other.repository_ref, other.repository, tmp_path / "files", inputs={}, producer=producer)
    raised: list[EnginehouseError] = []

    def run() -> None:
        with pytest.raises(EnginehouseError) as caught:
            roll_out(context, other, "test", timeout_s=20)
        raised.append(caught.value)

    with FollowingNode(target, name, broken=frozenset({first + 1})).running():
        thread = threading.Thread(target=run)
        thread.start()
        wait(lambda: target.current(name)[0].candidates == (first + 1,), "candidate")
        target.move(name, lambda current: current.model_copy(update={"alone": True}))
        roll_back(target, name, first)
        thread.join()
    assert [error.code for error in raised] == ["release-withdrawn"]
    assert (result := target.result(name, first + 1)) is not None and result.state == "refused"


def test_two_rollbacks_do_not_undo_each_other(target: Target, fleet: Fleet) -> None:
    made = [fleet.rebuild("tiny", slots=slots) for slots in (1, 2, 3)]
    numbers = [fleet.release(each) for each in made]
    target = fleet.target
    with FollowingNode(target, "tiny").running():
        with ThreadPoolExecutor(2) as pool:
            at_once = [pool.submit(roll_back, target, "tiny") for _ in range(2)]
        errors = [each.exception() for each in at_once]
        assert None in errors  # the other has read the same state and ends on the same release, or it came later
        assert all(getattr(error, "code", "rolled-back") == "rolled-back" for error in errors)
        assert target.current("tiny")[0].public == 2
        with pytest.raises(UsageError) as caught:
            roll_back(target, "tiny")
        assert caught.value.code == "rolled-back" and "--to 3" in caught.value.hint
        with pytest.raises(UsageError) as caught:
            roll_back(target, "tiny", 1, instead_of=3)
        assert caught.value.code == "release-moved"
        assert target.current("tiny")[0].public == 2
        assert roll_back(target, "tiny", 3, instead_of=2) == RolledBack(3, instead_of=2)
    assert numbers == [1, 2, 3]


def test_an_alias_of_another_model_is_refused_before_anything_moves(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    aliased = replace(plan, model=with_aliases(plan.model, "ensemble"))
    assert aliased.repository_ref == plan.repository_ref, "what only a name is makes no other artifact"
    target.reserve("other", lambda number: intent("other", number, aliases=["ensemble"]))
    target.move("other", lambda current: current.with_candidate(1))
    claim(target, "other", ["ensemble"])
    with pytest.raises(UsageError) as caught:
        roll_out(context, aliased, "test")
    assert caught.value.code == "alias-taken" and "'ensemble'" in caught.value.message
    assert target.releases(plan.model.name) == [] and target.current(plan.model.name) == (Current(), None)


def test_other_aliases_are_another_release_of_the_same_bytes(
    context: Context, plan: Plan, target: Target, node: FollowingNode
) -> None:
    first = live(context, plan)
    second = live(context, replace(plan, model=with_aliases(plan.model, "ensemble")))
    intents = [target.intent(plan.model.name, number) for number in (first, second)]
    assert first != second and intents[0].repository == intents[1].repository
    assert [each.aliases for each in intents] == [(), ("ensemble",)]
    assert [str(change) for change in intents[1].changes] == ['serving.aliases: nothing → ["ensemble"]']
    assert roll_out(context, replace(plan, model=with_aliases(plan.model, "ensemble")), "test").unchanged
    third = live(context, plan)
    assert target.intent(plan.model.name, third).aliases == ()


def with_aliases(model: Model, *aliases: Alias) -> Model:
    return model.model_copy(update={"serving": model.serving.model_copy(update={"aliases": aliases})})


def test_one_run_at_a_time_rolls_out_a_model_on_whichever_target(bucket: Bucket) -> None:
    entered = threading.Event()

    def other() -> None:
        with turn(bucket, "b", "tiny", "two", LEASE_SECONDS):
            entered.set()

    thread = threading.Thread(target=other)
    with turn(bucket, "a", "tiny", "one", LEASE_SECONDS):
        thread.start()
        alone = held(bucket, turn_key("b", "tiny"), "ending", LEASE_SECONDS)
        with turn(bucket, "b", "small", "three", LEASE_SECONDS), alone:
            pass  # another model, and what concerns one target alone
        assert not entered.wait(2 * LEASE_SECONDS)
    assert entered.wait(30)
    thread.join()
