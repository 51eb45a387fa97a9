"""What a step says, as whoever watches its run sees it: in this process, and from the log of a build elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, Log, StateType, TaskRun
from prefect.client.schemas.sorting import LogSort

from flows import build_log, telling
from flows.build_log import BuildLog
from flows.report import Report, RunningStep

MIB = 2**20
BUILD = uuid4()


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log of our run."""
    for module in (telling, build_log):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("run"))
    caplog.set_level(logging.INFO, "run")
    return caplog


def test_a_line_goes_to_the_log_and_to_who_watches(log: pytest.LogCaptureFixture) -> None:
    report = Report("tiny")
    with report.runs("validate") as step:
        say = telling.telling()
    say("question 3 of 40, 100 % sure")  # from whichever thread
    assert step.said == "question 3 of 40, 100 % sure" == log.messages[-1]
    telling.telling()("nobody watches")
    assert log.messages[-1] == "nobody watches"


def test_the_log_gets_some_of_the_bytes(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(telling.time, "monotonic", lambda: now)
    with Report("tiny").runs("fetch") as step:
        told = telling.TellingBytes("fetch tiny")
    for second in range(100):
        now = float(second)
        told.look((10 if second < 3 else 11) * MIB, 100 * MIB)
        assert step.said.startswith("10 % of" if second < 3 else "11 % of")
    assert len(log.messages) == 10 and log.messages[0] == "fetch tiny: 10 % of 100.0 MiB"


class Api:
    """As much of Prefect's client as reads a build's log."""

    def __init__(self) -> None:
        self.lines: list[Log] = []
        self.tasks: list[TaskRun] = []
        self.looks = 0

    async def read_logs(self, log_filter: LogFilter, offset: int, sort: LogSort) -> Sequence[Log]:
        assert log_filter.flow_run_id is not None and log_filter.flow_run_id.any_ == [BUILD]
        assert sort is LogSort.TIMESTAMP_ASC
        return self.lines[offset : offset + 200]

    async def read_task_runs(self, task_run_filter: TaskRunFilter) -> Sequence[TaskRun]:
        assert task_run_filter.flow_run_id is not None and task_run_filter.flow_run_id.any_ == [BUILD]
        self.looks += 1
        return self.tasks

    def say(self, message: str, task: UUID | None = None, level: int = logging.INFO) -> None:
        about: dict[str, Any] = {"name": "prefect", "level": level, "message": message, "task_run_id": task}
        self.lines.append(Log.model_validate({**about, "timestamp": "2026-11-30T12:00:00Z", "flow_run_id": BUILD}))

    def task(self, name: str) -> UUID:
        about: dict[str, Any] = {"id": uuid4(), "name": name, "task_key": "k", "dynamic_key": "d"}
        self.tasks.append(TaskRun.model_validate({**about, "flow_run_id": BUILD}))
        return self.tasks[-1].id


def test_a_build_elsewhere_is_shown_by_its_log(log: pytest.LogCaptureFixture) -> None:
    api, step = Api(), RunningStep("build")
    copied = BuildLog(cast("PrefectClient", api), BUILD, "tiny", step)

    def look() -> tuple[str, str]:
        asyncio.run(copied.copy())
        return step.name, step.said

    waiting = FlowRun.model_validate({"flow_id": uuid4(), "state_type": StateType.SCHEDULED, "work_pool_name": "gpus"})
    copied.tell_of(waiting)
    assert look() == ("build", "waits for a worker of pool gpus")
    api.say("Beginning flow run")
    assert look() == ("build", "Beginning flow run") and not api.looks
    convert = uuid4()
    api.say("convert tiny begins", convert)  # its task run comes to the API later
    assert look() == ("build", "convert tiny begins")
    api.tasks = [TaskRun.model_validate({"id": convert, "name": "convert tiny", "task_key": "k", "dynamic_key": "d"})]
    api.say("convert tiny: 20 % of 1.0 GiB", convert)
    began = step.since
    assert look() == ("convert", "20 % of 1.0 GiB") and step.since > began and api.looks == 2
    api.say("a warning: 100 %", convert, logging.WARNING)
    assert look() == ("convert", "a warning: 100 %") and api.looks == 2
    build = api.task("build tiny")
    for layer in range(450):  # of more than one page
        api.say(f"layer {layer}", build)
    look()
    look()
    assert look() == ("build", "layer 449")
    assert log.messages == [f"build: {line.message}" for line in api.lines]
    assert [record.levelname for record in log.records if record.levelno > logging.INFO] == ["WARNING"]
