"""The command, and how checks are run: side by side, none stops another, each cause is told once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from deployments.cli.main import main
from deployments.doctor.check import Check, Finding, fine, wrong
from deployments.doctor.examine import examine
from deployments.doctor.table import CHECKS
from deployments.doctor.text import document, lines
from infra.errors import StoreUnavailable
from infra.settings import Settings


def test_one_that_raises_or_hangs_is_a_finding_and_stops_no_other() -> None:
    released = threading.Event()

    def hangs(_: Settings) -> Iterator[Finding]:
        yield fine("this much was seen")
        released.wait(30)

    def fails(_: Settings) -> Iterator[Finding]:
        yield fine(str(1 // int("0")))

    def refuses(_: Settings) -> Iterator[Finding]:
        yield fine("so far")
        raise StoreUnavailable("it is away", hint="start it")

    began = time.monotonic()
    checks = (
        Check("hangs", "something slow", hangs, within_s=0.2),
        Check("fails", "", fails),
        Check("refuses", "", refuses),
        Check("sound", "", lambda _: [fine("all is well")]),
    )
    examined = examine(checks, Settings())
    assert time.monotonic() - began < 10
    released.set()
    assert [[finding.code for finding in each.findings] for each in examined] == [
        ["", "check-hung"],
        ["check-failed"],
        ["", "store-unavailable"],
        [""],
    ]
    assert "enginehouse doctor hangs" in examined[0].findings[1].remedy
    assert "ZeroDivisionError" in examined[1].findings[0].what
    assert [each.is_wrong for each in examined] == [True, True, True, False]


def test_a_cause_is_told_once() -> None:
    def away(_: Settings) -> Iterator[Finding]:
        yield wrong("store-unavailable", "it is away", "enginehouse up")

    def other(_: Settings) -> Iterator[Finding]:
        yield wrong("store-unconditional", "it ignores If-Match", "another server")

    checks = (Check("store", "", away), Check("clock", "", away, needs="store"), Check("c", "", other, needs="store"))
    examined = examine(checks, Settings())
    assert [each.findings[0].state for each in examined] == ["wrong", "not made", "wrong"]
    alone = examine(checks[1:2], Settings())
    assert alone[0].findings[0].code == "store-unavailable"


def test_lines_fit_a_terminal_and_the_document_has_all_of_it() -> None:
    def look(_: Settings) -> Iterator[Finding]:
        yield wrong("broken", "what was found " * 12, "enginehouse up && enginehouse rebuild " + "a-model " * 12)

    examined = examine([Check("something", "a thing", look)], Settings())
    shown = list(lines(examined))
    assert all(len(line) <= 80 for line in shown) and shown[-1] == "1 check: 0 fine, 0 notice, 1 wrong, 0 not made"
    told = document(examined)
    assert told["sound"] is False and "a-model a-model" in json.dumps(told)


def test_the_table_is_one_of_checks() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names) and {check.needs for check in CHECKS} - {""} <= set(names)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ENGINEHOUSE_TRITON", raising=False)
    monkeypatch.delenv("ENGINEHOUSE_TRITON_HTTP", raising=False)
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", "nonsense")
    assert main(["doctor", "triton-control", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] and told["checks"][0]["findings"][0]["state"] == "not made"
    assert main(["doctor", "triton-control", "toolchain"]) == 1
    assert "2 checks: 0 fine, 0 notice, 1 wrong, 1 not made" in capsys.readouterr().out
    assert main(["doctor", "trition"]) == 2
    assert "did you mean 'triton'?" in capsys.readouterr().err
