"""`enginehouse logs` against a double of Prefect's API that refuses what the real one refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import pytest

from deployments.cli import log_commands, rebuild_runs
from deployments.cli.columns import Style
from deployments.cli.log_commands import told
from deployments.cli.main import main
from deployments.cli.rebuild_runs import FlowRun
from deployments.cli.run_log import Line
from tests.tasks.sources.loopback import Loopback

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
RAISED = "Flow run encountered an exception: "
"""How the message of a state begins whose flow raised an error."""
_LIMIT = 200
_KEYS = {
    "/api/flow_runs/filter": {"flows", "flow_runs", "sort", "limit", "offset"},
    "/api/task_runs/filter": {"task_runs", "limit", "offset"},
    "/api/logs/filter": {"logs", "sort", "limit", "offset"},
}


@dataclass
class Prefect:
    """What the server has, as its API tells it."""

    runs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tasks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    logs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    credential: str = ""
    asked: list[str] = field(default_factory=list[str])
    """The paths of all requests."""
    before: Callable[[str], int] = lambda path: 200
    """Called with the path of each request; another status than 200 is the answer, and 0 is none."""

    def run(self, name: str, minute: int, state: str = "COMPLETED", message: str = "", **more: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "id": str(uuid4()),
            "flow": "rebuild",
            "name": name,
            "tags": [],
            "parameters": {"model": name.rpartition(" ")[2]},
            "state_type": state,
            "state_name": state.capitalize(),
            "state": {"type": state, "message": message or None},
            "expected_start_time": (NOON + timedelta(minutes=minute)).isoformat(),
            **more,
        }
        self.runs.append(made)
        return made

    def task(self, run: dict[str, Any], name: str) -> dict[str, Any]:
        self.tasks.append({"id": str(uuid4()), "name": name, "flow_run_id": run["id"]})
        return self.tasks[-1]

    def say(
        self, run: dict[str, Any], message: str, second: float, task: dict[str, Any] | None = None, level: int = 20
    ) -> None:
        self.logs.append(
            {
                "id": str(uuid4()),
                "name": "prefect",
                "level": level,
                "message": message,
                "timestamp": (NOON + timedelta(seconds=second)).isoformat(),
                "flow_run_id": run["id"],
                "task_run_id": None if task is None else task["id"],
            }
        )

    def found(self, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        if path == "/api/flow_runs/filter":
            assert asked["sort"] == "EXPECTED_START_TIME_DESC"
            (flow,), wanted = asked["flows"]["name"]["any_"], asked["flow_runs"]
            kept = [run for run in self.runs if run["flow"] == flow]
            if "state" in wanted:
                kept = [run for run in kept if run["state_type"] in wanted["state"]["type"]["any_"]]
            if "name" in wanted:
                kept = [run for run in kept if run["name"] in wanted["name"]["any_"]]
            return sorted(kept, key=lambda run: run["expected_start_time"], reverse=True)
        if path == "/api/task_runs/filter":
            return [task for task in self.tasks if task["flow_run_id"] in asked["task_runs"]["flow_run_id"]["any_"]]
        assert asked["sort"] == "TIMESTAMP_ASC"
        wanted = asked["logs"]
        after = datetime.fromisoformat(wanted.get("timestamp", {}).get("after_", "2000-01-01T00:00:00+00:00"))
        kept = [line for line in self.logs if line["flow_run_id"] in wanted["flow_run_id"]["any_"]]
        kept = [line for line in kept if datetime.fromisoformat(line["timestamp"]) >= after]
        return sorted(kept, key=lambda line: line["timestamp"])


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefect]:
    known = Prefect()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fits = self.path in _KEYS and asked.keys() <= _KEYS[self.path] and 0 <= asked["limit"] <= _LIMIT
            start = asked.get("offset", 0)
            self.answer(lambda: known.found(self.path, asked)[start : start + asked["limit"]] if fits else 422)

        def do_GET(self) -> None:
            id = self.path.removeprefix("/api/flow_runs/")
            self.answer(lambda: next((run for run in known.runs if run["id"] == id), 404))

        def answer(self, what: Callable[[], Any]) -> None:
            known.asked.append(self.path)
            status = known.before(self.path)
            if self.headers.get("Authorization", "") != known.credential:
                status = 401
            if not status:
                self.close_connection = True
                return
            found = what() if status == 200 else status
            body = json.dumps({"detail": "no"} if isinstance(found, int) else found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "ENGINEHOUSE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(log_commands, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(log_commands, "_SETTLED_SECONDS", 0.05)
    monkeypatch.setattr(log_commands, "_AWAY_SECONDS", 20.0)
    with Loopback(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api/")
        yield known


Logs = Callable[..., tuple[int, str, str]]


@pytest.fixture
def logs(prefect: Prefect, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Logs:
    """Runs the command; returns its exit code, output without times and spaces, and errors."""
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["logs", *arguments])
        printed = capsys.readouterr()
        words = [" ".join(re.sub(r"^\d\d:\d\d:\d\d", "", line).split()) for line in printed.out.splitlines()]
        return code, "\n".join(words), printed.err

    return run


def messages(out: str) -> list[str]:
    return [json.loads(line)["message"] for line in out.splitlines()]


def test_the_newest_rebuild(prefect: Prefect, logs: Logs) -> None:
    old, new = prefect.run("rebuild tiny", 1), prefect.run("rebuild tiny", 2)
    other = prefect.run("rebuild other", 3)
    fetch, roll_out = prefect.task(new, "fetch hf://org/tiny"), prefect.task(new, "roll out tiny to local")
    for run in (old, other):
        prefect.say(run, "of another run", 0)
    prefect.say(new, "fetch tiny begins", 1, fetch)
    prefect.say(new, "Beginning flow run", 0)
    prefect.say(new, "one: loading", 3, roll_out, 30)
    prefect.say(new, "Encountered exception:\nTraceback", 4, None, 40)
    code, out, err = logs("tiny")
    assert code == 0 and out.splitlines() == [
        "Beginning flow run",
        "fetch fetch tiny begins",
        "roll_out warning: one: loading",
        "error: Encountered exception:",
        "Traceback",
    ]
    assert err == f"rebuild tiny: Completed, run {new['id']}\n"
    assert logs("tiny", "--run", old["id"])[1] == logs("tiny", "--run", old["id"][:8])[1] == "of another run"
    code, out, err = logs("tiny", "--step", "validate")
    assert (code, out) == (0, "") and err.endswith("\nit has said nothing in step validate\n")


def test_one_that_runs_is_the_one_that_is_meant(prefect: Prefect, logs: Logs) -> None:
    prefect.run("rebuild tiny", 3)
    prefect.run("mega-ibex", 2, "SCHEDULED", parameters={"model": "tiny"})
    running = prefect.run("quick-fox", 1, "RUNNING", parameters={"model": "tiny"})
    prefect.run("slow-fox", 1, "RUNNING", parameters={"model": "other"})
    prefect.say(running, "it runs", 0)
    assert logs("tiny")[1] == "it runs"


def test_a_build_is_read_where_it_ran(prefect: Prefect, logs: Logs) -> None:
    build = prefect.run("build tiny 0123", 1, flow="build_engine", parameters={"model": {"name": "tiny"}})
    parent = prefect.run("rebuild tiny", 1, tags=[f"awaits:{build['id']}", "other"])
    task = prefect.task(build, "build tiny")
    prefect.say(parent, "started the build", 1)
    prefect.say(build, "layer 1 of 2", 2, task)
    prefect.say(parent, "build: layer 1 of 2", 4)
    prefect.say(build, "layer 2 of 2", 5, task)
    prefect.say(parent, "after the build", 6)
    assert logs("tiny")[1].splitlines() == [
        "started the build",
        "build layer 1 of 2",
        "build layer 2 of 2",
        "after the build",
    ]
    code, out, _ = logs("tiny", "--step", "build", "--json")
    assert code == 0 and messages(out) == ["layer 1 of 2", "layer 2 of 2"]
    assert json.loads(out.splitlines()[0]) == {
        "time": "2026-11-30T12:00:02+00:00",
        "level": "info",
        "step": "build",
        "message": "layer 1 of 2",
        "run": build["id"],
    }
    assert messages(logs("tiny", "--run", build["id"], "--json")[1]) == ["layer 1 of 2", "layer 2 of 2"]


def test_a_long_log_is_read_page_by_page(prefect: Prefect, logs: Logs) -> None:
    run = prefect.run("rebuild tiny", 1)
    for number in range(2 * _LIMIT + 50):
        prefect.say(run, str(number), number / 100)

    def another_comes_first(path: str) -> int:
        """As a line does that comes late, between two pages."""
        if path == "/api/logs/filter" and prefect.asked.count(path) == 2:
            prefect.say(run, "late", 0)
        return 200

    prefect.before = another_comes_first
    found = messages(logs("tiny", "--json")[1])
    assert [text for text in found if text != "late"] == [str(number) for number in range(2 * _LIMIT + 50)]
    assert prefect.asked.count("/api/logs/filter") == 3


def test_following_ends_with_the_run_and_as_it_did(prefect: Prefect, logs: Logs) -> None:
    run = prefect.run("rebuild tiny", 1, "RUNNING")
    fetch = prefect.task(run, "fetch hf://org/tiny")
    prefect.say(run, "first", 10, fetch)
    build = prefect.run("build tiny 0123", 1, "RUNNING", flow="build_engine")
    late = {"id": str(uuid4()), "name": "build tiny", "flow_run_id": build["id"]}

    broken: set[str] = set()

    def goes_on(path: str) -> int:
        look = prefect.asked.count(f"/api/flow_runs/{run['id']}")
        if path != f"/api/flow_runs/{run['id']}":
            breaks = look == 12 and path not in broken  # in the middle of what is read at once
            broken.update([path] if breaks else [])
            return 0 if breaks else 200
        if look == 2:
            prefect.say(run, "came late", 8, fetch)
        if look == 4:
            run["tags"] = [f"awaits:{build['id']}"]
            prefect.say(build, "an old line of a build that was attached to", -500)
            prefect.say(build, "of a task that nobody knows yet", 20, late)
        if look == 6:
            prefect.tasks.append(late)
        if look in (8, 9, 10):
            return 503 if look == 9 else 0
        if look == 20:
            raised = f"{RAISED}GateRefused: worse [gate-refused]"
            run.update(state_type="FAILED", state_name="Failed", state={"message": raised})
        if look == 21:
            prefect.say(run, "sent after the end", 30)
        return 200

    prefect.before = goes_on
    code, out, err = logs("tiny", "--follow")
    assert out.splitlines() == [
        "fetch first",
        "fetch came late",
        "an old line of a build that was attached to",
        "build of a task that nobody knows yet",
        "sent after the end",
    ]
    assert code == 3 and err.endswith("\nerror: worse [gate-refused]\n")
    assert err.count("the log goes on when it does") == err.count("the Prefect server answers again") >= 1
    code, out, _ = logs("tiny", "--follow", "--json", "--step", "fetch")
    assert code == 3 and messages("\n".join(out.splitlines()[:-1])) == ["came late", "first"]
    assert json.loads(out.splitlines()[-1]) == {"error": {"code": "gate-refused", "message": "worse", "hint": ""}}


def test_a_server_that_stays_away_ends_it(prefect: Prefect, logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prefect.run("rebuild tiny", 1, "RUNNING")
    prefect.say(run, "first", 0)
    prefect.before = lambda path: 200 if prefect.asked.count("/api/logs/filter") < 3 else 503
    monkeypatch.setattr(log_commands, "_AWAY_SECONDS", 0.1)
    code, out, err = logs("tiny", "--follow")
    assert code == 2 and out == "first" and "answers 503 [prefect-failed]" in err


def ended(state: str, name: str = "", message: str = "") -> FlowRun:
    return FlowRun.model_validate(
        {
            "id": uuid4(),
            "name": "rebuild tiny",
            "parameters": {"model": "tiny"},
            "state_type": state,
            "state_name": name or state.capitalize(),
            "state": {"message": message},
        }
    )


@pytest.mark.parametrize(
    ("run", "code", "exit_code", "message"),
    [
        (
            ended("FAILED", message="Flow run encountered an exception: SpecError: a\nb [spec-invalid]"),
            "spec-invalid",
            2,
            "a\nb",
        ),
        (ended("FAILED", message=f"{RAISED}ValueError: 1"), "run-failed", 1, "ValueError: 1"),
        (ended("FAILED", "Refused", "it is worse [gate-refused]\n\nhint: look"), "gate-refused", 3, "it is worse"),
        (ended("FAILED", "Undecided", "who knows [gate-undecided]\n\nhint: "), "gate-undecided", 4, "who knows"),
        (ended("FAILED", message="Memory: [a] [step-timeout]\n\nhint: "), "step-timeout", 1, "Memory: [a]"),
        (ended("COMPLETED", "Waiting", "release 2 waits"), "approval-needed", 4, "release 2 waits"),
        (ended("CRASHED", message="its worker is gone"), "run-failed", 1, "ended as Crashed: its worker is gone"),
        (ended("CANCELLED"), "run-failed", 1, "ended as Cancelled"),
    ],
)
def test_how_a_run_ended(run: FlowRun, code: str, exit_code: int, message: str) -> None:
    error = run.error
    assert error is not None and (error.code, error.exit_code) == (code, exit_code)
    assert error.message.endswith(message) and "\n\nhint" not in error.message
    assert ended("COMPLETED").error is None


def test_errors(prefect: Prefect, logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    other = prefect.run("rebuild other", 1)
    for arguments in (
        ("smollm2-135",),
        ("tiny", "--run", str(UUID(int=1))),
        ("tiny", "--run", "0123"),
        ("tiny", "--run", other["id"]),
    ):
        code, out, err = logs(*arguments)
        assert (code, out) == (2, "") and "[run-missing]" in err and "\n\nhint: " in err, err
    assert "did you mean 'smollm2-135m'?" in logs("smollm2-135")[2]
    assert "did you mean 'build'?" in logs("tiny", "--step", "buidl")[2]
    assert json.loads(logs("nothing", "--json")[1])["error"]["code"] == "run-missing"

    prefect.credential = "Basic YWRtaW46c2VjcmV0"
    assert "does not let you in: it answers 401 [prefect-failed]" in logs("other")[2]
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:secret")
    assert logs("other")[0] == 0
    monkeypatch.setattr(rebuild_runs, "PAGE", _LIMIT + 1)  # as a server would that lets nobody ask for so many
    assert "answers 422 [prefect-failed]" in logs("other")[2]

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for follow in ((), ("--follow",)):
        code, out, err = logs("other", *follow)
        assert code == 2 and "does not answer" in err and "[prefect-failed]" in err and len(err.splitlines()) == 3
    monkeypatch.delenv("PREFECT_API_URL")
    assert "[prefect-missing]" in logs("other")[2]


def test_colours_are_for_terminals_that_want_them() -> None:
    about = {"id": uuid4(), "timestamp": NOON, "flow_run_id": uuid4()}
    line = Line.model_validate({**about, "level": 40, "message": "\x1b[32mgreen\x1b[0m\x07\nmore"})
    plain, more = told(line, "build", Style())
    assert plain[8:] == "  build          error: green" and more == f"{' ' * 25}more"
    coloured, _ = told(line, "build", Style(colour=True))
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain != coloured and "\x1b[31m" in coloured
