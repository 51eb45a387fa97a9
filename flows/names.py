"""The flows by name, their tags and the states of their own, for whatever starts or watches them.

Imports no Prefect.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlowName:
    """A flow, as Prefect knows it. Its function has the same name, and lies in the module of that name."""

    name: str

    @property
    def module(self) -> str:
        return f"flows.{self.name}"

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of its deployments and runs: whose it is, on a server of many, and of which kind."""
        return ("enginehouse", f"kind:{self.name}")

    @property
    def deployment(self) -> str:
        """The name by which Prefect's API finds its deployment. `build_engine` has one for each pool instead."""
        return f"{self.name}/{self.name}"


REBUILD = FlowName("rebuild")
ROLLBACK = FlowName("rollback")
APPROVE = FlowName("approve")
COLLECT_GARBAGE = FlowName("collect_garbage")
WATCH_RELEASES = FlowName("watch_releases")
FINETUNED = FlowName("finetuned")
RECONCILE = FlowName("reconcile")
BUILD_ENGINE = FlowName("build_engine")

ON_DEFAULT_POOL = (REBUILD, ROLLBACK, APPROVE, COLLECT_GARBAGE, WATCH_RELEASES, FINETUNED, RECONCILE)
"""Flows with one deployment, on the pool `default`."""
FLOWS = (*ON_DEFAULT_POOL, BUILD_ENGINE)
WORK_ON_A_MODEL = (REBUILD, ROLLBACK, APPROVE)
"""Flows with a parameter `model`, whose runs in progress the fleet shows."""

REFUSED = "Refused"
"""The state of a run, and of its step, whose candidate a gate refused. Its type is that of a failure."""
UNDECIDED = "Undecided"
"""The same where the gates could not decide."""
WAITING = "Waiting"
"""The state of a rebuild, and of its step, that leaves a candidate to a person's decision."""

FLEET_KEY = "fleet"
"""The key of the artifact that shows the fleet."""

STEPS = (
    *("resolve", "fetch", "export", "convert", "build", "upload", "assemble", "roll_out", "reference", "validate"),
    *("approval", "shift_traffic", "promote", "watch", "give_back"),
)
"""The steps of a rebuild by the names of their tasks, in their order."""
AWAITS = "awaits:"
"""How the tag of a run begins by which it waits for a build; the build's run follows."""
COPIED = "build: "
"""How the lines begin that a rebuild copies from the log of a build into its own."""


def model_tag(model: str) -> str:
    """The tag of runs that are about a model."""
    return f"model:{model}"


def target_tag(target: str) -> str:
    """The tag of runs that are about a target."""
    return f"target:{target}"


def step_of(task_run: str) -> str:
    """The step of a task run by its name, which begins with the step's words; empty if it is no step's."""
    words = task_run.replace(" ", "_")
    return next((step for step in STEPS if words == step or words.startswith((f"{step}_", f"{step}-"))), "")
