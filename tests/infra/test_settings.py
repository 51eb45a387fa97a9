from __future__ import annotations

import json
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
        "[gpu_hour_prices]\nsm90 = 2.99\n"
    )
    monkeypatch.setenv("ENGINEHOUSE_REBUILDS", "7")
    environment = dict(os.environ)
    settings.activate(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    loaded = settings.load()
    assert loaded.watch_avoid == ("1.2.0", "1.1.9") and loaded.watch_parallel == 2 and loaded.watch_schedule == ""
    assert loaded.pool_limits == (("build-sm90", 2), ("build-sm100", 1))
    assert loaded.pools == (("build-sm90", "kubernetes"),)
    assert loaded.gpu_hour_prices == (("sm90", 2.99),)
    assert loaded.rebuilds == 7
    assert hash(loaded) == hash(settings.load())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENGINEHOUSE_LEASE_SECONDS", "soon"),
        ("ENGINEHOUSE_REBUILDS", "0"),
        ("ENGINEHOUSE_WATCH_PARALLEL", "few"),
        ("ENGINEHOUSE_HEARTBEAT_SECONDS", "29"),
        ("ENGINEHOUSE_POOL_LIMITS", "build-sm90"),
        ("ENGINEHOUSE_POOL_LIMITS", "build-sm90=-1"),
        ("ENGINEHOUSE_POOLS", "build-sm90=podman"),
        ("ENGINEHOUSE_GPU_HOUR_PRICES", "sm90=-1"),
        ("ENGINEHOUSE_GPU_HOUR_PRICES", "sm90=cheap"),
        ("ENGINEHOUSE_MLFLOW", "mlflow:5000"),
        ("ENGINEHOUSE_MLFLOW", "https://wilma:hunter2@mlflow"),
        ("ENGINEHOUSE_POOLS", "build-sm90"),
        ("ENGINEHOUSE_WEBHOOK_SECRETS", "huggingface=hunter2"),
    ],
)
def test_a_value_of_the_wrong_form_names_its_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    assert caught.value.code == "settings"
    assert caught.value.message.startswith(f"{name}: ") and caught.value.hint
    assert "hunter2" not in str(caught.value) + caught.value.hint + repr(caught.value.__cause__)


def test_an_unknown_setting_of_the_file_is_refused_with_those_that_are_known() -> None:
    Path("enginehouse.toml").write_text("rebuild = 2\n")
    with pytest.raises(SettingsError) as caught:
        settings.activate({})
    assert caught.value.code == "settings" and "'rebuild'" in caught.value.message and "rebuilds" in caught.value.hint


def test_the_stack_counts_where_neither_a_store_nor_a_prefect_server_is_named(tmp_path: Path) -> None:
    stack = {"ENGINEHOUSE_STORE": "s3://stack", "PREFECT_API_URL": "http://127.0.0.1:1/api", "AWS_ACCESS_KEY_ID": "KEY"}
    (tmp_path / "environment.json").write_text(json.dumps(stack))
    home = {"ENGINEHOUSE_HOME": str(tmp_path)}
    alone, production = dict(home), {**home, "PREFECT_API_URL": "https://prefect.example/api"}
    settings.activate(alone)
    assert alone == home | stack
    expected = dict(production)
    settings.activate(production)
    assert production == expected
