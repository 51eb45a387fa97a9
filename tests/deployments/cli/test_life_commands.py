"""The commands of a model's life, as a person types them, on a real store."""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING

import pytest

from deployments.cli.main import main
from tests.following_node import following
from tests.small_release import FILE, released
from tests.tasks.targets.test_aliases import public

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fleet import Fleet


class Terminal(StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def house(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    """A store in which release 1 of `tiny` is public, and a catalogue without files."""
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{fleet.store.bucket.name}/{fleet.store.bucket.prefix}")
    monkeypatch.setenv("ENGINEHOUSE_TARGET", fleet.target.name)
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "catalogue").mkdir()
    public(fleet, "tiny")
    return fleet


def test_a_lost_file_is_told_and_how_the_model_goes(house: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "down, no file" in shown and "`enginehouse retire tiny`" in " ".join(shown.split())
    assert main(["retire", "tiny", "--reason", "its file is gone", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (there,) = told["targets"]
    assert (told["model"], there["target"], there["release"], there["first"]) == ("tiny", "test", 1, True)
    assert there["reason"] == "its file is gone" and "@" in there["by"]
    assert main(["status"]) == 0
    assert "tiny" not in capsys.readouterr().out
    assert main(["status", "--state", "retired", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert (row["model"], row["states"], row["alerts"]) == ("tiny", ["retired", "no-file"], [])
    assert main(["history", "tiny"]) == 0
    assert "retired      release 1  " in capsys.readouterr().out
    for command in (["releases", "tiny"], ["lineage", "tiny"], ["report", "tiny@1"]):
        assert main(command) == 0


def test_a_person_is_asked_first(
    house: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["retire", "tiny"]) == 2  # nobody is at a terminal
    assert "[not-confirmed]" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    assert main(["retire", "tiny"]) == 2
    assert "test: clients are answered by release 1" in capsys.readouterr().err
    assert house.target.current("tiny")[0].public == 1
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert main(["retire", "tiny"]) == 0
    assert "tiny is retired on 'test': release 1 was public" in capsys.readouterr().out
    assert main(["retire", "tiny", "--yes"]) == 0
    assert "tiny is retired on 'test': by " in capsys.readouterr().out


def test_a_file_that_is_still_there_is_told(house: Fleet, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "catalogue" / "tiny.yml").write_text("name: tiny\n")
    assert main(["retire", "tiny", "--yes"]) == 0
    assert "tiny.yml is still there" in capsys.readouterr().err
    assert main(["retire", "tinny", "--yes"]) == 2
    assert "[release-missing]" in (err := capsys.readouterr().err) and "did you mean 'tiny'?" in err


def test_a_model_gets_another_name_without_a_prefect_server(
    house: Fleet, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    released(house.store.bucket, tmp_path)
    (tmp_path / "catalogue" / FILE.name).write_text(FILE.read_text())
    assert main(["rename", "smollm2-135m", "smollm2-135m", "--yes"]) == 2
    with following(house.target):
        assert main(["rename", "smollm2-135m", "small"]) == 2  # nobody is asked
        assert main(["rename", "smollm2-135m", "small", "--yes"]) == 0
        printed = capsys.readouterr().out
        assert main(["rename", "smollm2-135m", "small", "--yes", "--json"]) == 0
    assert "small answers on 'test' with release 1, which was smollm2-135m@1; smollm2-135m is retired" in printed
    assert json.loads(capsys.readouterr().out) == {"model": "small", "former": "smollm2-135m", "targets": []}
    assert [path.name for path in (tmp_path / "catalogue").iterdir()] == ["small.yaml"]
    assert house.target.current("small")[0].public == 1 and house.target.current("smollm2-135m")[0].public is None
