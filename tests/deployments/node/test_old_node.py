"""A real node of commit 060e017 beside this code: it answers until it is renewed, and then gets what is new."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import EnginehouseError
from infra.processes.sessions import free_ports, start_session
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from infra.triton.client import TritonClient
from tasks.models.catalogue import load_model
from tasks.steps.plan import Plan
from tasks.steps.promote import promote
from tasks.steps.roll_out import roll_out
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.record import record_bytes
from tasks.targets.node_report import READ_BEFORE, ModelReport
from tasks.targets.release import Result
from tasks.targets.target import Target
from tests.deployments.node.test_node import ANSWERS, CATALOGUE, publish
from tests.layout_before import layout_before
from tests.waiting import wait

COMMIT = "060e017"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A checkout of the commit. Its code runs in this environment."""
    archive = subprocess.run(["git", "archive", COMMIT], cwd=CHECKOUT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"this checkout does not have commit {COMMIT}")
    folder = tmp_path / COMMIT
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


@contextmanager
def node(code: Path, module: str, bucket: Bucket, home: Path, ports: list[int]) -> Generator[None]:
    """A node in a process of its own, as that code has it. It must be alive at the end of the block."""
    environment = os.environ | {
        "ENGINEHOUSE_HOME": str(home),
        "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
        "ENGINEHOUSE_TARGET": "test",
        "ENGINEHOUSE_TRITON_HTTP": f"http://127.0.0.1:{ports[0]}",
        "ENGINEHOUSE_TRITON_GRPC": f"127.0.0.1:{ports[1]}",
        "ENGINEHOUSE_NODE_METRICS_PORT": str(ports[2]),
        "PYTHONPATH": str(code),
    }
    log = home / f"{module}.log"
    process = start_session([sys.executable, "-m", module], log=log, folder=code, environment=environment)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()


@pytest.mark.slow
def test_a_node_of_before_answers_until_it_is_renewed(bucket: Bucket, earlier: Path, tmp_path: Path) -> None:
    ports, target = free_ports(3), Target(bucket, "test")
    triton = TritonClient(f"127.0.0.1:{ports[0]}")
    plan = Plan.of(load_model(CATALOGUE / "smollm2-135m.yaml"), Identity({"source": "some"}))
    name, serving = plan.model.name, plan.model.serving.model_copy(update={"chat_template": False})
    context = publish(bucket, plan, tmp_path / "artifacts", ANSWERS)
    for ref in (plan.engine_ref, plan.repository_ref):
        layout_before(context.store, ref, name)
    context = replace(context, store=ArtifactStore(bucket))

    def report() -> ModelReport:
        return target.nodes()[0].models[name]

    def bring(wanted: Plan) -> int:
        release = roll_out(context, wanted, "test", timeout_s=120).release
        target.conclude(name, Result(release=release, state="passed"))
        promote(target, name, release)
        assert triton.ready(name)
        return release

    with node(earlier, "deployments.node", bucket, tmp_path, ports):
        wait(lambda: bool(target.nodes()), "report", 60)
        assert target.nodes()[0].reads == READ_BEFORE
        assert bring(plan) == 1 and roll_out(context, plan, "test").unchanged
        other = Plan.of(plan.model.model_copy(update={"serving": serving}), plan.snapshot)
        publish(bucket, other, tmp_path / "artifacts", ANSWERS)
        with pytest.raises(EnginehouseError) as caught:
            roll_out(context, other, "test")
        assert caught.value.code == "node-older" and target.releases(name) == [1]
        # A record that it does not know, in whichever way it came there, costs it that release and nothing else.
        changes = {"release": 2, "schema_version": 3, "repository": str(other.repository_ref)}
        body = record_bytes(target.intent(name, 1).model_copy(update=changes))
        bucket.put(f"targets/test/{name}/2/intent.json", body)
        target.move(name, lambda current: current.with_candidate(2))
        wait(lambda: 2 in report().releases and report().releases[2].state == "failed", "refusal")
        assert "[format-newer]" in report().releases[2].error
        assert report().public == 1 and report().releases[1].state == "ready" and triton.ready(name)
        target.conclude(name, Result(release=2, state="refused"))
        target.move(name, lambda current: current.without_candidates(2))
    with node(CHECKOUT, "deployments.node.agent", bucket, tmp_path, ports):
        # The report of the old one may be out of date before the new one's first.
        wait(lambda: any(node.reads != READ_BEFORE for node in target.nodes()), "renewed node", 60)
        wait(lambda: report().public == 1, "public release", 60)
        assert triton.ready(name) and roll_out(context, plan, "test").unchanged
        release = bring(other)
        assert target.intent(name, release).repository == str(other.repository_ref)
