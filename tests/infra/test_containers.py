"""The Dockerfile and the compose file, checked without Docker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from io import BytesIO
from typing import Any, cast

import dockerfile_parse  # pyright: ignore[reportMissingTypeStubs]
import pytest
import yaml

from deployments.stack.services import GATEWAY_GRACE_S, PORT_NAMES, WORKERS, Credentials, service_environment
from infra import settings
from infra.processes.background import MARKER
from infra.settings import CHECKOUT
from infra.triton.command import EXIT_TIMEOUT_S
from infra.triton.supervisor import NODE_GRACE_S, STOP_GRACE_S
from tasks.models.spec import Serving

COMPOSE = CHECKOUT / "infra/compose.yaml"
DOCKERFILE = CHECKOUT / "infra/Dockerfile"
OURS = (
    "prefect",
    "bucket",
    "deploy",
    "s3",
    "worker-default",
    "worker-build-cpu",
    "worker-build-gpu",
    "node",
    "gateway",
)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    parsed = cast(Any, dockerfile_parse).DockerfileParser(fileobj=BytesIO(DOCKERFILE.read_bytes()))
    return [(each["instruction"], each["value"]) for each in parsed.structure if each["instruction"] != "COMMENT"]


def test_compose_keeps_to_its_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_embedded_stack_and_compose_set_the_same_variables(compose: dict[str, Any]) -> None:
    before = dict(os.environ)
    embedded = service_environment(settings.load(), dict.fromkeys(PORT_NAMES, 1), Credentials("key", "secret"))
    ours = {name for name in embedded if name not in before or embedded[name] != before[name]} - {MARKER}
    node = compose["services"]["node"]["environment"]
    assert ours - node.keys() == set()
    # Variables that hold no address have the same value.
    for name in ("AWS_DEFAULT_REGION", "ENGINEHOUSE_STORE", "PREFECT_WORKER_QUERY_SECONDS", "DO_NOT_TRACK"):
        assert node[name] == embedded[name]
    for worker in WORKERS:
        assert compose["services"][worker]["environment"].items() <= node.items()


def test_compose_starts_what_is_in_the_image_and_needs_no_rights(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {*OURS, "postgres", "redis"}
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and service["user"] not in ("root", "0"), name
        # By digest, which its user takes, and never by a tag of ours.
        assert service["image"].startswith("${") and service["image"].endswith(":?}"), name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in compose["volumes"], "a folder of the machine"
    for name in OURS:
        assert services[name]["command"][0].startswith("/opt/enginehouse/bin/"), name


def test_a_node_ends_within_what_it_is_granted_and_is_ready_when_its_models_are(compose: dict[str, Any]) -> None:
    node = compose["services"]["node"]
    stateful, *_ = yaml.safe_load_all((CHECKOUT / "infra/kubernetes/node.yaml").read_text())
    pod = stateful["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert NODE_GRACE_S > STOP_GRACE_S > EXIT_TIMEOUT_S > Serving().request_timeout_s
    assert pod["terminationGracePeriodSeconds"] == NODE_GRACE_S
    assert node["stop_grace_period"] == f"{NODE_GRACE_S:g}s"
    port = node["environment"]["ENGINEHOUSE_NODE_HEALTH_PORT"]
    assert f'"http://127.0.0.1:{port}/ready"' in node["healthcheck"]["test"][-1]
    ports = {each["name"]: str(each["containerPort"]) for each in container["ports"]}
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "health"}
    assert environment["ENGINEHOUSE_NODE_HEALTH_PORT"] == ports["health"] == port


def test_a_gateway_ends_within_what_it_is_granted(compose: dict[str, Any]) -> None:
    gateway = compose["services"]["gateway"]
    deployment, _ = yaml.safe_load_all((CHECKOUT / "infra/kubernetes/gateway.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert GATEWAY_GRACE_S > EXIT_TIMEOUT_S == settings.Settings().gateway_grace_seconds
    assert gateway["stop_grace_period"] == f"{GATEWAY_GRACE_S:g}s"
    (told,) = [
        int(each) for each in re.findall(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])
    ]
    assert pod["terminationGracePeriodSeconds"] == GATEWAY_GRACE_S + told
    # Beyond loopback it answers nobody without a key, unless that is said.
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["ENGINEHOUSE_GATEWAY_KEYS"] and "ENGINEHOUSE_GATEWAY_OPEN" not in environment
    assert gateway["environment"]["ENGINEHOUSE_GATEWAY_OPEN"] == "true"


def test_no_secret_stands_in_the_compose_file(compose: dict[str, Any]) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD", "PREFECT_API_AUTH_STRING"):
        lines = [line for line in COMPOSE.read_text().splitlines() if name in line and not line.startswith("#")]
        assert lines
        for line in lines:
            assert f"${{{name}:?}}" in line or "os.environ" in line or "names =" in line, line


def test_the_image_is_pinned_and_leaves_its_base_alone(instructions: list[tuple[str, str]]) -> None:
    assert ("ARG", "BASE") in instructions, "a digest is taken by whoever builds, and has no default"
    assert [value for name, value in instructions if name == "FROM"] == ["${BASE} AS build", "${BASE}"]
    final = instructions[max(index for index, (name, _) in enumerate(instructions) if name == "FROM") :]
    # Copied files, variables and a user: no command runs on the base, and its entry point and PATH stay.
    assert {name for name, _ in final} == {"FROM", "COPY", "ENV", "WORKDIR", "USER"}
    assert final[-1] == ("USER", "10001:10001")
    for name, value in final:
        if name == "COPY":
            assert value.startswith("--from=build /") and value.split()[1] == value.split()[2]
        if name == "ENV":
            assert not {"PATH", "LD_LIBRARY_PATH", "PYTHONPATH"} & {word.partition("=")[0] for word in value.split()}


def test_what_is_copied_is_there(instructions: list[tuple[str, str]]) -> None:
    copied = [value.split()[:-1] for name, value in instructions if name == "COPY" and "--from" not in value]
    sources = {source for sources in copied for source in sources}
    assert {"requirements.lock", "deployments", "flows", "infra", "tasks"} <= sources
    ignored = (CHECKOUT / "infra/Dockerfile.dockerignore").read_text().split()
    for source in sources:
        assert (CHECKOUT / source).exists() and f"!{source}" in ignored


def test_installing_checks_hashes(instructions: list[tuple[str, str]]) -> None:
    runs = " ".join(value for name, value in instructions if name == "RUN")
    installs = [part for part in runs.split("&&") if "install" in part and "-r" in part]
    assert len(installs) == 2 and all("--no-deps" in part and "--require-hashes" in part for part in installs)
    assert "\nuv==" in (CHECKOUT / "requirements-dev.lock").read_text()
