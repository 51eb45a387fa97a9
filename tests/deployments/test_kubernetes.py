"""Kubernetes pools on a real API server, with Prefect's own worker and the rights that its service account has."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.prefect_server.desired import Deployment, desired
from deployments.prefect_server.register import deploy
from flows.build_on_pool import start_or_attach
from infra import settings
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_model
from tasks.steps.plan import Plan
from tasks.store.identity import Identity
from tests import cluster, prefect_api
from tests.cluster import Cluster

pytestmark = pytest.mark.slow

MANIFESTS = CHECKOUT / "infra/kubernetes"
POOL = "build-sm90"
IMAGE = f"registry.example/enginehouse@sha256:{'ab' * 32}"
JOBS = "/apis/batch/v1/namespaces/enginehouse/jobs"
PODS = "/api/v1/namespaces/enginehouse/pods"


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    program = Path(os.environ.get("ENGINEHOUSE_TEST_KUBERNETES", cluster.PROGRAM))
    if why := cluster.missing(program):
        pytest.skip(why)
    with cluster.running(program, tmp_path_factory.mktemp("kubernetes")) as running:
        for name in yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]:
            for document in yaml.safe_load_all((MANIFESTS / name).read_text()):
                running.apply(document)
        yield running


@dataclass(frozen=True)
class Prefect:
    """A server with everything deployed, its GPU pool on Kubernetes, and that pool's worker."""

    api: str
    plan: Plan
    worker_log: Path

    def run(self, id: str) -> dict[str, Any]:
        return prefect_api.ask(self.api, "GET", f"/flow_runs/{id}")

    def wait(self, id: str, *states: str) -> dict[str, Any]:
        until = time.monotonic() + 90
        while (run := self.run(id))["state_type"] not in states:
            assert time.monotonic() < until, f"{run['state']}\n{self.worker_log.read_text()}"
            time.sleep(0.3)
        return run

    def start_pod_flow(self) -> str:
        deployment = prefect_api.ask(self.api, "GET", "/deployments/name/pod_flow/pod_flow")
        body = {"job_variables": {"image": IMAGE, "image_digest": IMAGE.partition("@")[2]}}
        path = f"/deployments/{deployment['id']}/create_flow_run"
        return prefect_api.ask(self.api, "POST", path, body)["id"]


@pytest.fixture(scope="module")
def prefect(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("prefect")
    model = load_model(CHECKOUT / "deployments/models/llama3-8b-instruct.yaml")
    here = replace(settings.load(), pools=((POOL, "kubernetes"),), worker_image="registry.example/e:{tensorrt_llm}")
    wanted = desired(here, [model])
    extra = Deployment("tests.pod_flow", "pod_flow", "pod_flow", POOL)
    with prefect_api.server(folder) as api:
        with temporary_settings(updates={PREFECT_API_URL: api}):
            everything = replace(wanted, deployments=(*wanted.deployments, extra))
            asyncio.run(deploy(everything, lambda change: None))
        environment = {
            "KUBECONFIG": str(kubernetes.kubeconfig_of("enginehouse", "enginehouse-worker", folder)),
            "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": "enginehouse",
        }
        with prefect_api.worker(folder, api, POOL, "kubernetes", environment) as log:
            yield Prefect(api, Plan.of(model, Identity({"source": "some"})), log)


def pod_of(kubernetes: Cluster, run: str) -> dict[str, Any]:
    """The Pod that the Job controller made for a flow run."""
    pods = kubernetes.wait(PODS, lambda pods: pods["items"], labelSelector=f"prefect.io/flow-run-id={run}")["items"]
    assert len(pods) == 1
    return pods[0]


def end(kubernetes: Cluster, pod: dict[str, Any], phase: str, exit_code: int) -> None:
    """What a kubelet reports of a Pod that has ended."""
    terminated = {"exitCode": exit_code, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z"}
    container = {
        "name": "prefect-job",
        "image": pod["spec"]["containers"][0]["image"],
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": terminated},
    }
    kubernetes.ask(
        "PATCH",
        f"{PODS}/{pod['metadata']['name']}/status",
        {"status": {"phase": phase, "containerStatuses": [container]}},
        headers={"Content-Type": "application/merge-patch+json"},
    )


@pytest.mark.parametrize(
    "app", ["enginehouse-default", "enginehouse-build-sm90", "enginehouse-node", "enginehouse-gateway"]
)
def test_the_server_takes_the_manifests_and_makes_their_pods(kubernetes: Cluster, app: str) -> None:
    for pod in kubernetes.wait(PODS, lambda pods: pods["items"], labelSelector=f"app={app}")["items"]:
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] and pod["spec"]["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize(
    ("account", "verb", "group", "resource", "allowed"),
    [
        ("enginehouse-worker", "create", "batch", "jobs", True),
        ("enginehouse-worker", "create", "", "pods", False),
        ("enginehouse-worker", "get", "", "secrets", False),
        ("enginehouse-worker", "list", "", "nodes", False),
        ("enginehouse-run", "list", "", "pods", False),
        ("enginehouse-run", "get", "", "secrets", False),
    ],
)
def test_rights(kubernetes: Cluster, account: str, verb: str, group: str, resource: str, allowed: bool) -> None:
    attributes = {"namespace": "enginehouse", "verb": verb, "group": group, "resource": resource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:enginehouse:{account}", "resourceAttributes": attributes},
    }
    answer = kubernetes.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert answer["status"]["allowed"] is allowed


def test_a_build_is_a_job_as_its_pool_and_its_recipe_say(
    kubernetes: Cluster, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_WORKER_IMAGE", "registry.example/e:{tensorrt_llm}")

    async def start() -> str:
        async with get_client() as client:
            return str((await start_or_attach(client, prefect.plan, frozenset())).run.id)

    with temporary_settings(updates={PREFECT_API_URL: prefect.api}):
        run = asyncio.run(start())
    pod = pod_of(kubernetes, run)
    (job,) = kubernetes.ask("GET", JOBS, params={"labelSelector": f"prefect.io/flow-run-id={run}"})["items"]
    assert job["spec"]["backoffLimit"] == 0

    spec = pod["spec"]
    (container,) = spec["containers"]
    assert container["image"] == "registry.example/e:1.2.1"
    assert container["args"] == ["/opt/enginehouse/bin/python", "-m", "prefect.engine"]
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "1"},
    }
    assert spec["nodeSelector"] == {
        "nvidia.com/gpu.compute.major": "9",
        "nvidia.com/gpu.compute.minor": "0",
        "nvidia.com/gpu.product": "NVIDIA-H200",
    }
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in spec["volumes"]}
    assert volumes[mounts["/var/lib/enginehouse"]] == {"persistentVolumeClaim": {"claimName": "enginehouse-build-sm90"}}
    assert volumes[mounts["/dev/shm"]] == {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
    assert volumes[mounts["/tmp"]] == {"emptyDir": {}}
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["serviceAccountName"] == "enginehouse-run" and spec["automountServiceAccountToken"] is False
    assert container["envFrom"] == [
        {"configMapRef": {"name": "enginehouse"}},
        {"secretRef": {"name": "enginehouse-build"}},
    ]
    prefect_api.ask(prefect.api, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})


def test_a_pod_that_succeeds_ends_its_run(kubernetes: Cluster, prefect: Prefect) -> None:
    run = prefect.start_pod_flow()
    pod = pod_of(kubernetes, run)
    (container,) = pod["spec"]["containers"]
    # What a kubelet would do: the container's own command line, in the container's own environment.
    interpreter, *arguments = container["args"]
    assert interpreter == "/opt/enginehouse/bin/python"
    own = {each["name"]: each["value"] for each in container["env"] if each.get("value")}
    assert own["ENGINEHOUSE_CONTAINER_DIGEST"] == IMAGE.partition("@")[2]
    ran = subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), **own},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{shlex.join(container['args'])}\n{ran.stderr}"
    end(kubernetes, pod, "Succeeded", 0)
    job = pod["metadata"]["labels"]["job-name"]
    kubernetes.wait(f"{JOBS}/{job}", lambda job: job["status"].get("succeeded") == 1)
    assert prefect.wait(run, "COMPLETED", "CRASHED", "FAILED")["state_type"] == "COMPLETED"


def test_a_pod_that_fails_crashes_its_run(kubernetes: Cluster, prefect: Prefect) -> None:
    run = prefect.start_pod_flow()
    end(kubernetes, pod_of(kubernetes, run), "Failed", 137)
    assert prefect.wait(run, "COMPLETED", "CRASHED", "FAILED")["state_type"] == "CRASHED"
    # The rights of its service account sufficed, for all that the worker and its observer do.
    log = prefect.worker_log.read_text()
    assert "forbidden" not in log.lower(), log
