"""The completion script in real shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deployments.cli.main import main


@pytest.fixture
def bash_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The script of a catalogue with two models, in a folder whose name has a space."""
    folder = tmp_path / "my models"
    folder.mkdir()
    for name in ("tiny.yaml", "tidy.yml", "notes.txt"):
        (folder / name).touch()
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(folder))
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    monkeypatch.delenv("ENGINEHOUSE_CATALOGUE")
    return path


def test_bash_completes(bash_script: Path) -> None:
    cases = {
        ("reb",): {"rebuild"},
        ("rebuild", "ti"): {"tiny", "tidy"},
        ("rebuild", "tiny", "--ref"): {"--refresh"},
        ("rebuild", "tiny", "--refresh", ""): {"fetch", "convert", "build", "assemble"},
        ("logs", "tiny", "--step", "bu"): {"build"},
        ("toolchain", ""): {"add", "list"},
        ("toolchain", "list", "--j"): {"--json"},
        ("history", "no"): set[str](),
        ("completion", "z"): {"zsh"},
    }
    lines = [f"source {bash_script}"]
    for words in cases:
        typed = " ".join(f"'{word}'" for word in ("enginehouse", *words))
        lines.append(f'COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _enginehouse; echo "${{COMPREPLY[*]}}"')
    done = subprocess.run(["bash", "--norc", "-eu", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = [set(line.split()) for line in done.stdout.split("\n")[:-1]]
    assert dict(zip(cases, found, strict=True)) == cases


def test_zsh_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (zsh := shutil.which("zsh")) is None:
        pytest.skip("zsh is not installed")
    assert main(["completion", "zsh"]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    done = subprocess.run([zsh, "-f", "-c", f"source {path}"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
