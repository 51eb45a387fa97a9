"""What a rebuild did, step by step, for a caller that runs the flow in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import JsonValue

Outcome = Literal["promoted", "unchanged", "built", "waiting"]

OVERTAKEN = "Overtaken"
"""The state of a promotion that did not come about, because newer weights were live."""


@dataclass(frozen=True)
class StepReport:
    """One step. `state` is the name of its Prefect state; `seconds` of wall time; `artifact` a reference."""

    name: str
    state: str
    seconds: float
    artifact: str | None = None


@dataclass(eq=False)
class RunningStep:
    """A step that has begun. Whoever shows it reads it again and again, from a thread of their own."""

    name: str
    since: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""
    said: str = ""
    """The last that it or its tool said of how far it is."""

    def become(self, name: str) -> None:
        """Be the step that follows, of a run that somebody else works at."""
        self.name, self.since, self.said = name, time.monotonic(), ""


@dataclass
class Report:
    """Filled while the flow runs. Each step is in `running` until it ends, and is then passed to `on_step`."""

    model: str
    release: int | None = None
    state: Literal["running", "refused", "undecided", "failed"] | Outcome = "running"
    steps: list[StepReport] = field(default_factory=list[StepReport])
    targets: dict[str, int] = field(default_factory=dict[str, int])
    waiting: list[str] = field(default_factory=list[str])
    """The targets on which a person has to decide."""
    flow_run: str = ""
    url: str = ""
    on_step: Callable[[StepReport], None] = lambda step: None
    running: list[RunningStep] = field(default_factory=list[RunningStep])

    @contextmanager
    def runs(self, name: str) -> Generator[RunningStep]:
        """Show that a step runs while the block does, in which `running_step` is that step."""
        step = RunningStep(name)
        self.running.append(step)
        token = _step.set(step)
        try:
            yield step
        finally:
            _step.reset(token)
            self.running.remove(step)

    def add(self, step: StepReport) -> None:
        self.steps.append(step)
        self.on_step(step)

    def add_release(self, target: str, release: int) -> None:
        self.targets[target] = release
        if self.release is None:
            self.release = release

    @property
    def outcome(self) -> Outcome:
        """The final state of a rebuild without an error."""
        if self.waiting:
            return "waiting"
        if any(step.name == "promote" and step.state != OVERTAKEN for step in self.steps):
            return "promoted"
        return "unchanged" if self.targets else "built"

    @property
    def asks(self) -> str:
        """What a person is asked, in a sentence."""
        releases = ", ".join(f"release {self.targets[target]} on '{target}'" for target in self.waiting)
        return f"{self.model}: {releases} waits for a person to approve it"

    def document(self) -> dict[str, JsonValue]:
        """The report as `--json` prints it."""
        shown = ("model", "release", "state", "steps", "targets", "flow_run", "url")
        return {name: value for name, value in asdict(self).items() if name in shown}


_current: ContextVar[Report | None] = ContextVar("report", default=None)
_step: ContextVar[RunningStep | None] = ContextVar("step", default=None)


@contextmanager
def collecting(report: Report) -> Generator[Report]:
    """Let flows called in this block fill `report`."""
    token = _current.set(report)
    try:
        yield report
    finally:
        _current.reset(token)


def current_report(model: str) -> Report:
    """The report that the caller collects, or a fresh one if nobody collects it."""
    return _current.get() or Report(model)


def running_step() -> RunningStep:
    """The step that this code belongs to, or one that nobody looks at."""
    return _step.get() or RunningStep("")
