"""`enginehouse deploy` on real Prefect servers: SQLite, and where they are installed Postgres with Redis."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.cli.runs_in_progress import runs_in_progress
from deployments.doctor import pools, prefect_server
from deployments.doctor.examine import examine
from deployments.prefect_server.desired import desired
from deployments.prefect_server.difference import ResourceChange, lines
from deployments.prefect_server.register import deploy
from flows import flow_runs
from flows.flow_runs import named_flow
from flows.names import FlowName
from flows.report import Report, StepReport
from flows.task_runs import run, step
from infra import settings
from infra.errors import GateRefused, SettingsError, StoreUnavailable
from infra.processes.sessions import free_ports, start_session, terminate
from infra.settings import CHECKOUT, Settings
from tasks.models.catalogue import load_catalogue
from tests.postgres_server import postgres_and_redis
from tests.waiting import wait, wait_for_server

pytestmark = pytest.mark.slow

NAMES = (
    "work pool default",
    "work pool build-cpu",
    "work pool build-sm100",
    "work pool build-sm90",
    "deployment rebuild/rebuild",
    "deployment rollback/rollback",
    "deployment approve/approve",
    "deployment collect_garbage/collect_garbage",
    "deployment watch_releases/watch_releases",
    "deployment finetuned/finetuned",
    "deployment reconcile/reconcile",
    "deployment build_engine/build-cpu",
    "deployment build_engine/build-sm100",
    "deployment build_engine/build-sm90",
    "automation release-watch",
    "automation finetuned",
    "automation lost-runs",
    "automation crashed-rebuilds",
)


class Server:
    """A Prefect server of this test, asked as anybody could."""

    def __init__(self, api: str) -> None:
        self.api = api

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.api + path, method=method, data=data, headers={"Content-Type": "application/json"}
        )
        until = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > until:  # SQLite is locked for a moment now and then
                    raise AssertionError(error.read()) from error
                time.sleep(0.2)

    def deployment(self, name: str) -> Any:
        return self("GET", f"/deployments/name/{name}")

    def automation(self, name: str) -> Any:
        (found,) = self("POST", "/automations/filter", {"automations": {"name": {"any_": [name]}}})
        return found


@contextmanager
def prefect(home: Path, environment: Mapping[str, str]) -> Generator[Server]:
    """A Prefect server with a home of its own."""
    (port,) = free_ports(1)
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    own = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    # A changed schedule is planned at the next turn, which is otherwise a minute later.
    own["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "1"
    process = start_session(command, log=home / "log", folder=home, environment={**foreign, **own, **environment})
    try:
        wait_for_server(process, f"http://127.0.0.1:{port}/api/health", home / "log", 60)
        yield Server(f"http://127.0.0.1:{port}/api")
    finally:
        terminate(process, 10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with prefect(tmp_path_factory.mktemp("prefect"), {}) as server:
        yield server


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, of two architectures."""
    folder = tmp_path_factory.mktemp("catalogue")
    document = yaml.safe_load((CHECKOUT / "deployments/models/llama3-8b-instruct.yaml").read_text())
    for name, gpu, arch in (("hopper", "NVIDIA H200", "sm90"), ("blackwell", "NVIDIA B200", "sm100")):
        document |= {"name": name, "updates": {"policy": "stable"}}
        document["recipe"]["runtime"] |= {"gpu": gpu, "arch": arch}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture
def two_models(catalogue: Path) -> Settings:
    return replace(settings.load(), catalogue=catalogue)


def go(server: Server, two_models: Settings, *, dry_run: bool = False) -> dict[str, ResourceChange]:
    """Deploy; the changes by name, as they were shown before anything was made."""
    shown: list[ResourceChange] = []
    wanted = desired(two_models, load_catalogue(two_models.catalogue).models.values())
    with temporary_settings(updates={PREFECT_API_URL: server.api}):
        changes = asyncio.run(deploy(wanted, shown.append, dry_run=dry_run))
    assert list(changes) == shown
    return {change.resource.key: change for change in changes}


def changed(changes: dict[str, ResourceChange]) -> dict[str, Any]:
    return {name: change.new for name, change in changes.items() if change.action != "unchanged"}


def kept(changes: dict[str, ResourceChange]) -> dict[str, Any]:
    return {name: {each.name: each.old for each in change.kept} for name, change in changes.items() if change.kept}


def planned(server: Server, deployment: str, time_of_day: str) -> set[str]:
    """The runs that the server plans of a deployment, once there is one at that time (a regular expression)."""
    ids = set[str]()

    def is_planned() -> bool:
        runs = server("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
        ids.clear()
        ids.update(run["id"] for run in runs)
        return any(re.fullmatch(time_of_day, run["expected_start_time"][10:19]) for run in runs)

    wait(is_planned, f"planned run at {time_of_day}", every_s=0.5)
    return ids


def check_deploy(server: Server, two_models: Settings) -> None:
    """Deploy, deploy again, and deploy a changed schedule."""
    assert {change.action for change in go(server, two_models, dry_run=True).values()} == {"created"}
    assert server("POST", "/deployments/filter", {}) == []

    first = go(server, two_models)
    assert tuple(first) == NAMES and {change.action for change in first.values()} == {"created"}
    watch = server.deployment("watch_releases/watch_releases")
    assert [schedule["schedule"]["cron"] for schedule in watch["schedules"]] == ["17 * * * *"]
    assert watch["global_concurrency_limit"]["limit"] == 1 and watch["work_pool_name"] == "default"
    assert watch["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    rebuild = server.deployment("rebuild/rebuild")
    assert rebuild["global_concurrency_limit"]["limit"] == 4 and rebuild["enforce_parameter_schema"]
    assert rebuild["entrypoint"] == "flows.rebuild.rebuild"
    form = rebuild["parameter_openapi_schema"]["properties"]
    assert {"model", "runtime", "recipe", "targets", "refresh"} <= set(form)
    # The UI has a field for each, with a description, and offers what the catalogue has.
    assert all("type" in field and field["description"] for field in form.values())
    offered = rebuild["parameter_openapi_schema"]["definitions"]
    assert offered["model"]["enum"] == ["blackwell", "hopper"] and offered["target"]["enum"] == ["h200"]
    assert rebuild["tags"] == ["enginehouse", "kind:rebuild"]
    assert "(../../artifacts/key/fleet)" in rebuild["description"]

    assert changed(go(server, two_models)) == {}
    before = planned(server, watch["id"], "T..:17:00")

    other = replace(two_models, watch_schedule="5 4 * * *")
    assert (
        changed(go(server, other, dry_run=True))
        == changed(go(server, other))
        == {"deployment watch_releases/watch_releases": {"schedule": "5 4 * * *"}}
    )
    again = server.deployment("watch_releases/watch_releases")
    assert [schedule["schedule"]["cron"] for schedule in again["schedules"]] == ["5 4 * * *"]
    assert again["id"] == watch["id"]
    # The server follows: it plans runs at the new time, and those that it had planned are gone. (A turn of its
    # scheduler that read the old schedule just before the change may still plan others.)
    assert not before & planned(server, watch["id"], "T04:05:00")
    assert changed(go(server, other)) == {}
    assert list(changed(go(server, two_models))) == ["deployment watch_releases/watch_releases"]


def test_twice_is_once_and_a_changed_schedule_is_one_change(server: Server, two_models: Settings) -> None:
    check_deploy(server, two_models)


def test_a_form_offers_the_catalogue_and_the_api_takes_any_name(
    server: Server, two_models: Settings, tmp_path: Path
) -> None:
    """A file may be newer than the last deploy, and the model of an old event may have none any more."""
    go(server, two_models)
    rebuild = server.deployment("rebuild/rebuild")["id"]
    run = server(
        "POST", f"/deployments/{rebuild}/create_flow_run", {"parameters": {"model": "newer", "targets": ["elsewhere"]}}
    )
    assert run["parameters"] == {"model": "newer", "targets": ["elsewhere"]}
    assert set(run["tags"]) == {"enginehouse", "kind:rebuild"}
    server("DELETE", f"/flow_runs/{run['id']}")
    for wrong in ({}, {"model": 7}, {"model": "hopper", "targets": [7]}, {"model": "hopper", "refresh": "everything"}):
        with pytest.raises(AssertionError, match="Validation failed"):
            server("POST", f"/deployments/{rebuild}/create_flow_run", {"parameters": wrong})

    shutil.copytree(two_models.catalogue, tmp_path / "models")
    one = replace(two_models, catalogue=tmp_path / "models")
    text = (one.catalogue / "hopper.yaml").read_text()
    (one.catalogue / "newer.yaml").write_text(text.replace("name: hopper", "name: newer"))
    (one.catalogue / "blackwell.yaml").unlink()
    shown = go(server, one)
    told = "\n".join(lines(shown["deployment rebuild/rebuild"]))
    assert "definitions.model.enum: with newer, without blackwell" in told
    assert set(changed(shown)) == {f"deployment {name}" for name in _CHOOSING}
    assert set(changed(go(server, two_models))) == {f"deployment {name}" for name in _CHOOSING}


_CHOOSING = ("rebuild/rebuild", "rollback/rollback", "approve/approve", "watch_releases/watch_releases")


def test_prefect_deploy_makes_the_same_deployments(server: Server, two_models: Settings, tmp_path: Path) -> None:
    go(server, two_models)
    for name in (*_CHOOSING, "build_engine/build-sm90", "reconcile/reconcile"):
        server("DELETE", f"/deployments/{server.deployment(name)['id']}")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_API_URL": server.api,
        "PREFECT_HOME": str(tmp_path / "home"),
        "DO_NOT_TRACK": "1",
        "ENGINEHOUSE_CATALOGUE": str(two_models.catalogue),
    }

    def run(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("deployments.cli.main", "deploy", "--prefect-yaml", "prefect.yaml")
    run("prefect", "deploy", "--all")
    # All but what the forms offer, for which Prefect's file has no place.
    differing = changed(go(server, two_models))
    automations = {name: differing.pop(name) for name in [*differing] if name.startswith("automation")}
    assert {name: set(fields) for name, fields in differing.items()} == {
        f"deployment {name}": {"parameter_openapi_schema"} for name in _CHOOSING
    }
    # They ran deployments that are others now.
    assert set(automations) == {"automation release-watch", "automation crashed-rebuilds"}
    assert changed(go(server, two_models)) == {}


# Prefect's client leaves sockets of the flow's events and logs to the end of the process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_refusal_is_a_state_and_no_crash(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []

    async def show(*, again: bool) -> None:
        shown.append(again)

    monkeypatch.setattr(flow_runs, "show_fleet", show)
    tries: list[int] = []

    @step("fetch", "fetch")
    async def fetch() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise StoreUnavailable("away for a moment")

    @step("validate", "validate")
    async def validate() -> None:
        raise GateRefused("count-in-french: too short", hint="the live release was not touched")

    @named_flow(FlowName("judge"), "judge {model}", fleet="shown")
    async def judge(model: str, targets: tuple[str, ...] = ()) -> None:
        report = Report(model, on_step=steps.append)
        await run(report, fetch)
        await run(report, validate)

    steps: list[StepReport] = []
    with temporary_settings(updates={PREFECT_API_URL: server.api}), pytest.raises(GateRefused) as caught:
        asyncio.run(judge("tiny", ("east",)))
    gc.collect()
    assert caught.value.hint == "the live release was not touched" and caught.value.exit_code == 3
    assert [(each.name, each.state) for each in steps] == [("fetch", "Completed"), ("validate", "Refused")]
    assert len(tries) == 2 and shown == [False]

    (found,) = server("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["judge"]}}})
    assert (found["name"], found["state_type"], found["state_name"]) == ("judge tiny", "FAILED", "Refused")
    assert found["state"]["message"] == (
        "count-in-french: too short [gate-refused]\n\nhint: the live release was not touched"
    )
    assert set(found["tags"]) == {"enginehouse", "kind:judge", "model:tiny", "target:east"}

    def logged() -> str:
        about = {"logs": {"flow_run_id": {"any_": [found["id"]]}}, "limit": 200}
        return "\n".join(each["message"] for each in server("POST", "/logs/filter", about))

    wait(lambda: "Finished in state Refused" in logged(), "end of the log", 20, every_s=0.2)
    assert "Traceback" not in logged()


def test_runs_in_progress_are_those_that_have_not_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", server.api)
    flow = server("POST", "/flows/", {"name": "rebuild"})["id"]
    run = {"flow_id": flow, "parameters": {"model": "tiny"}, "state": {"type": "RUNNING", "name": "Running"}}
    id = server("POST", "/flow_runs/", run)["id"]
    server("POST", "/flow_runs/", {**run, "state": {"type": "COMPLETED"}})
    found = runs_in_progress(30)
    assert found is not None
    assert [(each.id, each.flow, each.model, each.state) for each in found] == [(id, "rebuild", "tiny", "Running")]
    server("DELETE", f"/flow_runs/{id}")
    assert runs_in_progress(30) == ()


@pytest.mark.long
def test_the_same_on_postgres_with_redis(tmp_path_factory: pytest.TempPathFactory, two_models: Settings) -> None:
    with postgres_and_redis() as database, prefect(tmp_path_factory.mktemp("prefect"), database) as server:
        check_deploy(server, two_models)


def test_the_doctor_sees_what_deploy_makes(
    server: Server, two_models: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.api)
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def wrong() -> set[str]:
        examined = examine((prefect_server.CHECK, pools.CHECK), two_models)
        return {finding.code for each in examined for finding in each.findings if finding.state == "wrong"}

    go(server, two_models)
    assert wrong() == {"pool-without-worker"}
    server("DELETE", f"/deployments/{server.deployment('rollback/rollback')['id']}")
    server("DELETE", "/work_pools/build-sm100")
    server("PATCH", "/work_pools/default", {"is_paused": True})
    assert wrong() == {"pool-without-worker", "deployment-missing", "pool-missing", "pool-paused"}
    go(server, two_models)
    server("PATCH", "/work_pools/default", {"is_paused": False})
    assert wrong() == {"pool-without-worker"}


def test_what_people_change_stays_until_what_is_wanted_changes(server: Server, two_models: Settings) -> None:
    go(server, two_models)
    rebuild, watch = server.deployment("rebuild/rebuild"), server.deployment("watch_releases/watch_releases")
    (schedule,) = watch["schedules"]
    server(
        "PATCH",
        f"/deployments/{rebuild['id']}",
        {"tags": [*rebuild["tags"], "mine"], "concurrency_limit": 9, "paused": True},
    )
    server("PATCH", "/work_pools/build-sm90", {"concurrency_limit": 3, "description": "two racks"})
    own = {"schedule": {"cron": "0 0 * * *", "timezone": "Europe/Berlin"}, "active": False}
    server("PATCH", f"/deployments/{watch['id']}/schedules/{schedule['id']}", own)
    server("POST", f"/deployments/{watch['id']}/schedules", [{"schedule": {"interval": 86400.0}, "slug": "daily"}])
    automation = server.automation("release-watch")
    server("PATCH", f"/automations/{automation['id']}", {"enabled": False})

    again = go(server, two_models)
    assert changed(again) == {}
    assert kept(again) == {
        "work pool build-sm90": {"limit": 3},
        "deployment rebuild/rebuild": {"limit": 9},
        "deployment watch_releases/watch_releases": {"schedule": "0 0 * * *"},
    }
    assert "limit: stays 9" in "\n".join(lines(again["deployment rebuild/rebuild"]))

    # What is wanted now is another thing than at the last deploy: that is a decision, and the newer one.
    other = replace(two_models, pool_limits=(("build-sm90", 2),), watch_schedule="")
    assert changed(go(server, other)) == {
        "work pool build-sm90": {"limit": 2},
        "deployment watch_releases/watch_releases": {"schedule": ""},
    }
    pool = server("GET", "/work_pools/build-sm90")
    assert pool["concurrency_limit"] == 2 and pool["description"] == "two racks"
    assert [each["slug"] for each in server.deployment("watch_releases/watch_releases")["schedules"]] == ["daily"]
    known = server.deployment("rebuild/rebuild")
    assert (
        set(known["tags"]) == {"enginehouse", "kind:rebuild", "mine"}
        and known["paused"]
        and known["global_concurrency_limit"]["limit"] == 9
    )
    assert server("GET", f"/automations/{automation['id']}")["enabled"] is False


def test_what_was_deleted_or_altered_beyond_use_comes_back(server: Server, two_models: Settings) -> None:
    go(server, two_models)
    rollback, watch = server.deployment("rollback/rollback"), server.deployment("watch_releases/watch_releases")
    server("PATCH", f"/deployments/{rollback['id']}", {"entrypoint": "elsewhere.rollback"})
    server("DELETE", "/work_pools/build-sm100")
    server("DELETE", f"/deployments/{watch['id']}")
    assert {name: change.action for name, change in go(server, two_models).items() if change.action != "unchanged"} == {
        "work pool build-sm100": "created",
        # Its pool was deleted below it.
        "deployment build_engine/build-sm100": "changed",
        "deployment rollback/rollback": "changed",
        "deployment watch_releases/watch_releases": "created",
        # It ran a deployment that is another one now.
        "automation release-watch": "changed",
    }
    assert changed(go(server, two_models)) == {}
    automation = server.automation("release-watch")
    known = server.deployment("watch_releases/watch_releases")
    assert automation["actions"][0]["deployment_id"] == known["id"] != watch["id"]


def test_the_command(server: Server, two_models: Settings) -> None:
    go(server, two_models)
    rebuild = server.deployment("rebuild/rebuild")
    server("PATCH", f"/deployments/{rebuild['id']}", {"concurrency_limit": 9})

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli.main", "deploy", *arguments],
            env={
                **os.environ,
                "PREFECT_API_URL": server.api,
                **environment,
                "ENGINEHOUSE_CATALOGUE": str(two_models.catalogue),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("--dry-run", "--json", ENGINEHOUSE_REBUILDS="6")
    assert done.returncode == 0, done.stderr
    differing = {each["name"]: each for each in json.loads(done.stdout) if each["action"] != "unchanged"}
    assert differing == {
        "rebuild/rebuild": {
            "kind": "deployment",
            "name": "rebuild/rebuild",
            "action": "changed",
            "fields": {"limit": {"old": 9, "new": 6}},
            "kept": {},
        }
    }
    assert "limit: 9 → 6" in done.stderr and "1 changed" in done.stderr
    refused = run(PREFECT_API_URL="http://127.0.0.1:9/api")
    assert refused.returncode == 2 and "[prefect-failed]" in refused.stderr and "Traceback" not in refused.stderr


@dataclass
class Listener:
    """An HTTP server on loopback that keeps what is posted to it."""

    heard: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    url: str = ""


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def test_people_are_notified_of_failures_by_a_block_of_the_server(
    server: Server, two_models: Settings, listener: Listener
) -> None:
    notifying = replace(two_models, notify="custom-webhook/ops")
    with pytest.raises(SettingsError) as missing:
        go(server, notifying)
    assert missing.value.code == "block-missing" and "custom-webhook/ops" in missing.value.message

    async def make_block() -> None:
        body: Any = {"subject": "{{subject}}", "body": "{{body}}"}
        block: Any = cast(Any, CustomWebhookNotificationBlock)(name="ops", url=listener.url, json_data=body)
        await block.save("ops", overwrite=True)

    with temporary_settings(updates={PREFECT_API_URL: server.api}):
        asyncio.run(make_block())
    assert "automation notify" in changed(go(server, notifying))
    assert changed(go(server, notifying)) == {}

    def end(flow: str, state: str, message: str, name: str = "") -> None:
        flow_id = server("POST", "/flows/", {"name": flow})["id"]
        run = server("POST", "/flow_runs/", {"flow_id": flow_id, "name": f"{flow} tiny", "state": {"type": "RUNNING"}})
        ended = {"type": state, "name": name or state.capitalize(), "message": message}
        server("POST", f"/flow_runs/{run['id']}/set_state", {"state": ended, "force": True})

    end("rebuild", "COMPLETED", "done")
    end("somebody-elses", "FAILED", "not ours")
    end("rebuild", "FAILED", "count-in-french: too short [gate-refused]", name="Refused")
    wait(lambda: bool(listener.heard), "notification", 60, every_s=0.2)
    (heard,) = listener.heard
    assert heard["subject"] == "Enginehouse: rebuild tiny: Refused" and "[gate-refused]" in heard["body"]
