"""`enginehouse status`, as a person types it: its words by snapshots, the rest on a real store."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import yaml

from deployments.cli import runs_in_progress as runs_module
from deployments.cli.columns import Style, print_fitted
from deployments.cli.fleet_text import fleet_lines
from deployments.cli.main import main
from deployments.cli.people import age, short, size
from deployments.cli.runs_in_progress import runs_in_progress
from infra.settings import CHECKOUT
from tasks.explain.fleet_view import Fleet, ModelRow, Newest, NodeRow, Run
from tasks.explain.staleness import Stale

if TYPE_CHECKING:
    from tests.fleet import Fleet as Store

SNAPSHOTS = Path(__file__).parent / "snapshots"

LIVE = ModelRow(
    model="smollm2-135m",
    target="local",
    labels={"team": "search"},
    file="there",
    release=7,
    kind="llamacpp",
    runtime="",
    age_s=3 * 86400.0,
    verdict="passed",
    watch="",
    newest=None,
    nodes_ready=2,
    nodes=2,
    stale=(),
    runs=(),
    alerts=(),
)
RUN = Run("1f0c2f6e-33aa-4d2b-9d0f-000000000001", "rebuild", "llama3-8b-instruct", "Running", 190.0)
TROUBLED = replace(
    LIVE,
    model="llama3-8b-instruct-of-a-team-that-likes-long-names",
    labels={},
    kind="trt-engine",
    runtime="1.1.0",
    nodes_ready=1,
    newest=Newest(
        8, "refused", 310.0, f"count-in-french was answered with {'a' * 64}, which matches no expectation of it"
    ),
    stale=(Stale("file", "max_batch_size: 4 → 8"), Stale("version", "TensorRT-LLM 1.2.1 is accepted")),
    runs=(RUN,),
    alerts=("node two: no \x1b[31mmemory", "it fails its watch"),
)
OTHERS = (
    replace(LIVE, model="new", release=None, age_s=None, verdict="", nodes_ready=0),
    replace(LIVE, model="gone", target="east", file="missing", nodes_ready=0, nodes=0, watch="watching"),
    replace(LIVE, model="spare", target="", release=None, age_s=None, verdict="", nodes_ready=0, nodes=0),
)
FLEET = Fleet(
    models=(LIVE, TROUBLED, *OTHERS),
    nodes=(NodeRow("one", "local", "alive", 0.0), NodeRow("two", "local", "silent", 320.0)),
    broken={"zz": ("zz.yaml:1: is empty",)},
    runs=(RUN,),
)


@pytest.mark.parametrize(
    ("name", "style", "long"),
    [
        ("fleet.txt", Style(), False),
        ("fleet-colour.txt", Style(80, colour=True), False),
        ("fleet-long.txt", Style(120), True),
    ],
)
def test_the_words(name: str, style: Style, long: bool) -> None:
    text = "\n".join(fleet_lines(FLEET, style, long=long)) + "\n"
    _compare(name, text)
    plain = re.sub("\x1b\\[\\d+m", "", text)
    assert "\x1b" not in plain and (style.colour == (plain != text))
    assert long or max(map(len, plain.splitlines())) <= style.width


def test_json() -> None:
    _compare("fleet.json", json.dumps(FLEET.document(), indent=1, ensure_ascii=False) + "\n")


def _compare(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        SNAPSHOTS.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    assert Style.of_stdout() == Style(80, colour=True, is_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style.of_stdout().colour and Style.of_stdout().is_terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert Style.of_stdout() == Style(80)


def test_ages_sizes_and_references_as_people_say_them() -> None:
    ages = {0: "0 s", 59.9: "59 s", 60: "1 min", 3599: "59 min", 7200: "2 h", 172799: "47 h", 172800: "2 d", None: "-"}
    assert {seconds: age(seconds) for seconds in ages} == ages
    sizes = {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 98356429: "93.8 MiB", 140 * 2**30: "140.0 GiB"}
    assert {number: size(number) for number in sizes} == sizes
    assert short(f"engine/{'0' * 64} and {'a' * 63}") == f"engine/{'0' * 12} and {'a' * 63}"


def test_lines_are_broken_at_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"│  └─ engine {'a' * 64}  2026-11-30 08:00  build on {'h' * 30}  1f0c2f6e-33aa-4d2b-9d0f-000000000001  it"
    print_fitted([line], long=False)
    monkeypatch.setenv("COLUMNS", "80")
    whole = f"│  └─ engine {'a' * 12}  2026-11-30 08:00  build on {'h' * 30}  1f0c2f6e  it\n"
    assert capsys.readouterr().out == whole
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_fitted([line], long=False)
    first, second = capsys.readouterr().out.splitlines()
    assert max(len(first), len(second)) <= 80 and second.startswith("│         ")
    assert [*first.split(), *second.strip("│ ").split()] == whole.split()
    print_fitted([line], long=True)
    assert capsys.readouterr().out == f"{line}\n"


class Prefect(BaseHTTPRequestHandler):
    """As much of Prefect's API as `status` asks, with a real answer's form."""

    runs: ClassVar[list[dict[str, Any]]] = []
    credential: ClassVar[str] = ""
    pause_s: ClassVar[float] = 0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.pause_s)
        allowed = self.headers.get("Authorization", "") == self.credential
        (flow,) = asked["flows"]["name"]["any_"]
        found = [each for each in self.runs if each["flow"] == flow]
        body = json.dumps(found if allowed else {"exception_message": "Unauthorized"}).encode()
        self.send_response(200 if allowed and self.path == "/api/flow_runs/filter" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Prefect]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prefect)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_address[1]}/api")
    monkeypatch.setattr(Prefect, "runs", [])
    yield Prefect
    server.shutdown()
    thread.join()
    server.server_close()


def test_runs_in_progress(prefect: type[Prefect], monkeypatch: pytest.MonkeyPatch) -> None:
    run = {
        "id": "i",
        "flow": "rebuild",
        "parameters": {"model": "tiny"},
        "state_name": "Late",
        "estimated_run_time": 2.5,
    }
    monkeypatch.setattr(prefect, "runs", [run, {**run, "flow": "collect_garbage"}])
    assert runs_in_progress(10) == (Run("i", "rebuild", "tiny", "Late", 2.5),)
    monkeypatch.setattr(prefect, "credential", "Basic YWRtaW46c2VjcmV0")
    assert runs_in_progress(10) is None  # it lets nobody in
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:secret")
    assert runs_in_progress(10) is not None
    monkeypatch.setattr(prefect, "pause_s", 1.0)
    assert runs_in_progress(0.1) is None
    monkeypatch.delenv("PREFECT_API_URL")
    assert runs_in_progress() is None


@pytest.fixture
def house(fleet: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one release, and the folder of a catalogue with its file."""
    bucket, models = fleet.store.bucket, tmp_path / "models"
    models.mkdir()
    document = yaml.safe_load((CHECKOUT / "deployments/models/smollm2-135m.yaml").read_text())
    for name in ("tiny", "new"):
        (models / f"{name}.yml").write_text(
            yaml.safe_dump({**document, "name": name, "targets": [fleet.target.name], "labels": {"team": name}})
        )
    (models / "zz.yaml").write_text("name: [")
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{bucket.name}/{bucket.prefix}")
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(models))
    monkeypatch.setattr(runs_module, "runs_in_progress", lambda: ())
    fleet.release(fleet.rebuild())
    return models


def test_the_command(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "tiny" in out and "zz.yaml" in out

    def names(*arguments: str) -> list[str]:
        assert main(["status", "--json", *arguments]) == 0
        return [row["model"] for row in json.loads(capsys.readouterr().out)["models"]]

    assert names() == ["new", "tiny", "zz"]
    assert names("--label", "team=new") == ["new"] and names("--target", "nowhere") == []
    assert names("--state", "down") == ["tiny"] and names("--state", "broken-file") == ["zz"]


@pytest.mark.parametrize("arguments", [("--state", "sleeping"), ("--label", "team"), ("--label", "=x")])
def test_wrong_filters_are_refused(house: Path, arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "[usage]" in said.err and "hint: " in said.err


def test_watching_looks_again_until_it_is_ended(
    house: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("deployments.cli.status_commands.time.sleep", pause)
    assert main(["status", "--watch", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["model"] for row in first["models"]] == [row["model"] for row in second["models"]]
