"""Work pools on a real Prefect server: their types, their queues, and a build in a real container."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.prefect_server.desired import Desired, Pool, build_pool, desired
from deployments.prefect_server.register import deploy
from deployments.stack.registration import wanted_by
from flows.build_on_pool import start_or_attach
from infra import settings
from infra.errors import SettingsError
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_model
from tasks.models.source import Source
from tasks.models.spec import Model
from tasks.sources.dispatch import resolve
from tasks.steps.context import Context
from tasks.steps.fetch import fetch, snapshot_identity
from tasks.steps.plan import Plan
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.watch.waves import LATER_QUEUE
from tests import docker_daemon, prefect_api
from tests.docker_daemon import Daemon

pytestmark = pytest.mark.slow

IMAGE = "registry.example/enginehouse:{tensorrt_llm}"


@dataclass(frozen=True)
class Prefect:
    api: str
    folder: Path

    def ask(self, method: str, path: str, body: object = None) -> Any:
        return prefect_api.ask(self.api, method, path, body)

    def deploy(self, *pools: Pool) -> None:
        wanted = Desired(pools, tuple(build_pool(pool.name) for pool in pools), ())
        with temporary_settings(updates={PREFECT_API_URL: self.api}):
            asyncio.run(deploy(wanted, lambda change: None))

    def start(self, plan: Plan, queue: str | None = None) -> dict[str, Any]:
        """The build as a rebuild starts it."""

        async def start() -> str:
            async with get_client() as client:
                return str((await start_or_attach(client, plan, frozenset(), queue)).run.id)

        with temporary_settings(updates={PREFECT_API_URL: self.api}):
            return self.ask("GET", f"/flow_runs/{asyncio.run(start())}")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    folder = tmp_path_factory.mktemp("prefect")
    with prefect_api.server(folder) as api:
        yield Prefect(api, folder)


@pytest.mark.long
def test_a_pool_has_the_type_that_the_settings_name(prefect: Prefect) -> None:
    model = load_model(CHECKOUT / "deployments/models/llama3-8b-instruct.yaml")
    here = replace(settings.load(), pools=(("build-sm90", "docker"),), worker_image=IMAGE)
    pools = {pool.name: pool for pool in desired(here, [model]).pools}
    assert {name: pool.type for name, pool in pools.items()} == {
        "default": "process",
        "build-cpu": "process",
        "build-sm90": "docker",
    }
    # The embedded stack has process workers, whatever is set for other servers.
    assert {pool.type for pool in wanted_by(here).pools} == {"process"}
    prefect.deploy(pools["build-sm90"])
    made = prefect.ask("GET", "/work_pools/build-sm90")
    assert made["type"] == "docker" and "gpu_count" in made["base_job_template"]["variables"]["properties"]

    # Its template is people's from now on, and its type stays: Prefect knows no way to change it.
    made["base_job_template"]["variables"]["properties"]["memory"]["default"] = "96g"
    prefect.ask("PATCH", "/work_pools/build-sm90", {"base_job_template": made["base_job_template"]})
    prefect.deploy(pools["build-sm90"])
    assert prefect.ask("GET", "/work_pools/build-sm90")["base_job_template"] == made["base_job_template"]
    with pytest.raises(SettingsError) as caught:
        prefect.deploy(replace(pools["build-sm90"], type="kubernetes"))
    assert caught.value.code == "pool-type" and "prefect work-pool delete" in caught.value.hint


def test_what_people_start_goes_before_what_the_watch_starts(prefect: Prefect) -> None:
    prefect.deploy(Pool("build-sm100", queues=("later",)))
    queues = prefect.ask("POST", "/work_pools/build-sm100/queues/filter", {})
    assert {queue["name"]: queue["priority"] for queue in queues} == {"default": 1, "later": 2}
    model = load_model(CHECKOUT / "deployments/models/llama3-8b-instruct.yaml")
    one, other = (Plan.of(_on(model, "sm100"), Identity({"source": source})) for source in ("one", "other"))
    assert prefect.start(one, LATER_QUEUE)["work_queue_name"] == LATER_QUEUE
    assert prefect.start(other)["work_queue_name"] == "default"


def _on(model: Model, arch: str) -> Model:
    document = model.model_dump(mode="json", by_alias=True)
    document["recipe"]["runtime"] |= {"gpu": "NVIDIA B200", "arch": arch}
    return Model.model_validate(document)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    if why := docker_daemon.missing():
        pytest.skip(why)
    with docker_daemon.running() as started:
        if started is None:
            pytest.skip("dockerd does not start here")
        yield started


def test_a_build_in_a_container(
    prefect: Prefect,
    daemon: Daemon,
    bucket: Bucket,
    smollm2_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
        "ENGINEHOUSE_HOME": str(tmp_path / "home"),
        "ENGINEHOUSE_WORKER_IMAGE": "enginehouse:{tensorrt_llm}",
    }.items():
        monkeypatch.setenv(name, value)
    model = load_model(CHECKOUT / "deployments/models/smollm2-135m.yaml")
    model = model.model_copy(update={"source": Source(uri=f"file://{smollm2_gguf}")})
    resolved = resolve(model.source)
    plan = Plan.of(model, snapshot_identity(resolved))
    fetch(Context.of(settings.load(), "", "fetched"), plan, resolved)

    daemon.make_image("enginehouse:cpu")
    prefect.deploy(Pool("build-cpu", type="docker", image="enginehouse:{tensorrt_llm}"))
    for folder in ("cache", "etc"):
        (tmp_path / folder).mkdir()
        os.chown(tmp_path / folder, 10001, 10001)
    credentials = tmp_path / "etc/aws-credentials"
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    own = [f"{tmp_path}/cache:/var/lib/enginehouse", f"{tmp_path}/etc:/etc/enginehouse:ro"]
    template = prefect.ask("GET", "/work_pools/build-cpu")["base_job_template"]
    template["variables"]["properties"]["volumes"]["default"] = [*docker_daemon.volumes(), *own]
    template["job_configuration"]["env"] |= {"PYTHONPATH": str(CHECKOUT), "ENGINEHOUSE_HOME": "/var/lib/enginehouse"}
    prefect.ask("PATCH", "/work_pools/build-cpu", {"base_job_template": template})

    with prefect_api.worker(prefect.folder, prefect.api, "build-cpu", "docker", {"DOCKER_HOST": daemon.host}) as log:
        run = prefect.start(plan)
        containers: list[dict[str, Any]] = []
        until = time.monotonic() + 180
        while run["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
            assert time.monotonic() < until, log.read_text()
            containers = containers or daemon.inspect(run["id"])
            time.sleep(0.2)
            run = prefect.ask("GET", f"/flow_runs/{run['id']}")
        assert run["state_type"] == "COMPLETED", f"{run['state']}\n{log.read_text()}"
    (seen,) = containers
    assert seen["Config"]["Image"] == "enginehouse:cpu" and seen["Config"]["User"] == "10001:10001"
    limits = seen["HostConfig"]
    assert limits["ReadonlyRootfs"] and limits["CapDrop"] == ["ALL"] and limits["Memory"] == 8 << 30
    assert limits["SecurityOpt"] == ["no-new-privileges"] and limits["ShmSize"] == 1 << 30
    engine = ArtifactStore(bucket).find(plan.engine_ref)
    assert engine is not None and engine.manifest.producer.flow_run == run["id"]
