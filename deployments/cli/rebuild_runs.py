"""The runs of a model's rebuilds on a Prefect server, wherever they ran, and how one has ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import httpx2
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from flows.names import AWAITS, REBUILD, REFUSED, UNDECIDED, WAITING
from infra import errors
from infra.errors import EnginehouseError, GateRefused, GateUndecided, StepFailed, UsageError

RUN_NAME = "rebuild {model}"
"""What a run of a rebuild is called once it has begun."""
PAGE = 200
"""The most that Prefect's API answers at once."""
_NOT_ENDED = ("RUNNING", "CANCELLING", "PAUSED", "PENDING", "SCHEDULED")
"""Types of states. Those come first in which a run is more likely to say something."""
_BY_NAME: dict[str, type[EnginehouseError]] = {
    **{name: found for name, found in vars(errors).items() if isinstance(found, type)},
    REFUSED: GateRefused,
    UNDECIDED: GateUndecided,
}
"""Classes of errors, by their own names and by those of the states that they end a run in."""
_RAISED = re.compile(
    rf"(?:Flow run encountered an exception: )?(?:(?P<error>{'|'.join(_BY_NAME)}): )?"
    r"(?P<text>.*) \[(?P<code>[a-z-]+)\](?:\n\nhint: (?P<hint>.*))?",
    re.DOTALL,
)
"""A state's message, if an error of ours ended the run."""


class _State(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    message: str | None = None


class FlowRun(BaseModel):
    """One run, as Prefect's API tells of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: UUID
    name: str
    tags: tuple[str, ...] = ()
    parameters: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    state_type: str | None = None
    state_name: str | None = None
    state: _State | None = None
    expected_start_time: datetime | None = None

    @property
    def has_ended(self) -> bool:
        return self.state_type not in (*_NOT_ENDED, None)

    @property
    def builds(self) -> tuple[UUID, ...]:
        """The runs of the builds that it waits or waited for."""
        return tuple(UUID(tag.removeprefix(AWAITS)) for tag in self.tags if tag.startswith(AWAITS))

    @property
    def model(self) -> str:
        """The model that it is about; empty for a flow that is about none. A build has the whole file."""
        given = self.parameters.get("model", "")
        return str(given.get("name", "") if isinstance(given, dict) else given)

    @property
    def error(self) -> EnginehouseError | None:
        """What is wrong with a run that has ended, with the exit code of a rebuild; None if it is well."""
        message = (self.state.message if self.state is not None else "") or ""
        if self.state_name == WAITING:
            hint = f"`enginehouse approve {self.model}` or `enginehouse reject {self.model}`"
            return GateUndecided(message, hint=hint, code="approval-needed")
        if self.state_type == "COMPLETED":
            return None
        found = _RAISED.fullmatch(message)
        if found is None:
            told = f"{self.name} ended as {self.state_name}{f': {message}' if message else ''}"
            return StepFailed(told, hint="its log above says more; `enginehouse doctor` looks", code="run-failed")
        raised = _BY_NAME.get(found["error"] or self.state_name or "", StepFailed)
        return raised(found["text"], hint=found["hint"] or "", code=found["code"])


_RUNS = TypeAdapter(list[FlowRun])


@dataclass(frozen=True)
class RebuildRuns:
    """Looks for the runs of one model's rebuilds. Calls raise as the client does."""

    prefect: httpx2.Client
    model: str

    def newest(self) -> FlowRun:
        """The run in progress, or else the one that began last. Raises UsageError `run-missing`."""
        known = self._in_progress() or self._named(1)
        if not known:
            raise UsageError(
                f"Prefect knows no run of a rebuild of {self.model}",
                hint=f"`enginehouse rebuild {self.model}` begins one; `enginehouse status` shows what is released",
                code="run-missing",
            )
        return known[0]

    def by_id(self, beginning: str) -> FlowRun:
        """The run of this id, or of an id that begins so. Raises UsageError `run-missing`."""
        try:
            found = self.read(UUID(beginning))
        except ValueError:
            known = {run.id: run for run in (*self._in_progress(), *self._named(PAGE))}
            alike = [run for id, run in known.items() if str(id).startswith(beginning.lower())]
            if len(alike) == 1:
                return alike[0]
            count = f"{len(alike)} rebuilds" if alike else "no rebuild"
            raise _missing(f"there is {count} of {self.model} whose id begins with '{beginning}'") from None
        if found.model not in ("", self.model):
            raise _missing(f"run {found.id} is of {found.model}, and not of {self.model}")
        return found

    def read(self, id: UUID) -> FlowRun:
        """The run of this id, as it is now. Raises UsageError `run-missing`."""
        answer = self.prefect.get(f"/flow_runs/{id}")
        if answer.status_code == 404:
            raise _missing(f"Prefect knows no run {id}")
        answer.raise_for_status()
        return FlowRun.model_validate_json(answer.content)

    def _in_progress(self) -> list[FlowRun]:
        """Those that have not ended, whatever they are called before they begin; first what runs."""
        found = self._filter({"state": {"type": {"any_": [*_NOT_ENDED]}}}, PAGE)
        return [run for state in _NOT_ENDED for run in found if run.state_type == state and run.model == self.model]

    def _named(self, most: int) -> Sequence[FlowRun]:
        """Those of this model, newest first: Prefect finds no run by its parameters, but by its name."""
        return self._filter({"name": {"any_": [RUN_NAME.format(model=self.model)]}}, most)

    def _filter(self, wanted: dict[str, JsonValue], most: int) -> list[FlowRun]:
        asked = {
            "flows": {"name": {"any_": [REBUILD.name]}},
            "flow_runs": wanted,
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": most,
        }
        answer = self.prefect.post("/flow_runs/filter", json=asked)
        answer.raise_for_status()
        return _RUNS.validate_json(answer.content)


def _missing(what: str) -> UsageError:
    hint = "the address of a run in Prefect's UI ends with its id; without --run it is the newest rebuild"
    return UsageError(what, hint=hint, code="run-missing")
