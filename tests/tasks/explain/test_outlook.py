"""What a rebuild would meet, on a real store: cached steps, why the others are not, time, nodes and their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.explain.expected_time import Expected, expected
from tasks.explain.node_room import rooms
from tasks.explain.outlook import Outlook, outlook, refusals
from tasks.kinds.choice import engine_kind
from tasks.models.catalogue import load_model
from tasks.models.overrides import override
from tasks.models.spec import Model
from tasks.steps import nodes
from tasks.steps.nodes import require_nodes
from tasks.steps.resolve import resolve_weights
from tasks.store.artifact import ArtifactRef, Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.node_report import Machine, NodeGpu, NodeReport
from tasks.targets.target import Target
from tests.fleet import Fleet, Made

SMOLLM = load_model(CHECKOUT / "deployments/models/smollm2-135m.yaml")
LLAMA = load_model(CHECKOUT / "deployments/models/llama3-8b-instruct.yaml")
LIMITS = '{"cache_bytes_per_token": 23040, "context_length": 8192, "has_chat_template": true}'


def looked(bucket: Bucket, model: Model, targets: tuple[str, ...] = ("test",)) -> Outlook:
    weights = resolve_weights(model)
    plan = weights.plan(model)
    return outlook(bucket, model, plan.kind, targets, plan, weights, None)


def make(bucket: Bucket, model: Model, folder: Path, seconds: float) -> Made:
    """What a rebuild would have left, each step after `seconds` seconds."""
    plan, store = resolve_weights(model).plan(model), ArtifactStore(bucket)

    def publish(ref: ArtifactRef, identity: Identity, **inputs: ArtifactRef) -> ArtifactRef:
        place = folder / ref.identity
        place.mkdir(parents=True, exist_ok=True)
        (place / "limits.json").write_text(LIMITS)
        producer = Producer(task=ref.kind, code="test", seconds=seconds)
        store.publish(ref, identity, place, inputs=inputs, producer=producer, model=model.name)
        return ref

    snapshot = publish(plan.snapshots["snapshot"], plan.snapshot)
    checkpoint = publish(plan.checkpoint_ref, plan.checkpoint, snapshot=snapshot)
    engine = publish(plan.engine_ref, plan.engine, checkpoint=checkpoint)
    return Made(snapshot, checkpoint, engine, publish(plan.repository_ref, plan.repository, engine=engine), model.name)


def report(target: Target, free: int = 4 << 30, **machine: Any) -> None:
    target.report(
        NodeReport(
            node="one",
            target=target.name,
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=8 << 30,
            memory_available_bytes=free,
            machine=Machine.model_validate(machine),
        )
    )


def states(found: Outlook) -> dict[str, tuple[str, str]]:
    assert found.steps is not None
    return {step.step: (step.state, step.why) for step in found.steps}


def test_nothing_was_made_and_there_is_no_node(bucket: Bucket) -> None:
    found = looked(bucket, SMOLLM)
    assert states(found) == dict.fromkeys(("fetch", "convert", "build", "assemble"), ("to make", "never made"))
    (refusal,) = refusals(found)
    assert refusal.code == "target-without-node" and "ENGINEHOUSE_TARGET=test" in refusal.hint
    # Of a wheel nobody knows the size, and of no step an earlier run.
    assert found.time is not None and not found.time.whole and found.time.total.runs == 0
    assert found.compared is None and found.built_bytes is None


def test_what_the_store_has_is_cached_and_the_rest_says_why(bucket: Bucket, fleet: Fleet, tmp_path: Path) -> None:
    fleet.release(make(bucket, SMOLLM, tmp_path / "files", 30.0))
    report(fleet.target)
    found = looked(bucket, SMOLLM)
    assert {state for state, _ in states(found).values()} == {"cached"}
    (target,) = found.targets
    assert target.live == 1 and target.same and target.refusal is None
    assert found.time is not None and found.time.whole and found.time.total.seconds == 0
    # Weights, the cache of all slots, and the buffers of llama.cpp.
    assert found.built_bytes is not None and found.built_bytes > 8 * 2048 * 23040
    assert [(room.node, room.verdict) for room in target.rooms] == [("one", "beside")]

    other = looked(bucket, override(SMOLLM, recipe={"quantization": "q4_0"}).model)
    assert states(other)["convert"] == ("cached", "")
    assert states(other)["build"] == ("to make", "recipe: quantization q8_0 → q4_0")
    assert states(other)["assemble"] == ("to make", "depends on build")
    assert other.compared is not None and other.compared.live and not other.targets[0].same
    assert other.time is not None and other.time.total == Expected(60.0, 40.0, 90.0, 1)
    assert other.targets[0].rooms[0].verdict == "unknown"

    moved = SMOLLM.model_dump(by_alias=True)
    moved["source"]["uri"] = moved["source"]["uri"].replace("0.1.2", "0.1.3")
    fetched = states(looked(bucket, Model.model_validate(moved)))
    assert fetched["fetch"] == ("to make", "weights: version 0.1.2 → 0.1.3")
    assert fetched["convert"] == ("to make", "depends on fetch")


def test_a_damaged_artifact_is_made_again(bucket: Bucket, fleet: Fleet, tmp_path: Path) -> None:
    made = make(bucket, SMOLLM, tmp_path / "files", 1.0)
    fleet.release(made)
    artifact = fleet.store.need(made.engine)
    bucket.delete(f"{artifact.ref.folder}{artifact.manifest.attempt}/limits.json")
    assert states(looked(bucket, SMOLLM))["build"] == ("to make", "'limits.json' is missing")


def test_time_is_learned_from_earlier_runs() -> None:
    assert expected("build", [100.0, 140.0, 300.0], None) == Expected(140.0, 100.0, 300.0, 3)
    assert expected("build", [], None) is None
    prior = expected("build", [], 16 * 10**9)
    assert prior is not None and prior.runs == 0 and prior.low < 190 == prior.seconds < prior.high


@pytest.mark.parametrize(
    ("free", "total", "machine", "verdict"),
    [
        (60, 80, {}, "beside"),
        (10, 80, {}, "alone"),
        (10, 20, {}, "none"),
        (60, 80, {"gpus": 0, "gpu_problem": "no driver"}, "unfit"),
        (60, 80, {"tensorrt_llm": "0.9.0"}, "unfit"),
    ],
)
def test_what_a_node_has_room_for(bucket: Bucket, free: int, total: int, machine: dict[str, Any], verdict: str) -> None:
    runtime = LLAMA.recipe.planned_runtime
    assert runtime is not None
    gpu = NodeGpu(product=runtime.gpu, architecture="sm90", memory_bytes=total << 30, free_bytes=free << 30)
    count = machine.pop("gpus", len(engine_kind(LLAMA).gpus()))
    target = Target(bucket, "gpus")
    facts: dict[str, Any] = {"tensorrt_llm": runtime.tensorrt_llm, "gpus": (gpu,) * count, **machine}
    report(target, **facts)
    (room,) = rooms(LLAMA, engine_kind(LLAMA), 40 << 30, "gpus", target.nodes())
    assert room.verdict == verdict and bool(room.why) == (verdict == "unfit")


def test_a_target_whose_nodes_are_silent_is_told_and_not_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(bucket, "test")
    report(target)
    assert require_nodes([target]) == []
    (line,) = require_nodes([Target(bucket, "test", node_lifetime_s=-1.0)])
    assert "'test'" in line and "silent" in line
    monkeypatch.setattr(nodes, "GONE_SECONDS", -1)  # a day later
    with pytest.raises(UsageError) as caught:
        require_nodes([target])
    assert caught.value.code == "target-without-node"
