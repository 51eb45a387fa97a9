"""What every command does alike: wrong names, errors for people and for programs, any terminal, no Prefect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, TextIOWrapper
from typing import TYPE_CHECKING

import pytest

from deployments.cli.main import main
from deployments.cli.prefect_calls import require_prefect
from infra.errors import SettingsError
from infra.settings import CHECKOUT
from tasks.explain.history import history
from tasks.targets.node_report import REPORT_SECONDS
from tests.tasks.sources.loopback import Loopback
from tests.tasks.targets.test_aliases import answering

if TYPE_CHECKING:
    from pathlib import Path

    from infra.s3.bucket import Bucket
    from tests.fleet import Fleet

Command = Callable[..., tuple[int, str, str]]

NOBODY = "http://127.0.0.1:9/api"
"""Port 9 of loopback: nothing answers there."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs a command without a store and without a Prefect server; returns its exit code, output and errors."""
    for name in ("ENGINEHOUSE_STORE", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def released(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, command: Command) -> Fleet:
    """Two releases of `tiny` on target `test`, the second one public, and a node that answers with the first."""
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{fleet.store.bucket.name}/{fleet.store.bucket.prefix}")
    monkeypatch.setenv("ENGINEHOUSE_TARGET", fleet.target.name)
    fleet.release(fleet.rebuild())
    fleet.release(fleet.rebuild(quantization="nvfp4"))
    answering(fleet, tiny=1)
    return fleet


def test_wrong_use_tells_the_nearest_name(command: Command) -> None:
    for arguments, meant in (
        (("rebiuld", "smollm2-135m"), "did you mean 'rebuild'?"),
        (
            ("rebuild", "smollm2-135m", "--refrsh", "build"),
            "did you mean '--refresh'? see `enginehouse rebuild --help`",
        ),
        (("rebuild", "smollm2-135m", "--refresh", "buidl"), "did you mean 'build'?"),
        (("toolchain", "lsit"), "did you mean 'list'?"),
    ):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "") and "[usage]" in err and meant in err, err
    code, _, err = command("frobnicate")
    assert code == 2 and "there are init, up, down," in err


def test_a_mistyped_model_or_target_is_told_the_nearest(released: Fleet, command: Command) -> None:
    code, _, err = command("plan", "smollm2-135", "--offline")
    assert code == 2 and "[model-missing]" in err and "\nhint: did you mean 'smollm2-135m'? " in err
    for name in ("releases", "history", "rollback"):
        assert "\nhint: did you mean 'tiny'? " in command(name, "tinny")[2]
    assert "\nhint: did you mean 'tiny'? " in command("why", "tinny@1")[2]
    assert "\nhint: did you mean 'test'? " in command("releases", "tiny", "--target", "tets")[2]
    assert "did you mean" not in command("releases", "tiny", "--target", "elsewhere")[2]


def test_an_error_is_one_json_document_where_json_is_asked_for(
    bucket: Bucket, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{bucket.name}/{bucket.prefix}")
    for arguments, code in (
        (("releases", "nothing", "--json"), "release-missing"),
        (("lineage", "nothing", "--format", "json"), "reference-unknown"),
        (("lineage", "nothing", "--format=json"), "reference-unknown"),
        (("rebuild", "--json"), "usage"),
        (("rebuild", "tiny", "--json", "--recipe", "nothing"), "usage"),
        (("watch", "--json"), "prefect-missing"),
    ):
        ended, out, err = command(*arguments)
        error = json.loads(out)["error"]
        assert ended == 2 and error.keys() == {"code", "message", "hint"} and error["code"] == code
        assert f"error: {error['message']} [{code}]" in err
    assert command("releases", "nothing")[1] == ""


def test_nobody_waits_for_a_prefect_server_that_is_away(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    for arguments in (("rebuild", "tiny"), ("watch",)):
        code, out, err = command(*arguments, "--json")
        assert code == 2 and json.loads(out)["error"]["code"] == "prefect-failed"
        assert len(err.splitlines()) == 3 and "\n\nhint: is it up" in err


def test_a_rollback_needs_no_prefect_server(released: Fleet, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    code, out, err = command("rollback", "tiny", "--reason", "it answers nonsense", "--json")
    assert code == 0 and json.loads(out) == {"model": "tiny", "release": 1, "from": 2}
    assert "`enginehouse history tiny` does" in err
    assert released.target.current("tiny")[0].public == 1
    assert "it answers nonsense" in json.dumps(history(released.target, "tiny", 5).document())
    monkeypatch.delenv("PREFECT_API_URL")
    assert "[rolled-back]" in command("rollback", "tiny")[2]  # it goes no further back


class _Broken(BaseHTTPRequestHandler):
    """A Prefect server that says that it is ready, and then answers 500."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith("/ready") else 500)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Busy(_Broken):
    """One whose database is locked."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()


def test_a_busy_server_is_waited_for_by_who_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(ThreadingHTTPServer(("127.0.0.1", 0), _Busy)) as busy:
        monkeypatch.setenv("PREFECT_API_URL", f"{busy.url}/api")
        require_prefect()
        with pytest.raises(SettingsError) as caught:
            require_prefect(busy=False)
    assert caught.value.code == "prefect-failed" and "it answers 503" in caught.value.message


def _typed(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli.main", *arguments],
        cwd=CHECKOUT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_rollback_does_not_rely_on_a_server_that_breaks(released: Fleet) -> None:
    ended = threading.Event()

    def node() -> None:
        while not ended.wait(REPORT_SECONDS):
            answering(released, tiny=1)

    reporting = threading.Thread(target=node)
    reporting.start()
    try:
        with Loopback(ThreadingHTTPServer(("127.0.0.1", 0), _Broken)) as broken:
            done = _typed("rollback", "tiny", PREFECT_API_URL=f"{broken.url}/api")
    finally:
        ended.set()
        reporting.join()
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "did not begin the run" in done.stderr
    assert done.stdout == "tiny answers with release 1, instead of 2\n"


def test_any_terminal_is_written_to(released: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = BytesIO()
    terminal = TextIOWrapper(printed, encoding="latin-1", write_through=True)
    with monkeypatch.context() as latin:
        latin.setattr(sys, "stdout", terminal)
        assert main(["why", "tiny"]) == 0
    assert rb"quantization fp8 \u2192 nvfp4" in printed.getvalue()


def test_the_version_is_told(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("enginehouse 0.")


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from deployments.cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    loaded = set(done.stderr.split())
    assert done.returncode == 0 and "argparse" in loaded
    assert not {"prefect", "pydantic", "boto3", "asyncio", "ssl", "difflib"} & loaded
