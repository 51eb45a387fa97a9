"""The command gate runs real programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.errors import EnginehouseError
from tasks.gates.command.gate import CommandGate, evidence_of
from tasks.gates.command.output import read_output
from tasks.models.gate_specs.command import CommandSpec
from tasks.targets.gate_record import Evidence
from tests.tasks.gates.trials import CANDIDATE, LIVE, silent, trial


def asked(code: str, metrics: Mapping[str, Any] | None = None, **fields: Any) -> CommandSpec:
    """A gate whose program is Python."""
    document = {"gate": "command", "command": [sys.executable, "-I", "-c", code], "metrics": metrics or {}, **fields}
    return CommandSpec.model_validate(document)


def run(output: object, metrics: Mapping[str, Any] | None = None, *, live: bool = True) -> Evidence:
    """What a program comes to that says this, with a warning after it."""
    wanted = asked("pass", metrics).metrics
    return evidence_of(read_output([json.dumps(output), "a warning"]), wanted, trial(silent, live=live))


def test_the_program_is_told_where_both_releases_answer_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "hidden")
    monkeypatch.setenv("ENGINEHOUSE_GATEWAY_HTTP", "http://127.0.0.1:8080")
    seen = tmp_path / "seen.json"
    code = (
        f"""import json, os; json.dump(dict(os.environ), open({str(seen)!r}, "w")); print('{{"verdict": "passed"}}')"""
    )
    CommandGate(asked(code)).run(trial(silent))
    environment = json.loads(seen.read_text())
    assert {name: value for name, value in environment.items() if name.startswith("GATE_")} == {
        "GATE_TRITON_HTTP": "http://127.0.0.1:9",
        "GATE_TRITON_GRPC": "",
        "GATE_TRITON_CANDIDATE": CANDIDATE,
        "GATE_TRITON_LIVE": LIVE,
        "GATE_OPENAI_BASE_URL": "http://127.0.0.1:8080/v1",
        "GATE_OPENAI_CANDIDATE": "smollm2-135m@2",
        "GATE_OPENAI_LIVE": "smollm2-135m@1",
    }
    assert "hidden" not in environment.values() and environment["HOME"] != os.environ.get("HOME")


def test_a_verdict_is_evidence() -> None:
    passed = run({"verdict": "passed", "reason": "fine"})
    assert passed == Evidence(notes=("the program said passed: fine",))
    assert run({"verdict": "refused", "reason": "bad"}).failures == ("the program said refused: bad",)
    assert run({"verdict": "undecided"}).gaps == ("the program said undecided",)


def test_answers_that_are_right_or_wrong_are_compared_pair_by_pair() -> None:
    metric = {"name": "accuracy", "candidate": [1, 0, 0, 0] * 25, "live": [True] * 100}
    evidence = run({"metrics": [metric]}, {"accuracy": {"margin": 0.02, "floor": 0.6}})
    floor, live = evidence.comparisons
    assert (floor.against, live.against) == ("floor", "live")
    assert floor.p_worse < 0.001 and live.p_worse < 0.001 and live.difference == -0.75
    assert (evidence.figures[0].candidate, evidence.figures[0].live) == (0.25, 1)


def test_other_values_are_compared_by_their_means() -> None:
    seconds = [0.1 + 0.001 * n for n in range(20)]
    metric = {"name": "latency", "unit": "s", "candidate": [2 * s for s in seconds], "live": seconds}
    (found,) = run({"metrics": [metric]}, {"latency": {"margin": 0.02, "better": "less"}}).comparisons
    assert found.p_worse < 0.001 and found.difference < 0 and found.unit == "s"
    (found,) = run({"metrics": [metric]}, {"latency": {"floor": 0.3, "better": "less"}}).comparisons
    assert found.against == "floor" and found.p_fine < 0.001


def test_what_the_file_asks_for_and_the_program_does_not_say_is_a_gap() -> None:
    wanted = {"accuracy": {"margin": 0.02}}
    other = {"metrics": [{"name": "speed", "candidate": [1, 2, 3]}]}
    assert run(other, wanted).gaps == ("the program did not report 'accuracy'",)
    alone = {"metrics": [{"name": "accuracy", "candidate": [1, 0, 1, 1, 1]}]}
    assert "of the live release" in run(alone, wanted).gaps[0]
    first = run(alone, wanted, live=False)
    assert not first.gaps and not first.comparisons
    few = {"metrics": [{"name": "accuracy", "candidate": [0.5, 0.4], "live": [0.5, 0.4]}]}
    assert "needs 5" in run(few, wanted).gaps[0]


@pytest.mark.parametrize(
    "line",
    [
        "fine",
        "{",
        "{}",
        '{"verdict": "good"}',
        '{"verdict": "passed", "more": 1}',
        '{"metrics": [{"name": "a", "candidate": [NaN]}]}',
        '{"metrics": [{"name": "a", "candidate": []}]}',
        '{"metrics": [{"name": "a", "candidate": [1], "live": [1, 2]}]}',
        '{"metrics": [{"name": "a", "candidate": [1]}, {"name": "a", "candidate": [1]}]}',
    ],
)
def test_what_does_not_say_what_was_found_is_an_error(line: str) -> None:
    with pytest.raises(EnginehouseError) as caught:
        read_output([line])
    assert caught.value.code == "gate-output-invalid" and not caught.value.retryable


def test_a_program_that_fails_has_said_nothing() -> None:
    code = """import sys; print('{"verdict": "passed"}'); print("a warning", file=sys.stderr); raise SystemExit(3)"""
    with pytest.raises(EnginehouseError) as caught:
        CommandGate(asked(code)).run(trial(silent))
    assert caught.value.code == "gate-command-failed" and "a warning" in caught.value.hint


def test_a_program_that_does_not_end_is_ended() -> None:
    with pytest.raises(EnginehouseError) as caught:
        CommandGate(asked("import time; time.sleep(60)", timeout_s=0.3)).run(trial(silent))
    assert caught.value.code == "step-timeout"


def test_a_program_that_is_missing_is_an_error() -> None:
    gate = CommandGate(CommandSpec(gate="command", command=("/nowhere/program",)))
    with pytest.raises(EnginehouseError) as caught:
        gate.run(trial(silent))
    assert caught.value.code == "tool-missing"
