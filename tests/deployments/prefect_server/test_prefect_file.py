"""`enginehouse deploy --prefect-yaml`: what Prefect's own command would register by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml
from prefect.cli.deploy._models import PrefectYamlModel

from deployments.cli.main import main
from deployments.prefect_server.desired import desired
from deployments.prefect_server.prefect_file import prefect_file
from deployments.prefect_server.resources import deployment_resource
from infra import settings
from tasks.models.catalogue import load_catalogue


def test_the_file_says_what_deploy_does() -> None:
    here = replace(settings.load(), pool_limits=(("build-cpu", 2),))
    wanted = desired(here, load_catalogue(here.catalogue).models.values())
    text = prefect_file(wanted)
    read = PrefectYamlModel.model_validate(yaml.safe_load(text))
    assert len(read.deployments) == len(wanted.deployments) and read.pull == []
    for entry, deployment in zip(read.deployments, wanted.deployments, strict=True):
        resource: Any = deployment_resource(deployment, None)
        assert entry.work_pool is not None and entry.name == deployment.name
        assert entry.entrypoint == resource.own["entrypoint"] and entry.work_pool.name == resource.own["work_pool_name"]
        assert (entry.description, entry.tags) == (resource.own["description"], resource.own["tags"])
        crons: list[Any] = entry.schedules or []
        schedules = [(each.cron, each.timezone, each.slug) for each in crons]
        assert schedules == ([(deployment.schedule, "UTC", "enginehouse")] if deployment.schedule else [])
        limit: Any = entry.concurrency_limit
        assert (None if limit is None else limit.limit) == resource.shared["limit"]
    for pool in wanted.pools:
        assert f"#   prefect work-pool create {pool.name} --type {pool.type}\n" in text


def test_no_server_is_asked(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["deploy", "--prefect-yaml", "-"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "enginehouse"
