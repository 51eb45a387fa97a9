"""The campaign itself: its table, what its clients count, and all of it with tiny models on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import CHECKOUT
from tests.gpu.clients import Answer, Clients, p99
from tests.gpu.gates import answered
from tests.gpu.table import Table


def test_one_goal_that_is_missed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(part=2)
    table.goal("memory", "10 MiB", "within 200 MiB", met=True)
    table.figure("seconds", "3")
    table.skipped("the rest", "no GPU")
    assert not table.missed
    table.goal("clients", "1 failed", "0 failed", met=False)
    assert table.missed
    assert table.text().splitlines()[2:] == [
        "| 2 | memory | 10 MiB | within 200 MiB | met |",
        "| 2 | seconds | 3 |  | figure |",
        "| 2 | the rest | no GPU |  | not run |",
        "| 2 | clients | 1 failed | 0 failed | MISSED |",
    ]
    assert capsys.readouterr().out.count("\n") == 4


def test_first_tokens_that_ran_into_a_promotion_are_told_apart() -> None:
    clients = Clients("", "model", 1, 1)
    before, into, failed = Answer(1.0, 0.5), Answer(1.8, 0.4), Answer(2.5, failed="503")
    clients.answers += [before, into, failed]
    assert clients.first_tokens([(2.0, 3.0)], inside=True) == [0.4]
    assert clients.first_tokens([(2.0, 3.0)], inside=False) == [0.5]
    assert clients.failures == ["503"]
    assert p99([*range(200)]) == 198 and p99([7.0]) == 7.0


def test_a_share_is_counted_by_the_release_that_answered() -> None:
    labels = 'adapter="",model="{}",outcome="{}",release="{}"'
    counted = [("large", "ok", 7, 30), ("large", "model-busy", 7, 1), ("large", "ok", 6, 69), ("small", "ok", 7, 5)]
    name = "enginehouse_gateway_requests_total"
    lines = [f"{name}{{{labels.format(*each)}}} {number}.0" for *each, number in counted]
    lines.insert(0, "# TYPE enginehouse_gateway_requests counter")
    assert answered("\n".join([*lines, f'{name.replace("requests", "others")}{{model="large"}} 9.0', ""]), 7) == (
        31,
        69,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_all_parts_run_with_tiny_models(tmp_path: Path) -> None:
    environment = {**os.environ, "ENGINEHOUSE_GPU_SIZES": "tiny", "ENGINEHOUSE_GPU_FOLDER": str(tmp_path)}
    command = [sys.executable, "-m", "tests.gpu"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {row.split(" | ")[0] for row in rows[1:]} == {f"| {part}" for part in range(1, 7)}
