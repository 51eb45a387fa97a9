"""The flows by name, for whatever starts, deploys or watches them. Imports no Prefect."""

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

STEPS = (
    *("resolve", "fetch", "export", "convert", "build", "upload", "assemble", "roll_out", "reference", "validate"),
    *("approval", "shift_traffic", "promote", "watch", "give_back"),
)
"""The steps of a rebuild by the names of their tasks, in their order."""
AWAITS = "awaits:"
"""How the tag of a run begins by which it waits for a build; the build's run follows."""
COPIED = "build: "
"""How the lines begin that a rebuild copies from the log of a build into its own."""


def step_of(task_run: str) -> str:
    """The step of a task run by its name, which begins with the step's words; empty if it is no step's."""
    words = task_run.replace(" ", "_")
    return next((step for step in STEPS if words == step or words.startswith((f"{step}_", f"{step}-"))), "")
