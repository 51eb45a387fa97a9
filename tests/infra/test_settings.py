from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra import settings
from infra.errors import SettingsError


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but those of the test, and a folder for its `enginehouse.toml`."""
    for name in list(os.environ):
        if name.startswith("ENGINEHOUSE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_lists_and_tables_of_the_file_are_words_of_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("enginehouse.toml").write_text(
        'watch_avoid = ["1.2.0", "1.1.9"]\nwatch_parallel = 2\nrebuilds = 9\nwatch_schedule = "never"\n'
        "[pool_limits]\nbuild-sm90 = 2\nbuild-sm100 = 1\n[pools]\nbuild-sm90 = 'kubernetes'\n"
    )
    monkeypatch.setenv("ENGINEHOUSE_REBUILDS", "7")
    environment = dict(os.environ)
    settings.activate(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    here = settings.load()
    assert here.watch_avoid == ("1.2.0", "1.1.9") and here.watch_parallel == 2 and here.watch_schedule == ""
    assert here.pool_limits == (("build-sm90", 2), ("build-sm100", 1))
    assert here.pools == (("build-sm90", "kubernetes"),)
    assert here.rebuilds == 7
    assert hash(here) == hash(settings.load())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENGINEHOUSE_REBUILDS", "0"),
        ("ENGINEHOUSE_WATCH_PARALLEL", "few"),
        ("ENGINEHOUSE_HEARTBEAT_SECONDS", "29"),
        ("ENGINEHOUSE_POOL_LIMITS", "build-sm90"),
        ("ENGINEHOUSE_POOL_LIMITS", "build-sm90=-1"),
        ("ENGINEHOUSE_POOLS", "build-sm90=podman"),
        ("ENGINEHOUSE_POOLS", "build-sm90"),
    ],
)
def test_a_value_of_the_wrong_form_names_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        settings.load()
