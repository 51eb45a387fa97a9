"""The log of a run and of the builds that it waits for, in order of time, read on from where it was read to."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

import httpx2
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter

from deployments.cli.rebuild_runs import PAGE, FlowRun
from flows.names import COPIED, step_of

_T = TypeVar("_T")

_LATE = timedelta(seconds=15)
"""How much later than its neighbours a line may come: a run sends its lines every two seconds, from several threads."""


class Line(BaseModel):
    """One line of a log, as Prefect's API tells it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: UUID
    timestamp: datetime
    level: int
    message: str
    flow_run_id: UUID
    task_run_id: UUID | None = None


class _TaskRun(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    id: UUID
    name: str


_LINES = TypeAdapter(list[Line])
_TASK_RUNS = TypeAdapter(list[_TaskRun])


@dataclass
class RunLog:
    """The log of `run`, which its caller renews. What the run copied from a build is left out: it is read there."""

    prefect: httpx2.Client
    run: FlowRun
    _parts: dict[UUID, _Part] = field(default_factory=dict[UUID, "_Part"])
    """The logs of the run and of its builds."""
    _steps: dict[UUID, str] = field(default_factory=dict[UUID, str])
    """The steps of their task runs."""

    def fresh(self, *, last: bool) -> Iterator[tuple[Line, str]]:
        """The lines that no call has given before, each with its step, or an empty one.

        A line whose step cannot be told yet is left to the next call, unless this is the `last`. Raises as the client
        does; the next call then goes on where this one has stopped.
        """
        for id in (self.run.id, *self.run.builds):
            self._parts.setdefault(id, _Part(self.prefect, id))
        self._learn_steps()
        parts = [part.fresh() for part in self._parts.values()]
        for line in heapq.merge(*parts, key=lambda line: line.timestamp):
            part = self._parts[line.flow_run_id]
            step = "" if line.task_run_id is None else self._steps.get(line.task_run_id)
            # A task run comes to the API apart from its lines.
            if step is None and not last and not part.leaves_soon(line):
                continue
            part.note(line)
            if not self._is_copy(line):
                yield line, step or ""

    def _is_copy(self, line: Line) -> bool:
        may_have_copies = len(self._parts) > 1 and line.flow_run_id == self.run.id
        return may_have_copies and line.task_run_id is None and line.message.startswith(COPIED)

    def _learn_steps(self) -> None:
        runs: list[JsonValue] = [str(id) for id in self._parts]
        wanted: dict[str, JsonValue] = {"task_runs": {"flow_run_id": {"any_": runs}}}
        for found in _all(self.prefect, "/task_runs/filter", wanted, _TASK_RUNS):
            self._steps[found.id] = step_of(found.name)


@dataclass
class _Part:
    """The log of one flow run."""

    prefect: httpx2.Client
    id: UUID
    _latest: datetime | None = None
    _given: dict[UUID, datetime] = field(default_factory=dict[UUID, datetime])
    """The lines that were given, and among which one may still come."""

    def fresh(self) -> Iterator[Line]:
        """The lines that were not noted, as far as they may still come."""
        wanted: dict[str, JsonValue] = {"flow_run_id": {"any_": [str(self.id)]}}
        if self._latest is not None:
            since = self._latest - _LATE
            wanted["timestamp"] = {"after_": since.isoformat()}
            self._given = {id: at for id, at in self._given.items() if at >= since}
        # A line that comes between two pages moves others to the second one, which were in the first.
        once: set[UUID] = set()
        for line in _all(self.prefect, "/logs/filter", {"logs": wanted, "sort": "TIMESTAMP_ASC"}, _LINES):
            if line.id not in self._given and line.id not in once:
                once.add(line.id)
                yield line

    def note(self, line: Line) -> None:
        """Take the line for given."""
        self._given[line.id] = line.timestamp
        self._latest = line.timestamp if self._latest is None else max(self._latest, line.timestamp)

    def leaves_soon(self, line: Line) -> bool:
        """Whether the line is about to be too old to be read again."""
        return self._latest is not None and line.timestamp < self._latest - _LATE / 2


def _all(
    prefect: httpx2.Client, path: str, wanted: Mapping[str, JsonValue], form: TypeAdapter[list[_T]]
) -> Iterator[_T]:
    """What a filter of the API finds, asked for page by page."""
    offset, last = 0, PAGE
    while last == PAGE:
        answer = prefect.post(path, json={**wanted, "limit": PAGE, "offset": offset})
        answer.raise_for_status()
        page = form.validate_json(answer.content)
        yield from page
        last = len(page)
        offset += last
