"""Rolling out where memory is short, against the records of a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import EnginehouseError, GateRefused
from infra.s3.bucket import Bucket
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.catalogue import load_model
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.roll_out import roll_out
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.current import Current
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
CACHE_BYTES_PER_TOKEN = 1 << 20


@pytest.fixture
def plan() -> Plan:
    return Plan.of(load_model(CATALOGUE / "smollm2-135m.yaml"), Identity({"source": "some"}))


@pytest.fixture
def context(bucket: Bucket, plan: Plan, tmp_path: Path) -> Context:
    store = ArtifactStore(bucket)
    files = tmp_path / "files"
    files.mkdir()
    (files / LIMITS_FILE).write_text(json.dumps({"cache_bytes_per_token": CACHE_BYTES_PER_TOKEN}))
    for ref, identity in ((plan.engine_ref, plan.engine), (plan.repository_ref, plan.repository)):
        store.publish(ref, identity, files, inputs={}, producer=Producer(task="test", code="test"))
    return Context(store, Workspace(tmp_path / "work"), "", 5.0)


@pytest.fixture
def needed(plan: Plan) -> int:
    """Bytes that one release takes at least."""
    serving = plan.model.serving
    return serving.slots * serving.context_tokens * CACHE_BYTES_PER_TOKEN


def report(context: Context, plan: Plan, total: int, available: int) -> Target:
    """A node with so much memory in bytes, on which every release of the model is ready already."""
    target = context.target("test")
    releases = {number: ReleaseReport(state="ready") for number in range(1, 5)}
    target.report(
        NodeReport(
            node="one",
            target=target.name,
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=total,
            memory_available_bytes=available,
            models={plan.model.name: ModelReport(public=1, releases=releases)},
        )
    )
    return target


def test_short_memory_is_refused_before_a_number_is_spent(context: Context, plan: Plan, needed: int) -> None:
    target = report(context, plan, total=4 * needed, available=needed // 2)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, plan, "test")
    assert caught.value.code == "memory-short" and "--recreate" in caught.value.hint
    assert target.releases(plan.model.name) == []


def test_recreate_takes_the_place_of_the_live_release(context: Context, plan: Plan, needed: int) -> None:
    target = report(context, plan, total=4 * needed, available=needed // 2)
    rolled = roll_out(context, plan, "test", recreate=True)
    assert target.current(plan.model.name)[0] == Current(candidates=(rolled.release,), alone=True)


def test_recreate_does_not_load_what_no_memory_holds(context: Context, plan: Plan, needed: int) -> None:
    report(context, plan, total=needed // 2, available=needed // 2)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, plan, "test", recreate=True)
    assert caught.value.code == "memory-short" and "--recreate" not in caught.value.hint


def test_where_memory_suffices_the_live_release_stays(context: Context, plan: Plan, needed: int) -> None:
    target = report(context, plan, total=8 * needed, available=2 * needed)
    roll_out(context, plan, "test", recreate=True)
    assert not target.current(plan.model.name)[0].alone


def test_a_release_comes_back_beside_the_next_only_if_both_fit(
    context: Context, plan: Plan, needed: int, tmp_path: Path
) -> None:
    target = report(context, plan, total=8 * needed, available=2 * needed)
    name = plan.model.name
    rolled = roll_out(context, plan, "test")
    target.move(name, lambda current: Current(public=rolled.release, previous=rolled.release, alone=True))
    serving = plan.model.serving.model_copy(update={"chat_template": False})
    other = Plan.of(plan.model.model_copy(update={"serving": serving}), plan.snapshot)
    assert (other.engine, other.repository != plan.repository) == (plan.engine, True)
    producer = Producer(task="test", code="test")
    context.store.publish(other.repository_ref, other.repository, tmp_path / "files", inputs={}, producer=producer)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, other, "test")
    assert caught.value.code == "memory-short"
    report(context, plan, total=8 * needed, available=3 * needed)
    roll_out(context, other, "test")
    assert not target.current(name)[0].alone


def test_a_release_that_another_run_had_refused_is_not_waited_for(context: Context, plan: Plan, needed: int) -> None:
    target, name = report(context, plan, total=8 * needed, available=4 * needed), plan.model.name
    for _ in range(4):  # as many as the node says are ready
        target.reserve(name, lambda number: other_intent(name, number))
    target.conclude(name, Result(release=5, state="refused", reason="a prompt of the other run"))
    with pytest.raises(GateRefused) as caught:
        roll_out(context, plan, "test", timeout_s=60)
    assert caught.value.code == "gate-refused" and "a prompt of the other run" in caught.value.message
    assert target.current(name)[0] == Current()


def other_intent(model: str, release: int) -> Intent:
    return Intent(model=model, release=release, repository="r", digest="d", recipe={}, source="s", flow_run="")


def test_a_release_records_what_changed_and_what_was_lost(
    context: Context, plan: Plan, needed: int, tmp_path: Path
) -> None:
    target, name = report(context, plan, total=8 * needed, available=2 * needed), plan.model.name
    first = target.intent(name, roll_out(context, plan, "test").release)
    assert (first.changes, first.lost) == ((), {})
    assert first.recipe == {"kind": "llamacpp", "dtype": "float16", "quantization": "q8_0"}
    target.move(name, lambda current: current.promoted(first.release))
    serving = plan.model.serving.model_copy(update={"chat_template": False})
    other = Plan.of(plan.model.model_copy(update={"serving": serving}), plan.snapshot)
    producer = Producer(task="test", code="test")
    context.store.publish(other.repository_ref, other.repository, tmp_path / "files", inputs={}, producer=producer)
    second = target.intent(name, roll_out(context, other, "test", lost={"fused_mlp": False}).release)
    assert [str(change) for change in second.changes] == ["serving.chat_template: true → false"]
    assert second.lost == {"fused_mlp": False}
