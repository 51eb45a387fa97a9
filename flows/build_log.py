"""The log of a build, as the run that waits for it has it: copied into its own log, and the step that the build is at.

The log is the one thing by which a worker elsewhere tells how far it is. So whoever watches sees it a few seconds late:
a run sends its lines every two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, TaskRunFilter, TaskRunFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log, StateType
from prefect.client.schemas.sorting import LogSort

from flows.names import COPIED, step_of
from flows.report import RunningStep


@dataclass
class BuildLog:
    """The log of one build, read as far as it goes. `shown` is the step that whoever watches our run sees."""

    client: PrefectClient
    build: UUID
    model: str
    shown: RunningStep
    _copied: int = 0
    _steps: dict[UUID, str] = field(default_factory=dict[UUID, str])

    async def copy(self) -> None:
        """Copy the lines that have come since the last call."""
        log = get_run_logger()
        lines = await self.client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.build])),
            offset=self._copied,
            sort=LogSort.TIMESTAMP_ASC,
        )
        self._copied += len(lines)
        await self._learn_steps(lines)
        for line in lines:
            log.log(line.level, "%s%s", COPIED, line.message)
            self._show(line)

    def tell_of(self, run: FlowRun) -> None:
        """Show what a build that has not begun waits for."""
        if run.state_type in (StateType.SCHEDULED, StateType.PAUSED):
            self.shown.said = f"waits for a worker of pool {run.work_pool_name}"
        elif run.state_type is StateType.PENDING:
            self.shown.said = "its process starts"

    async def _learn_steps(self, lines: list[Log]) -> None:
        unknown = {line.task_run_id for line in lines} - {None} - self._steps.keys()
        if not unknown:
            return
        # A task run comes to the API apart from its lines, and may come after the first of them.
        runs = await self.client.read_task_runs(
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[self.build]))
        )
        self._steps |= {run.id: step_of(run.name) for run in runs}

    def _show(self, line: Log) -> None:
        step = "" if line.task_run_id is None else self._steps.get(line.task_run_id, "")
        if step and step != self.shown.name:
            self.shown.become(step)
        # Lines of a step that say how far it is begin with its label, which is shown already.
        self.shown.said = line.message.removeprefix(f"{step} {self.model}: ")
