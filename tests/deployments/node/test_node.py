"""A node whose models do not load: a real Triton, a real store, and models that fail in TensorRT-LLM's words."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import GateRefused
from infra.processes.sessions import free_ports, start_session
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.catalogue import load_model
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.roll_out import roll_out
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Artifact, ArtifactRef, Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.node_report import ReleaseReport
from tasks.targets.target import Target
from tasks.triton.config import LLM, RELEASE, llm_config, release_config
from tests.waiting import wait

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"

ANSWERS = """
import numpy as np
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            tensors = [
                triton.Tensor("text_output", np.array([[b"one"]], dtype=np.object_)),
                triton.Tensor("cum_log_probs", np.zeros((1, 1), dtype=np.float32)),
                triton.Tensor("output_log_probs", np.zeros((1, 1, 1), dtype=np.float32)),
            ]
            request.get_response_sender().send(triton.InferenceResponse(tensors), flags=1)
"""
# As the backend does it: the reason is in the log, and the answer to the load is only that it failed.
SAYS_IT_IN_THE_LOG = """
import sys
print("[TensorRT-LLM][WARNING] Cannot find parameter with name: batch_scheduler_policy", file=sys.stderr)
print("[TensorRT-LLM][ERROR] 6: The engine plan file is not compatible with this version of TensorRT, expecting "
      "library version 9.2.0.5 got 9.3.0.1, please rebuild.", file=sys.stderr, flush=True)
class TritonPythonModel:
    def initialize(self, arguments):
        raise RuntimeError("unexpected error when creating modelInstanceState")
"""
SAYS_IT_IN_THE_ANSWER = """
class TritonPythonModel:
    def initialize(self, arguments):
        raise RuntimeError("maxTokensInPagedKvCache (64) must be large enough to process at least 1 sequence")
"""
# As an assertion in the backend's own threads does.
TAKES_TRITON_WITH_IT = """
import os, signal, sys
print("[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, mCudaStream->get()): out of memory",
      file=sys.stderr, flush=True)
class TritonPythonModel:
    def initialize(self, arguments):
        os.kill(os.getppid(), signal.SIGKILL)
"""


@pytest.fixture
def node(bucket: Bucket, tmp_path: Path) -> Iterator[Target]:
    """The target of a node that runs beside this process."""
    ports = free_ports(3)
    environment = os.environ | {
        "ENGINEHOUSE_HOME": str(tmp_path),
        "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
        "ENGINEHOUSE_TARGET": "test",
        "ENGINEHOUSE_TRITON_HTTP": f"http://127.0.0.1:{ports[0]}",
        "ENGINEHOUSE_TRITON_GRPC": f"127.0.0.1:{ports[1]}",
        "ENGINEHOUSE_NODE_METRICS_PORT": str(ports[2]),
    }
    log, command = tmp_path / "node.log", [sys.executable, "-m", "deployments.node.agent"]
    process = start_session(command, log=log, folder=CHECKOUT, environment=environment)
    target = Target(bucket, "test")
    try:
        wait(lambda: bool(target.nodes()), "report")
        yield target
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


@pytest.fixture
def plan() -> Plan:
    return Plan.of(load_model(CATALOGUE / "smollm2-135m.yaml"), Identity({"source": "some"}))


def publish(bucket: Bucket, plan: Plan, folder: Path, code: str) -> Context:
    """A repository whose model is `code`, and its engine."""
    store = ArtifactStore(bucket)
    files = {
        "engine": {LIMITS_FILE: json.dumps({"cache_bytes_per_token": 1})},
        "repository": {
            f"{LLM}/config.pbtxt": llm_config(),
            f"{LLM}/1/model.py": code,
            f"{RELEASE}/config.pbtxt": release_config(),
        },
    }

    def put(ref: ArtifactRef, identity: Identity, inputs: dict[str, ArtifactRef]) -> Artifact:
        for name, text in files[ref.kind].items():
            (folder / ref.kind / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / ref.kind / name).write_text(text)
        producer = Producer(task="test", code="test")
        return store.publish(
            ref, identity, folder / ref.kind, inputs=inputs, producer=producer, replaces=store.look_up(ref).attempt
        )

    put(plan.engine_ref, plan.engine, {})
    put(plan.repository_ref, plan.repository, {"engine": plan.engine_ref})
    return Context(store, Workspace(folder / "work"), "", 5.0)


@pytest.mark.parametrize(
    ("code", "model", "words"),
    [
        ("version-mismatch", SAYS_IT_IN_THE_LOG, "expecting library version 9.2.0.5 got 9.3.0.1"),
        ("kv-cache-small", SAYS_IT_IN_THE_ANSWER, "maxTokensInPagedKvCache (64)"),
        ("gpu-memory", TAKES_TRITON_WITH_IT, "cudaMallocAsync"),
    ],
)
def test_a_known_failure_is_the_reason_of_the_refused_release(
    node: Target, bucket: Bucket, plan: Plan, tmp_path: Path, code: str, model: str, words: str
) -> None:
    context, name = publish(bucket, plan, tmp_path / "artifacts", model), plan.model.name
    with pytest.raises(GateRefused) as refused:
        roll_out(context, plan, "test", timeout_s=60)
    assert refused.value.code == "gate-refused"
    assert f"[{code}]" in refused.value.message and words in refused.value.message
    assert "no release is live; `enginehouse releases" in refused.value.hint
    assert len(refused.value.hint.split("; ")) > 2, "the failure's own hint comes first"
    result = node.result(name, 1)
    assert result is not None and f"[{code}]" in result.reason
    wait(lambda: bool(node.nodes()) and node.nodes()[0].models[name].releases == {}, "release that is let go")


def test_a_release_is_ready_when_each_of_its_models_is(
    node: Target, bucket: Bucket, plan: Plan, tmp_path: Path
) -> None:
    context, name = publish(bucket, plan, tmp_path / "artifacts", ANSWERS), plan.model.name
    assert roll_out(context, plan, "test", timeout_s=60).release == 1
    report = node.nodes()[0]
    ready = report.models[name].releases[1]
    assert ready == ReleaseReport(state="ready", starts=1, memory_bytes=ready.memory_bytes)
    wait(lambda: node.nodes()[0].models[name].releases[1].memory_bytes > 1 << 20, "report of its memory")
    assert report.machine.gpus or report.machine.gpu_problem
    assert (report.machine.tensorrt_llm, report.machine.container) == ("", "")


def test_copies_go_with_the_releases_that_used_them(node: Target, bucket: Bucket, plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "node" / "artifacts"

    def copies() -> set[str]:
        return {path.name for path in folder.iterdir()}

    context, name = publish(bucket, plan, tmp_path / "artifacts", ANSWERS), plan.model.name
    (folder / "left-by-an-earlier-agent").mkdir(parents=True)
    release = roll_out(context, plan, "test", timeout_s=60).release
    used = {plan.repository.digest, plan.engine.digest}
    wait(lambda: copies() == used, "copy that nothing uses and that is gone")
    node.move(name, lambda current: current.without_candidates(release))
    wait(lambda: bool(node.nodes()) and node.nodes()[0].models[name].releases == {}, "release that is let go")
    wait(lambda: copies() == set(), "disk without copies")
