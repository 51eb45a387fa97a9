"""Environments that a person asks for: resolved by a real pip from two indexes on loopback, checked and listed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deployments.cli.main import main
from infra.errors import SettingsError
from infra.toolchains import added, pinned
from tests.infra.toolchains.test_pinned_toolchain import PYTHON, Index, serving, wheel

VERSION = "1.2.1"


def tensorrt_llm() -> tuple[str, bytes]:
    """A wheel that needs one of the ordinary index."""
    return wheel(
        "tensorrt_llm",
        "raise ImportError('a stand-in')",
        version=VERSION,
        requires="acme-common",
        files={"tensorrt_llm/version.py": f'__version__ = "{VERSION}"\n'},
    )


@pytest.fixture
def indexes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[tuple[Index, Index]]:
    with ExitStack() as stack:
        ordinary = stack.enter_context(serving(wheel("acme-common", "FROM = 'ordinary'", requires="")))
        second = stack.enter_context(serving(tensorrt_llm()))
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", ordinary.url)
        programs = tmp_path / "programs"
        programs.mkdir()
        # Whatever this environment was made from stands for the interpreter of the wheels.
        (programs / "python3.12").write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} "$@"\n')
        (programs / "python3.12").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", "venv")
        monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN_INDEX", second.url.replace("127", "user:secret@127", 1))
        yield ordinary, second


@pytest.mark.slow
def test_a_version_without_pins_is_resolved_checked_and_used(
    tmp_path: Path, indexes: tuple[Index, Index], capsys: pytest.CaptureFixture[str]
) -> None:
    _, second = indexes
    assert main(["toolchain", "add", VERSION, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    place = tmp_path / "home/toolchains" / VERSION
    assert (made["state"], made["made_from"], made["path"]) == ("ready", "index", str(place))
    assert made["versions"]["tensorrt_llm"] == VERSION
    # What pip chose is a pins file, by which another machine makes the same.
    found = place / added.FOUND_PINS
    pins = pinned.read(found, VERSION)
    assert [line.partition(" ")[0] for line in pins.second.splitlines()] == ["tensorrt_llm==1.2.1"]
    assert "acme-common==1.0 --hash=sha256:" in pins.ordinary and "secret" not in found.read_text()

    asked = len(second.asked)
    assert pinned.environment(place.parent, VERSION, "") == place, "a worker uses it"
    assert main(["toolchain", "add", VERSION]) == 0
    assert len(second.asked) == asked, "it is there"
    capsys.readouterr()
    assert main(["toolchain", "list", "--json"]) == 0
    listed = {entry["version"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed[VERSION] == made
    assert {entry["state"] for version, entry in listed.items() if version != VERSION} == {"absent"}
    assert {"0.8.0", "0.9.0"} <= listed.keys() and listed["0.8.0"]["made_from"] == "pins"

    # Where pins have come meanwhile, they count: here those that pip had found.
    folder = tmp_path / "pins"
    folder.mkdir()
    text = found.read_text().replace("# python: 3.12", f"# python: {PYTHON}")
    (folder / f"{VERSION}.txt").write_text(text)
    (changed,) = added.listed(place.parent, folder)
    assert (changed.state, changed.made_from) == ("changed", "pins")
    again = added.add(place.parent, VERSION, second.url, None, folder)
    assert (again.state, again.made_from) == ("ready", "pins")

    # What holds another version than it says is used no more.
    (place / "complete").write_text(added.FROM_INDEX)
    (package,) = place.glob("lib/*/site-packages/tensorrt_llm/version.py")
    package.write_text('__version__ = "1.1.0"\n')
    with pytest.raises(SettingsError) as caught:
        added.add(place.parent, VERSION, second.url, None)
    assert caught.value.code == "toolchain-broken"
    with pytest.raises(SettingsError) as caught:
        pinned.environment(place.parent, VERSION, second.url)
    assert caught.value.code == "toolchain-unpinned" and "toolchain add 1.2.1" in caught.value.hint
    (half,) = (each for each in added.listed(place.parent) if each.version == VERSION)
    assert (half.state, half.made_from) == ("half-made", "index")


@pytest.mark.parametrize(
    ("arguments", "changes", "code"),
    [
        (["add", "1.2.x"], {}, 2),
        (["add", VERSION], {"ENGINEHOUSE_TOOLCHAIN_INDEX": ""}, 2),
        (["add", VERSION], {"PATH": "/nonexistent"}, 2),
    ],
)
def test_what_cannot_be_made_says_why(
    indexes: tuple[Index, Index],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    changes: dict[str, str],
    code: int,
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert main(["toolchain", *arguments]) == code
    told = capsys.readouterr().err
    assert "hint: " in told and "secret" not in told
