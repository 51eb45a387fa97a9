"""The command line against the real parser of Megatron-Bridge, and against what a machine may lack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import SettingsError
from infra.settings import Settings
from tasks.exporters.commands import command
from tasks.models.source import Source
from tests.standin import exporter

COMMIT = "a" * 40
MEGATRON = Source(
    uri=f"hf://org/trained@{COMMIT}",
    form="megatron",
    like="hf://org/base@main",
    exporter="megatron-bridge==0.6.2",
    trust=("pickle",),
)
NEMO2 = Source(uri="ngc://nvidia/nemo/m@1.0", form="nemo2", exporter="nemo-toolkit==2.5.0", trust=("pickle",))

_PARSE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from arguments import build_parser
print(json.dumps(vars(build_parser(include_execution=False).parse_args(sys.argv[2:]))))
"""


def planned(tmp_path: Path, source: Source = MEGATRON) -> tuple[str, ...]:
    made = exporter.make(tmp_path, *str(source.exporter).split("=="))
    config = Settings(exporter=made.python, exporter_checkout=made.checkout)
    like = None if source.like is None else Path("/like")
    return command(config, source, Path("/checkpoint"), like, Path("/output"))


def test_the_real_parser_takes_the_command(tmp_path: Path) -> None:
    checkout = os.environ.get("ENGINEHOUSE_TEST_MEGATRON_BRIDGE")
    if checkout is None:
        pytest.skip("ENGINEHOUSE_TEST_MEGATRON_BRIDGE names no checkout of Megatron-Bridge")
    scripts = Path(checkout) / "scripts" / "conversion"
    ran = subprocess.run(
        [sys.executable, "-c", _PARSE, str(scripts), *planned(tmp_path)[2:]], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert '"device": "cpu"' in ran.stdout and '"hf_path": "/output"' in ran.stdout


def test_commands_of_both_forms(tmp_path: Path) -> None:
    python, worker, *arguments = planned(tmp_path / "bridge")
    assert worker.endswith("scripts/conversion/run_conversion.py") and Path(python).is_file()
    assert arguments[0] == "export" and "--trust-remote-code" not in arguments
    assert planned(tmp_path / "nemo", NEMO2)[2:] == ("/checkpoint", "/output")


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (Settings(), "ENGINEHOUSE_EXPORTER="),
        (Settings(exporter="/python"), "ENGINEHOUSE_EXPORTER_CHECKOUT="),
        (Settings(exporter="/python", exporter_checkout="/nowhere"), "ENGINEHOUSE_EXPORTER_CHECKOUT="),
    ],
)
def test_a_machine_without_the_tool_says_which_setting_names_it(config: Settings, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        command(config, MEGATRON, Path("/checkpoint"), Path("/like"), Path("/output"))
    assert caught.value.code == "tool-missing" and hint in caught.value.hint
