"""The fleet in the Prefect UI: what `enginehouse status` tells, as the artifact `fleet`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
from prefect import get_run_logger
from prefect.artifacts import Artifact, acreate_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from flows.catalogue import current_catalogue
from flows.names import FLEET_KEY, WORK_ON_A_MODEL
from flows.run_filters import NOT_ENDED, read_all
from flows.ui import artifact_key
from infra import settings
from infra.errors import EnginehouseError
from infra.images import images
from infra.s3.bucket import Bucket
from tasks.explain.fleet import read_fleet
from tasks.explain.fleet_view import Fleet, ModelRow, Run
from tasks.explain.seen_records import SeenRecords
from tasks.report.fleet_words import HEADS, NOTHING, TargetRows, by_target, cells, details, troubled_nodes
from tasks.report.markdown import plain
from tasks.report.shown import cell
from tasks.watch.verdict import listed


async def show_fleet(*, again: bool = False) -> None:
    """Show the fleet as it is now, if there is a run: beside what was shown before, or with `again` in its place.

    The page tells of the work that was done; where it cannot be made, the work is done all the same.
    """
    if FlowRunContext.get() is None:
        return
    try:
        fleet = await _fleet()
        about = f"the fleet as it was on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, as `enginehouse status` tells"
        last = await Artifact.aget(FLEET_KEY) if again else None
        if last is None:
            await acreate_markdown_artifact(key=FLEET_KEY, description=about, markdown=page(fleet))
        else:
            async with get_client() as client:
                await client.update_artifact(last.id, ArtifactUpdate(description=about, data=page(fleet)))
    except (EnginehouseError, httpx.HTTPError) as error:
        get_run_logger().warning("the page of the fleet stays as it was: %s", error)


async def _fleet() -> Fleet:
    """What is to be seen from here, with the runs in progress but this one."""
    config = settings.load()
    bucket, runs = Bucket.at(config.store), await _runs()
    catalogue = await current_catalogue(config)

    def look() -> Fleet:
        seen = SeenRecords.load(bucket)
        offered = listed(images(config.images), config.watch_avoid)
        fleet = read_fleet(bucket, catalogue, runs=runs, offered=offered, seen=seen)
        seen.keep()
        return fleet.only()

    return await asyncio.to_thread(look)


async def _runs() -> tuple[Run, ...]:
    going = FlowRunFilterState(type=FlowRunFilterStateType(any_=[*NOT_ENDED, StateType.CANCELLING]))
    found: list[Run] = []
    async with get_client() as client:
        for flow in WORK_ON_A_MODEL:
            of_flow = FlowFilter(name=FlowFilterName(any_=[flow.name]))
            found += [
                Run(
                    str(run.id),
                    flow.name,
                    str(run.parameters.get("model", "")),
                    run.state_name or "",
                    run.estimated_run_time.total_seconds(),
                )
                for run in await read_all(client, FlowRunFilter(state=going), of_flow)
                if str(run.id) != str(flow_run.id)
            ]
    return tuple(found)


def page(fleet: Fleet) -> str:
    """The fleet as Markdown: a table for each target, and below it what there is to say of its models.

    Links begin at the page of an artifact: Prefect has two UIs, one of them in a folder, and a person stays in his.
    """
    parts = [part for rows in by_target(fleet) for part in _target(rows)] or [NOTHING]
    if troubles := list(troubled_nodes(fleet)):
        parts += ["## Nodes in trouble", "\n".join(f"- {plain(cell(trouble))}" for trouble in troubles)]
    return "\n\n".join(["# The fleet", *parts]) + "\n"


def _target(rows: TargetRows) -> Iterator[str]:
    yield f"## {plain(rows.title)}"
    lines = [HEADS, ("---",) * len(HEADS), *map(_row, rows.models)]
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if said := [line for row in rows.models for line in _details(row)]:
        yield "\n".join(said)


def _row(row: ModelRow) -> tuple[str, ...]:
    name, *others = (plain(cell(text)) for text in cells(row))
    if row.release is not None or row.newest is not None:
        name = f"[{name}](../key/{artifact_key('report', row.model, row.target)})"
    return name, *others


def _details(row: ModelRow) -> Iterator[str]:
    for each in details(row):
        text = plain(cell(each.text))
        if each.run is not None:
            text = f"[{text}](../../runs/flow-run/{each.run.id})"
        yield f"- {plain(cell(row.model))}, **{each.label}**: {text}"
