"""The embedded stack, with its real servers. One stack for all tests here: each leaves it up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import boto3
import psutil
import pytest
from fastapi.routing import APIWebSocketRoute
from prefect.server.api.server import API_ROUTERS

from deployments.stack import lifecycle
from deployments.stack.home import Home
from deployments.stack.registration import wanted_by
from deployments.stack.services import PORT_NAMES
from infra import settings
from infra.errors import SettingsError
from infra.processes import background
from infra.processes.sessions import free_ports
from infra.settings import Settings
from tests import prefect_api
from tests.deployments.stack import stranger
from tests.waiting import wait

NAMES = ("s3", "prefect", "worker-default", "worker-build-cpu", "node", "gateway")


@pytest.fixture
def fresh(tmp_path: Path) -> Settings:
    """Settings of a home where nothing has ever run."""
    return replace(settings.load(), home=tmp_path / "home")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    stack = replace(settings.load(), home=tmp_path_factory.mktemp("stack") / "home")
    try:
        lifecycle.up(stack, print)
        yield stack
    finally:
        lifecycle.down(stack, print)


def _pids(stack: Settings) -> dict[str, int | None]:
    return {service.name: service.pid for service in lifecycle.status(stack)}


def _kill(stack: Settings, *names: str) -> None:
    for name in names:
        pid = _pids(stack)[name]
        assert pid is not None
        process = psutil.Process(pid)
        process.kill()
        psutil.wait_procs([process], timeout=5)


def _kill_everything(stack: Settings) -> None:
    for process in background.members(stack.home):
        process.kill()
    assert psutil.wait_procs(background.members(stack.home), timeout=10)[1] == []


def _s3(stack: Settings) -> Any:
    variables = lifecycle.environment(stack)
    return cast(Any, boto3).client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_DEFAULT_REGION"],
    )


def _prefect(stack: Settings, path: str, method: str = "GET", body: object = None) -> Any:
    variables = lifecycle.environment(stack)
    credential = variables["PREFECT_API_AUTH_STRING"]
    return prefect_api.ask(variables["PREFECT_API_URL"], method, path, body, credential=credential)


def test_the_variables_reach_every_service(running: Settings) -> None:
    assert [(service.name, service.state) for service in lifecycle.status(running)] == [
        (name, "running") for name in NAMES
    ]
    variables = lifecycle.environment(running)
    assert sorted(variables) == [
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL_S3",
        "AWS_SECRET_ACCESS_KEY",
        "ENGINEHOUSE_GATEWAY_GRPC",
        "ENGINEHOUSE_GATEWAY_HTTP",
        "ENGINEHOUSE_STORE",
        "ENGINEHOUSE_TRITON_GRPC",
        "ENGINEHOUSE_TRITON_HTTP",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_API_URL",
    ]
    bucket = variables["ENGINEHOUSE_STORE"].removeprefix("s3://")
    _s3(running).put_object(Bucket=bucket, Key="reached", Body=b"yes")
    assert _s3(running).get_object(Bucket=bucket, Key="reached")["Body"].read() == b"yes"
    assert _prefect(running, "/health") is True
    with urllib.request.urlopen(f"{variables['ENGINEHOUSE_TRITON_HTTP']}/v2/health/ready") as response:
        assert response.status == 200
    # No model is public, so none is without a node.
    with urllib.request.urlopen(f"{variables['ENGINEHOUSE_GATEWAY_HTTP']}/ready") as response:
        assert response.status == 200
    for name in ("ENGINEHOUSE_TRITON_GRPC", "ENGINEHOUSE_GATEWAY_GRPC"):
        host, _, port = variables[name].partition(":")
        socket.create_connection((host, int(port)), timeout=5).close()


def _listening(stack: Settings) -> dict[str, tuple[str, int]]:
    """Every address on which a process of the stack takes connections, by the port's name, or else by the service."""
    names = {port: name for name, port in Home(stack.home).known_ports().items()}
    services = {service.pid: service.name for service in lifecycle.status(stack)}
    found = [(process.pid, each) for process in background.members(stack.home) for each in process.net_connections()]
    return {
        names.get(each.laddr.port) or services[pid]: (each.laddr.ip, each.laddr.port)
        for pid, each in found
        if each.status == psutil.CONN_LISTEN
    }


def _knock(asked: Mapping[str, object]) -> dict[str, Any]:
    """What the stranger is let do: as another user where this one may become one."""
    done = subprocess.run(
        [sys.executable, "-I", "-B", stranger.__file__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={"HOME": "/nonexistent"},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_stranger_is_refused_at_every_port(running: Settings) -> None:
    """Another user of the machine, who has no credential. New ports, paths and websockets are found by themselves."""
    listening = _listening(running)
    assert {ip for ip, _ in listening.values()} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert set(listening) == set(stranger.KNOCKS)
    ports = {name: port for name, (_, port) in listening.items()}
    some = "00000000-0000-0000-0000-000000000000"
    described = _prefect(running, "/openapi.json")["paths"]
    paths = [(method.upper(), re.sub("{[^}]*}", some, path)) for path, it in described.items() for method in it]
    open_to_all = [("GET", "/health"), ("GET", "/ready")]
    sockets = [each.path for router in API_ROUTERS for each in router.routes if isinstance(each, APIWebSocketRoute)]
    assert len(paths) > 100 and len(sockets) > 4
    asked = {
        "ports": ports,
        "paths": [each for each in paths if each not in open_to_all],
        "sockets": [re.sub("{[^}]*}", "default", path) for path in sockets],
    }
    told = _knock(asked)
    assert told["let in"] == {name: [] for name in ports}
    assert told["user"] == (stranger.NOBODY if os.getuid() == 0 else os.getuid())


def test_sockets_and_shared_memory_are_for_this_user_alone(running: Settings) -> None:
    found = [each for process in background.members(running.home) for each in process.net_connections("unix")]
    paths = {Path(str(each.laddr)) for each in found if str(each.laddr).startswith("/")}
    assert any(path.name.startswith("seaweedfs-filer-grpc") for path in paths)
    assert [path for path in paths if path.exists() and path.stat().st_mode & 0o077] == []


@pytest.mark.slow
@pytest.mark.long
def test_a_home_of_an_earlier_version_gets_a_credential(running: Settings) -> None:
    """What runs there asks nobody, so it is ended; data, keys of S3 and ports stay."""
    _s3(running).put_object(Bucket="enginehouse", Key="earlier", Body=b"data")
    variables, before = lifecycle.environment(running), _pids(running)
    path = running.home / "credentials.json"
    path.write_text(
        json.dumps({name: each for name, each in json.loads(path.read_text()).items() if name != "prefect"})
    )
    assert {service.state for service in lifecycle.status(running)} == {"running", "unhealthy"}
    lifecycle.up(running, print)
    after = lifecycle.environment(running)
    assert {name for name in after if after[name] != variables[name]} == {"PREFECT_API_AUTH_STRING"}
    assert not set(before.values()) & set(_pids(running).values())
    assert {service.state for service in lifecycle.status(running)} == {"running"}
    assert _s3(running).get_object(Bucket="enginehouse", Key="earlier")["Body"].read() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_are_for_this_user_alone(running: Settings) -> None:
    for name in ("credentials.json", "environment.json"):
        assert stat.S_IMODE((running.home / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(running.home.stat().st_mode) == 0o700
    variables = lifecycle.environment(running)
    told = {running.home / name for name in ("credentials.json", "environment.json", "s3/s3.json")}
    for path in (each for each in running.home.rglob("*") if each.is_file() and each not in told):
        content = path.read_bytes()
        assert variables["AWS_SECRET_ACCESS_KEY"].encode() not in content, path
        assert variables["PREFECT_API_AUTH_STRING"].partition(":")[2].encode() not in content, path


def test_up_twice_is_once(running: Settings) -> None:
    before, lines = _pids(running), list[str]()
    lifecycle.up(running, lines.append)
    assert _pids(running) == before
    assert len(lines) == len(NAMES) and all(" was running: " in line for line in lines)


def test_flows_are_forms_and_what_users_change_stays(running: Settings) -> None:
    deployments = wanted_by(running).deployments
    for each in deployments:
        known = _prefect(running, f"/deployments/name/{each.full_name}")
        assert known["entrypoint"] == f"{each.module}.{each.flow}"
        assert known["work_pool_name"] == each.pool
        assert known["enforce_parameter_schema"] and known["description"]
        assert known["parameter_openapi_schema"]["properties"]
    rebuild = _prefect(running, f"/deployments/name/{deployments[0].full_name}")
    _prefect(running, f"/deployments/{rebuild['id']}", "PATCH", {"concurrency_limit": 2, "tags": ["mine"]})
    _prefect(running, "/work_pools/default", "PATCH", {"concurrency_limit": 1})

    (running.home / "services/registered").write_text("sha256:of-other-sources")
    lifecycle.up(running, print)
    assert _prefect(running, "/work_pools/default")["concurrency_limit"] == 1
    again = _prefect(running, f"/deployments/name/{deployments[0].full_name}")
    assert again["id"] == rebuild["id"] and again["tags"] == sorted([*rebuild["tags"], "mine"])
    assert again["global_concurrency_limit"]["limit"] == 2
    assert again["parameter_openapi_schema"] == rebuild["parameter_openapi_schema"]


def test_only_what_was_killed_comes_back(running: Settings) -> None:
    before = _pids(running)
    _kill(running, "s3", "worker-default")
    assert {s.name for s in lifecycle.status(running) if s.state == "stopped"} == {"s3", "worker-default"}
    lifecycle.up(running, print)
    after = _pids(running)
    assert {name for name in NAMES if after[name] != before[name]} == {"s3", "worker-default"}


def test_all_killed_and_two_ups_at_once(running: Settings) -> None:
    variables = lifecycle.environment(running)
    _s3(running).put_object(Bucket="enginehouse", Key="kept", Body=b"data")
    _kill_everything(running)
    assert {service.state for service in lifecycle.status(running)} == {"stopped"}

    lines: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lifecycle.up, running, lines.append) for _ in range(2)]:
            done.result()
    for kind in (" is running: ", " was running: "):
        assert sorted(line.partition(" ")[0] for line in lines if kind in line) == sorted(NAMES)
    assert lifecycle.environment(running) == variables
    assert _s3(running).get_object(Bucket="enginehouse", Key="kept")["Body"].read() == b"data"
    assert _prefect(running, "/work_pools/default")["name"] == "default"


def test_a_service_that_dies_has_its_reason_shown(running: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _kill(running, "node")
    with monkeypatch.context() as patch:
        patch.setenv("ENGINEHOUSE_REBUILDS", "none")  # which the node inherits, and refuses
        # What the killed node left must not make a dead node look alive.
        for process in background.members(running.home):
            if "tritonserver" in process.name():
                process.kill()
                process.wait(5)
        with pytest.raises(SettingsError) as failed:
            lifecycle.up(running, print)
    assert failed.value.code == "service-failed" and "node.log" in failed.value.hint
    assert "ENGINEHOUSE_REBUILDS: " in failed.value.message
    lifecycle.up(running, print)
    assert {service.state for service in lifecycle.status(running)} == {"running"}


@pytest.mark.slow
@pytest.mark.long
def test_a_service_that_hangs_is_replaced(running: Settings) -> None:
    before = _pids(running)
    assert before["s3"] is not None
    os.kill(before["s3"], signal.SIGSTOP)
    # Its threads stop one by one.
    wait(lambda: next(s.state for s in lifecycle.status(running) if s.name == "s3") == "unhealthy", "unhealthy s3")
    lifecycle.up(running, print)
    after = _pids(running)
    assert {name for name in NAMES if after[name] != before[name]} == {"s3"}


def test_down_leaves_no_process_and_all_data(running: Settings) -> None:
    credentials = (running.home / "credentials.json").read_text()
    _kill(running, "worker-default", "node")  # their children have nobody left but the marker
    assert any("tritonserver" in process.name() for process in background.members(running.home))
    lifecycle.down(running, print)
    assert background.members(running.home) == []
    assert {service.state for service in lifecycle.status(running)} == {"stopped"}
    assert (running.home / "credentials.json").read_text() == credentials
    assert (running.home / "prefect/prefect.db").exists() and any((running.home / "s3").iterdir())
    with pytest.raises(SettingsError) as none:
        lifecycle.environment(running)
    assert none.value.code == "stack-down" and "enginehouse up" in none.value.hint
    lifecycle.down(running, print)


def test_nothing_runs_where_nothing_was_started(fresh: Settings) -> None:
    assert [(s.name, s.state, s.pid) for s in lifecycle.status(fresh)] == [(name, "stopped", None) for name in NAMES]
    lifecycle.down(fresh, print)
    assert not fresh.home.exists()


def test_a_home_of_an_earlier_version_has_services_without_ports(fresh: Settings) -> None:
    fresh.home.mkdir()
    earlier = [name for name in PORT_NAMES if not name.startswith("gateway")]
    (fresh.home / "ports.json").write_text(json.dumps(dict(zip(earlier, free_ports(len(earlier)), strict=True))))
    assert [(s.name, s.state) for s in lifecycle.status(fresh)] == [(name, "stopped") for name in NAMES]
    lifecycle.down(fresh, print)
    assert set(Home(fresh.home).ports()) == set(PORT_NAMES)


def test_a_taken_port_is_named_with_its_owner(fresh: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        fresh.home.mkdir()
        (fresh.home / "ports.json").write_text(json.dumps({"prefect": port}))
        with pytest.raises(SettingsError) as taken:
            lifecycle.up(fresh, print)
    assert taken.value.code == "port-taken" and "ports.json" in taken.value.hint
    assert f"port {port}," in taken.value.message and f"process {os.getpid()} (" in taken.value.message
    assert background.members(fresh.home) == []


def test_too_little_disk_space_starts_nothing(fresh: Settings) -> None:
    with pytest.raises(SettingsError) as full:
        lifecycle.up(fresh, print, needed_free_bytes=1 << 60)
    assert full.value.code == "disk-space" and "ENGINEHOUSE_HOME" in full.value.hint
    assert background.members(fresh.home) == []
