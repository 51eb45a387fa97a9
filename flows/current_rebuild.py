"""What a rebuild keeps of itself beside its artifacts: what it makes, its report, and the standing of new weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import JsonValue

from flows.catalogue import catalogue_folder
from flows.fleet_page import show_fleet
from flows.report import Report, current_report
from infra import settings
from infra.errors import EnginehouseError, GateRefused, GateUndecided
from infra.s3.bucket import Bucket
from tasks.finetuned.records import Standing, TunedWeights, newer_ones, settle, with_newest
from tasks.models.catalogue import catalogue_entry
from tasks.models.overrides import Overridden, override
from tasks.models.spec import Model
from tasks.steps.nodes import require_nodes
from tasks.targets.target import Target
from tasks.watch.record import followed_version
from tasks.watch.verdict import version_in_use


@dataclass(frozen=True)
class CurrentRebuild:
    """One rebuild of a model of the catalogue."""

    bucket: Bucket
    report: Report
    written: Model
    """The model as its file says."""
    asked: Overridden
    """The same with the weights and the version that a rebuild takes now, and with what its caller overrides."""
    tuned: TunedWeights | None
    """The weights of an event that it takes in place of the file's."""

    @property
    def model(self) -> Model:
        return self.asked.model

    @property
    def lost(self) -> Mapping[str, JsonValue]:
        """Fields of the file's recipe that the kind which the caller asked for does not have."""
        return self.asked.lost

    async def require_nodes(self, asked: Sequence[str]) -> None:
        """Raise UsageError `target-without-node` if some target of this rebuild has no node: nothing is built then."""
        targets = [Target(self.bucket, name) for name in asked or self.model.targets]
        for line in await asyncio.to_thread(require_nodes, targets):
            get_run_logger().warning("%s", line)

    async def overtaken(self) -> bool:
        """Whether newer weights passed while this run was building: older ones must not take their place."""
        newer = await asyncio.to_thread(self.has_newer)
        if newer:
            get_run_logger().warning("nothing is rolled out: meanwhile newer weights have passed their gates")
        return newer

    def has_newer(self) -> bool:
        """Whether newer weights have passed their gates, which are live or about to be."""
        return newer_ones(self.bucket, self.written, self.tuned) is not None

    async def settle(self, standing: Standing) -> None:
        """Note what became of the weights, where an event brought them.

        That they passed is noted before the promotion: a run with older weights, which comes to its own promotion after
        that, then finds it. That they are live is noted after it: until then they wait, in case this run dies.
        """
        if self.tuned is not None:
            await asyncio.to_thread(settle, self.bucket, self.tuned, standing)


@asynccontextmanager
async def rebuilding(model: str, recipe: Mapping[str, str], runtime: str) -> AsyncGenerator[CurrentRebuild]:
    """Decide what a rebuild makes, and note in its report how it ends. If something was to do, the fleet is shown then.

    Weights that the gates refuse are not taken again, unless another recipe or version may be to blame.
    """
    report = current_report(model)
    report.flow_run, report.state = str(flow_run.id), "failed"
    current = await _begin(report, model, recipe, runtime)
    try:
        yield current
    except EnginehouseError as error:
        if isinstance(error, GateRefused):
            report.state = "refused"
            if not recipe and not runtime:
                await current.settle("refused")
        elif isinstance(error, GateUndecided):
            report.state = "undecided"
        await show_fleet()
        raise
    report.state = report.outcome
    if report.state != "unchanged":
        await show_fleet()


async def _begin(report: Report, model: str, recipe: Mapping[str, str], runtime: str) -> CurrentRebuild:
    config = settings.load()
    written = await asyncio.to_thread(lambda: catalogue_entry(catalogue_folder(config, model), model))
    bucket = Bucket.at(config.store)
    newest, tuned = await asyncio.to_thread(with_newest, bucket, written)
    if tuned is not None:
        get_run_logger().info("the weights are those that an event brought: %s", newest.origin)
    version = runtime or await asyncio.to_thread(_version_in_use, bucket, newest)
    return CurrentRebuild(bucket, report, written, override(newest, recipe=recipe, tensorrt_llm=version), tuned)


def _version_in_use(bucket: Bucket, model: Model) -> str | None:
    """Returns None for the version of the model's file. A pinned model needs no look at the store."""
    if model.updates.policy == "pinned":
        return None
    return version_in_use(model, followed_version(bucket, model.name))
