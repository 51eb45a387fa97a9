"""One measurement: a request to see that there is an answer at all, then the load, then the figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from infra.errors import EnginehouseError
from tasks.load.arrivals import Ask
from tasks.load.collected import MOST_REQUESTS, Collected
from tasks.load.metrics import MetricName
from tasks.load.outcome import Hearing, RequestFailed
from tasks.load.prompts import Prompt
from tasks.load.send import Listeners, Load, Pace
from tasks.load.summary import Summary, summary
from tasks.load.wire import Wire

_FIRST = Prompt("Say hello.", 4)


class Measurement:
    """A load of one model. `end` may be called while `run` runs; `collected` has what there is so far."""

    def __init__(self, wire: Wire, pace: Pace, warm_up: int) -> None:
        self.collected = Collected(warm_up)
        self._wire, self._timeout_s = wire, pace.timeout_s
        listeners = Listeners(self.collected.outcome, self.collected.gap, self.collected.late)
        self._load = Load(wire, pace, listeners)

    async def run(self, asks: Iterator[Ask], opened: Callable[[], None] = lambda: None) -> None:
        """Send all; `opened` is called when the model has answered a first request, and may be ended from then on.

        Raises EnginehouseError, code `load-unanswered`, if it does not answer that.
        """
        try:
            await open_wire(self._wire, self._timeout_s)
            opened()
            await self._load.run(islice(asks, MOST_REQUESTS))
        finally:
            await self._wire.close()

    @property
    def end(self) -> Callable[[], None]:
        """Gives up what runs, and sends no more."""
        return self._load.end

    @property
    def ended(self) -> bool:
        """Whether somebody has ended it."""
        return self._load.ended

    def summary(self, limits: Mapping[MetricName, float], most_lateness_ms: float) -> Summary:
        return summary(self.collected, limits, given_up=self._load.given_up, most_lateness_ms=most_lateness_ms)


async def open_wire(wire: Wire, timeout_s: float) -> None:
    """Learn what the model takes, and ask it once. Raises EnginehouseError, code `load-unanswered`."""
    try:
        async with asyncio.timeout(timeout_s):
            await wire.open()
            await wire.prepare(_FIRST)(Hearing(lambda seconds: None))
    except (RequestFailed, TimeoutError) as error:
        why = f"{error.kind}: {error}" if isinstance(error, RequestFailed) else f"nothing came within {timeout_s:g} s"
        raise EnginehouseError(
            f"the model does not answer: {why}",
            hint="is it served there? see: enginehouse status",
            code="load-unanswered",
        ) from error


def require_useful(found: Summary) -> None:
    """Raise EnginehouseError for figures that say nothing of the model.

    Code `load-nothing-answered`, or `load-late`: the load itself was late.
    """
    if not found.answered:
        raise EnginehouseError(
            f"none of {found.requests} requests was answered",
            hint="the kinds of failures are above",
            code="load-nothing-answered",
        )
    if not found.lateness.on_time:
        late = max(found.lateness.sender_p99, found.lateness.loop_p99)
        raise EnginehouseError(
            f"the load was {late:.1f} ms late at its 99th percentile, and may be {found.lateness.limit:g} ms",
            hint="run it on a machine with a free core, or ask for less",
            code="load-late",
        )
