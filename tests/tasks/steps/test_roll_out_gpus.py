"""Rolling out an engine: only onto nodes that it was built for, beside another one only where their GPUs hold both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import EnginehouseError
from infra.s3.bucket import Bucket
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.catalogue import load_model
from tasks.models.overrides import override
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.roll_out import roll_out
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.node_report import Machine, ModelReport, NodeGpu, NodeReport, ReleaseReport
from tasks.targets.target import Target
from tests.standin.engine import LIMITS as LLAMA_3_8B

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
PRODUCT = "NVIDIA H100 80GB HBM3"
BUILT = {"tensorrt_llm": "0.16.0", "tensorrt": "10.7.0.23", "gpu": PRODUCT, "architecture": "sm90", "gpus": "4"}
LIMITS = replace(LLAMA_3_8B, cache_bytes_per_token=1 << 14, weight_bytes=20 << 30)


def plan_of(version: str) -> Plan:
    """Four GPUs."""
    return Plan.of(
        override(load_model(CATALOGUE / "llama3-70b-instruct.yaml"), tensorrt_llm=version).model,
        Identity({"some": "hub"}),
    )


@pytest.fixture
def context(bucket: Bucket, tmp_path: Path) -> Context:
    return Context(ArtifactStore(bucket), Workspace(tmp_path / "work"), "", 5.0)


def publish(context: Context, plan: Plan, folder: Path, built: Mapping[str, str] = BUILT) -> int:
    """Put engine and repository into the store; returns the bytes that a release takes on each GPU."""
    folder.mkdir()
    (folder / LIMITS_FILE).write_text(LIMITS.to_json())
    producer = Producer(task="build", code="test", runtime=dict(built))
    for ref, identity in ((plan.engine_ref, plan.engine), (plan.repository_ref, plan.repository)):
        context.store.publish(ref, identity, folder, inputs={}, producer=producer)
    return plan.kind.memory_bytes(0, LIMITS.to_json().encode())


def report(context: Context, plan: Plan, free_bytes: int, gpus: int = 4, **machine: Any) -> Target:
    """A node of little host memory with GPUs of 80 GiB, the first of which has `free_bytes`; all releases are ready."""
    target = context.target("test")
    gpu = NodeGpu(product=PRODUCT, architecture="sm90", memory_bytes=80 << 30, free_bytes=79 << 30)
    first = gpu.model_copy(update={"free_bytes": free_bytes})
    facts = {"tensorrt_llm": "0.16.0", "tensorrt": "10.7.0", "gpus": (first, *(gpu,) * (gpus - 1))[:gpus], **machine}
    target.report(
        NodeReport(
            node="one",
            target=target.name,
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=1 << 30,
            memory_available_bytes=1 << 20,
            machine=Machine.model_validate(facts),
            models={plan.model.name: ModelReport(public=1, releases={1: ReleaseReport(state="ready")})},
        )
    )
    return target


def test_what_counts_is_the_fullest_of_the_gpus_that_it_takes(context: Context, tmp_path: Path) -> None:
    plan = plan_of("0.16.0")
    needed = publish(context, plan, tmp_path / "files")
    target = report(context, plan, free_bytes=needed - 1)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, plan, "test")
    assert caught.value.code == "memory-short" and "kv_cache_tokens" in caught.value.hint
    assert target.releases(plan.model.name) == []
    report(context, plan, free_bytes=needed)
    assert roll_out(context, plan, "test").release == 1


def test_recreate_takes_the_gpus_of_the_live_release(context: Context, tmp_path: Path) -> None:
    plan = plan_of("0.16.0")
    needed = publish(context, plan, tmp_path / "files")
    target = report(context, plan, free_bytes=needed - 1)
    roll_out(context, plan, "test", recreate=True)
    assert target.current(plan.model.name)[0].alone


@pytest.mark.parametrize(
    ("machine", "facts"),
    [
        ({"tensorrt": "10.8.0.43"}, ("10.8.0.43", "10.7.0.23")),
        ({"tensorrt_llm": "0.17.0"}, ("0.17.0", "0.16.0")),
        ({"gpus": 0, "gpu_problem": "no driver", "tensorrt_llm": "", "tensorrt": ""}, ("no driver",)),
    ],
)
def test_an_engine_is_refused_where_it_was_not_built_for(
    context: Context, tmp_path: Path, machine: dict[str, Any], facts: tuple[str, ...]
) -> None:
    plan = plan_of("0.16.0")
    publish(context, plan, tmp_path / "files")
    target = report(context, plan, free_bytes=79 << 30, **machine)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, plan, "test", recreate=True)
    assert caught.value.code == "runtime-differs"
    assert all(fact in caught.value.message for fact in ("node 'one'", *facts))
    assert not caught.value.retryable and "ENGINEHOUSE_TRITON" in caught.value.hint
    assert target.releases(plan.model.name) == []


def test_an_engine_with_servers_of_its_own_needs_a_node_that_can_start_them(context: Context, tmp_path: Path) -> None:
    plan = plan_of("0.8.0")
    needed = publish(context, plan, tmp_path / "files", {**BUILT, "tensorrt_llm": "0.8.0", "tensorrt": "9.2.0"})
    versions: dict[str, Any] = {"tensorrt_llm": "0.8.0", "tensorrt": "9.2.0"}
    target = report(context, plan, free_bytes=needed, **versions)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, plan, "test", recreate=True)
    assert caught.value.code == "leader-mode" and " one " in caught.value.message and "in PATH" in caught.value.hint
    assert target.releases(plan.model.name) == []
    report(context, plan, free_bytes=needed - 1, groups=True, **versions)
    with pytest.raises(EnginehouseError) as caught:
        roll_out(context, plan, "test")
    assert caught.value.code == "memory-short"
    report(context, plan, free_bytes=needed, groups=True, **versions)
    assert roll_out(context, plan, "test").release == 1
    assert target.intent(plan.model.name, 1).ranks == 4
