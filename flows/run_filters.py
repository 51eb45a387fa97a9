"""How Prefect's API is asked for flow runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

PAGE = 200
"""The most that Prefect's API answers at once."""

T = TypeVar("T")

NOT_ENDED = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED)
"""States of runs that nobody has ended or asked to end."""


async def read_all(client: PrefectClient, wanted: FlowRunFilter, of_flows: FlowFilter | None = None) -> list[FlowRun]:
    """All flow runs that a filter finds, page by page, each once.

    They are asked for in one order: without it the server may answer each page in another. A run that leaves the filter
    between two pages can hide one other, which the next look finds.
    """
    found: dict[object, FlowRun] = {}
    offset, last = 0, PAGE
    while last == PAGE:
        page = await client.read_flow_runs(
            flow_filter=of_flows, flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=offset
        )
        found |= {run.id: run for run in page}
        last = len(page)
        offset += last
    return list(found.values())


def pages(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """The values in parts that one filter may name: an answer has no more runs than a page."""
    return (values[start : start + PAGE] for start in range(0, len(values), PAGE))
