"""`enginehouse init`: a folder outside the checkout, in which the next commands work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deployments.cli.main import main
from infra import settings
from tasks.models.catalogue import json_schema


def test_the_folder_has_what_the_next_commands_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("ENGINEHOUSE_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "my models"
    assert main(["init", str(folder)]) == 0
    printed = capsys.readouterr()
    assert set(map(Path, printed.out.splitlines())) == {path for path in folder.rglob("*") if path.is_file()}
    assert f"cd '{folder}' && enginehouse up" in printed.err
    assert json.loads((folder / "model.schema.json").read_text()) == json_schema()

    monkeypatch.chdir(folder)
    environment: dict[str, str] = {}
    settings.activate(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (settings.load().catalogue, settings.load().home) == (folder / "models", folder / ".enginehouse")
    assert main(["plan", "smollm2-135m", "--offline"]) == 0
    assert "built on pool build-cpu" in capsys.readouterr().out


def test_what_somebody_wrote_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path)]) == 0
    (tmp_path / "model.schema.json").unlink()
    assert main(["init", str(tmp_path)]) == 0  # a killed one is completed
    assert (tmp_path / "model.schema.json").exists()
    model = tmp_path / "models" / "smollm2-135m.yaml"
    model.write_text("name: mine\n")
    (tmp_path / ".gitignore").unlink()
    capsys.readouterr()
    assert main(["init", str(tmp_path)]) == 2
    assert "[file-exists]" in capsys.readouterr().err
    assert model.read_text() == "name: mine\n" and not (tmp_path / ".gitignore").exists()
