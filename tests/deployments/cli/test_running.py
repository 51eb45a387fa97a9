"""Steps that run, as a person at a terminal and as a log see them."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time
from collections.abc import Iterator

import pytest

from deployments.cli import running
from deployments.cli.people import printable
from deployments.cli.running import News, line, showing
from flows.report import Report, RunningStep, running_step
from tests.waiting import wait


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, in its first item."""
    now = [1000.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    yield now


def test_a_step_runs_while_its_block_does() -> None:
    report = Report("tiny")
    with report.runs("fetch") as step:
        assert report.running == [step] and running_step() is step
    assert report.running == [] and running_step() is not step
    with pytest.raises(ValueError), report.runs("build"):
        raise ValueError
    assert report.running == [] and "running" not in report.document()


def test_a_line_has_the_columns_of_a_step_that_has_ended(clock: list[float]) -> None:
    step = RunningStep("fetch", since=988.0, said="21 % of 93.8 MiB, 12.0 MiB/s, 6 s left")
    assert line(step) == "fetch      running            12 s  21 % of 93.8 MiB, 12.0 MiB/s, 6 s left"
    step.said = "\x1b[31mred\x1b[0m\x1b]0;title\x07 and\rback\nand more"
    assert line(step).endswith("12 s  red and back")


def test_what_tools_print_moves_no_cursor() -> None:
    assert printable("\x1b[2K\x1b[1A\x1b(B100 %\t\x08 → done\x1b]0;x\x1b\\ ") == "100 %   → done"


def test_a_log_gets_few_lines(clock: list[float]) -> None:
    news, step = News(), RunningStep("build", since=1000.0)
    steps, told = [step], list[str]()
    for second in range(700):
        clock[0] = 1000.0 + second
        step.said = f"layer {second}" if second < 100 else "waits"
        told += news.of(steps)
    assert [re.sub(" +", " ", text) for text in told] == [
        "build running 2 s layer 2",
        "build running 32 s layer 32",
        "build running 62 s layer 62",
        "build running 92 s layer 92",
        "build running 122 s waits",
        "build running 422 s waits",
    ]
    step.become("upload")
    assert news.of(steps) == []  # it may have ended in a moment
    clock[0] += 3
    step.said = "x" * 200
    (text,) = news.of(steps)
    assert text.startswith("upload     running             3 s  xxx") and len(text) == 80 and text.endswith("…")


def test_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(running, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(running, "_BEGUN_SECONDS", 0.0)
    step, err = RunningStep("fetch", said="50 %"), ""

    def told() -> bool:
        nonlocal err
        said = capsys.readouterr()
        assert said.out == ""
        err += said.err
        return bool(err)

    with showing([step]):
        wait(told, "line of the step")
    with showing([step], quiet=True):
        time.sleep(0.05)  # nothing is to come, so there is nothing to wait for
    told()
    assert err.count("\n") == 1 and err.endswith("s  50 %\n")


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_at_a_terminal(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    master, slave = pty.openpty()
    step, read = RunningStep("convert", said="10 %"), bytearray()

    def shows(text: bytes) -> bool:
        while select.select([master], [], [], 0)[0]:
            read.extend(os.read(master, 100_000))
        return text in read

    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with showing([step]):
            wait(lambda: term == "dumb" or shows(b"10 %"), "line of the step")
            step.said = f"20 % {'x' * 100}"
            print("fetch      Cached", file=sys.stderr, flush=True)
            wait(lambda: shows(b"Cached") and (term == "dumb" or shows(b"20 %")), "next line of the step")
        terminal.flush()
        shows(b"")
        printed = read.decode()
    os.close(master)
    assert "fetch      Cached" in printed
    if term == "dumb":
        assert "\x1b" not in printed and "10 %" not in printed  # as a log: it has run for less than two seconds
        return
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text) for text in re.split("[\r\n]+", printed)]
    assert any("10 %" in text for text in lines) and any("20 % x" in text for text in lines)
    assert max(map(len, lines)) <= 80 and "\x1b[2K" in printed and not re.search(r"\x1b\[3\dm", printed)
