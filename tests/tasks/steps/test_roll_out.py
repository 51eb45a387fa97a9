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
from tasks.steps.promote import promote
from tasks.steps.roll_out import roll_out
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.current import Current
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tests.layout_before import layout_before

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
    producer = Producer(task="test", code="test")
    store.publish(plan.engine_ref, plan.engine, files, inputs={}, producer=producer)
    inputs = {"engine": plan.engine_ref}
    store.publish(plan.repository_ref, plan.repository, files, inputs=inputs, producer=producer)
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
    return Intent(
        model=model, release=release, repository=f"repository/{0:064x}", digest="d", recipe={}, source="s", flow_run=""
    )


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


def as_before(target: Target) -> None:
    """Take from the node's report what nodes of earlier versions do not say."""
    key = "targets/test/nodes/one.json"
    stored = target.bucket.get(key)
    assert stored is not None
    target.bucket.put(key, json.dumps({k: v for k, v in json.loads(stored.body).items() if k != "reads"}).encode())


def test_an_older_node_gets_nothing_that_it_cannot_read(context: Context, plan: Plan, needed: int) -> None:
    target, name = report(context, plan, total=8 * needed, available=2 * needed), plan.model.name
    as_before(target)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, plan, "test")
    assert caught.value.code == "node-older" and "one" in caught.value.message and not caught.value.retryable
    assert target.releases(name) == [] and target.current(name) == (Current(), None)
    # Renewed, it gets the release, and as long as it lives beside an older one, that one is asked too.
    report(context, plan, total=8 * needed, available=2 * needed)
    release = roll_out(context, plan, "test").release
    assert target.intent(name, release).schema_version == 3
    target.conclude(name, Result(release=release, state="passed"))
    as_before(target)
    with pytest.raises(EnginehouseError) as caught:
        promote(target, name, release)
    assert caught.value.code == "node-older" and target.current(name)[0].public is None


def test_what_lies_in_the_layout_of_before_is_released_to_older_nodes(
    context: Context, plan: Plan, needed: int, tmp_path: Path
) -> None:
    for ref in (plan.engine_ref, plan.repository_ref):
        layout_before(context.store, ref, plan.model.name)
    target, name = report(context, plan, total=8 * needed, available=2 * needed), plan.model.name
    as_before(target)
    intent = target.intent(name, roll_out(context, plan, "test").release)
    assert (intent.schema_version, intent.repository) == (2, f"repository/{name}/{plan.repository.digest}")
    target.move(name, lambda current: current.promoted(intent.release))
    # By the same name or another, what is equal is found where it lies, and what is live is not released anew.
    assert roll_out(context, plan, "test").unchanged
    renamed = Plan.of(plan.model.model_copy(update={"name": "renamed"}), plan.snapshot)
    found = context.store.need(renamed.engine_ref)
    assert (found.ref.model, found.ref) == (name, renamed.engine_ref)
    # Made again, it lies in the layout of now, and the release of before is still the live one.
    context.store.publish(
        plan.repository_ref,
        plan.repository,
        tmp_path / "files",
        inputs={"engine": plan.engine_ref},
        producer=Producer(task="test", code="test"),
    )
    made = context.store.need(plan.repository_ref)
    assert (made.ref.model, made.manifest.inputs) == ("", {"engine": f"engine/{name}/{plan.engine.digest}"})
    assert roll_out(context, plan, "test").unchanged and roll_out(context, plan, "test", refresh=True).unchanged
