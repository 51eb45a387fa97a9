"""The commands that read and keep the store, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deployments.cli.main import main

if TYPE_CHECKING:
    from tests.fleet import Fleet

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on the fleet's store; returns its exit code, output and errors."""
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{fleet.store.bucket.name}/{fleet.store.bucket.prefix}")
    monkeypatch.setenv("ENGINEHOUSE_TARGET", fleet.target.name)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_asking(fleet: Fleet, command: Command) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    fleet.release(fleet.rebuild(quantization="nvfp4"))
    code, out, _ = command("lineage", "tiny")
    assert code == 0 and out.startswith("public name test/tiny\nmade from\n└─ release test/tiny@2  live")
    assert f"engine {made.engine.identity[:12]}  " in command("lineage", "tiny@1")[1]
    assert made.engine.identity in command("lineage", "tiny@1", "--long")[1]
    code, out, _ = command("releases", "tiny")
    assert code == 0 and out.startswith("   N  STATE")
    assert command("lineage", "tiny@1", "--format", "mermaid")[1].startswith("graph TD\n")
    document = json.loads(command("lineage", made.engine.identity[:16], "--format", "json")[1])
    assert document["root"] == str(made.engine)
    assert command("why", "tiny")[1].startswith("recipe: quantization fp8 → nvfp4; weights, GPU,")
    document = json.loads(command("why", "tiny@1", "--against", "tiny@2", "--json")[1])
    assert document["summary"].startswith("recipe: quantization nvfp4 → fp8")
    assert json.loads(command("schema", "lease")[1])["properties"]["holder"]
    assert {"source", "recipe", "prompts"} <= json.loads(command("schema", "model")[1])["properties"].keys()
    code, out, err = command("lineage", "nothing")
    assert (code, out) == (2, "") and "[reference-unknown]" in err and "\nhint: " in err
    assert command("schema", "nothing")[0] == 2


def test_verifying(fleet: Fleet, command: Command) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    code, out, _ = command("verify", "tiny")
    assert code == 0 and out.splitlines() == [
        f"{ref.kind}/{ref.identity[:12]}  2 files, 6.3 KiB: intact" for ref in (made.repository, made.engine)
    ]
    assert command("verify", "tiny", "--long")[1].startswith(f"{made.repository}  2 files, ")
    attempt = fleet.store.need(made.engine).manifest.attempt
    fleet.store.bucket.put(f"{made.engine.folder}{attempt}/data.bin", b"?")
    code, out, err = command("verify", "tiny", "--json")
    assert code == 1 and [verdict["intact"] for verdict in json.loads(out)] == [True, False]
    assert "'data.bin' was altered" in err and "[artifact-damaged]" in err
    assert command("sign", "tiny")[0] == 2  # no key


def test_collecting(fleet: Fleet, command: Command) -> None:
    made, lost = fleet.rebuild(), fleet.rebuild(tensorrt_llm="1.0.0")
    fleet.release(made)
    pinned = command("pin", str(made.snapshot), "--reason", "slow to fetch")[:2]
    assert pinned == (0, f"snapshot/{made.snapshot.identity[:12]}\n")
    document = json.loads(command("gc", "--dry-run", "--grace", "0", "--json")[1])
    assert document["dry_run"] and str(lost.engine) in {item["name"] for item in document["garbage"]}
    assert document["kept"][str(made.snapshot)] == "pinned"
    assert fleet.store.find(lost.engine) is not None
    code, out, _ = command("gc")  # a week's grace: nothing goes
    assert code == 0 and out.endswith("0 B in 0 objects may go\n")
    code, out, _ = command("gc", "--grace", "0")
    assert code == 0 and f"engine/{lost.engine.identity[:12]}  nothing uses it" in out
    assert fleet.store.find(lost.engine) is None and fleet.store.find(made.engine) is not None
    assert command("unpin", str(made.snapshot))[0] == 0 and command("unpin", str(made.snapshot))[0] == 2


def test_exporting(fleet: Fleet, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    monkeypatch.chdir(tmp_path)
    code, out, err = command("export", "tiny")
    assert (code, out) == (0, "tiny-1\n") and "tiny@1: 4 files, 12.5 KiB\nsha256:" in err and "not signed" in err
    assert (tmp_path / "tiny-1" / "oci" / "index.json").is_file()
    code, out, _ = command("export", "tiny@1", "--to", "elsewhere", "--json")
    document = json.loads(out)
    assert (code, document["release"], document["folder"], document["signed"]) == (0, "tiny@1", "elsewhere", False)
    assert document["digest"] in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for arguments, problem in {
        ("tiny@1", "--to", "mine"): "export-folder",
        (str(made.engine),): "reference-unknown",
        ("tiny@9",): "release-missing",
    }.items():
        code, out, err = command("export", *arguments)
        assert (code, out) == (2, "") and f"[{problem}]" in err and "\nhint: " in err


def test_reporting(fleet: Fleet, command: Command, tmp_path: Path) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    fleet.release(fleet.rebuild(quantization="nvfp4"))
    code, out, _ = command("report", "tiny")
    assert code == 0 and out.startswith("tiny release 2 on test\n\nVerdict\n  passed:")
    assert "Now: live. The public name answers with release 2." in out and "hf://org/tiny" in out
    document = json.loads(command("report", "tiny@1", "--json")[1])
    assert (document["release"], document["state"], document["public"]) == (1, "passed", 2)
    assert [made["artifact"].partition("/")[0] for made in document["made_of"]][:2] == ["repository", "engine"]
    code, out, err = command("report", "tiny@1", "--html", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert (code, out) == (0, "") and "page.html" in err and page.startswith("<!doctype html>")
    assert command("report", "tiny@1", "--html", "-")[1] == page
    for arguments, problem in {
        ("nothing",): "reference-unknown",
        (str(made.engine),): "reference-unknown",
        ("tiny@9",): "release-missing",
        ("tiny", "--json", "--html", "-"): "report-form",
    }.items():
        code, out, err = command("report", *arguments)
        assert code == 2 and f"[{problem}]" in err and "\nhint: " in err
        assert bool(out) is ("--json" in arguments)
