"""Asks both releases in turns. All times are those of `tasks.load`, from the moment at which a request was due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from infra.errors import EnginehouseError
from tasks.gates.performance.rounds import Item, Round
from tasks.load.arrivals import Ask, at_rate, when_free
from tasks.load.buckets import Buckets
from tasks.load.measure import open_wire
from tasks.load.outcome import Outcome
from tasks.load.send import Listeners, Load, Pace
from tasks.load.wire import Wire
from tasks.models.gate_specs.performance import PerformanceSpec

Side = Literal["candidate", "live"]
Wires = Sequence[Mapping[Side, Wire]]
"""Those of each node."""

_HOPELESS = 20
"""After so many failed requests of the candidate, if they are most of them, there is nothing more to learn."""


@dataclass(frozen=True)
class Asked:
    """One prompt, and what became of it."""

    item: Item
    round: int
    outcomes: Mapping[Side, Outcome]


@dataclass
class Turns:
    """What was measured so far. `seconds` is how long each side had its turns."""

    asked: list[Asked] = field(default_factory=list[Asked])
    seconds: dict[Side, float] = field(default_factory=dict[Side, float])
    lateness: Buckets = field(default_factory=Buckets)
    unanswered: dict[Side, str] = field(default_factory=dict[Side, str])
    """Sides that did not answer a first request, and why."""
    cut: str = ""
    """Why not all rounds were measured."""

    def failed(self, side: Side) -> list[Outcome]:
        return [each.outcomes[side] for each in self.asked if each.outcomes[side].failure is not None]


async def measure(asked: PerformanceSpec, rounds: Sequence[Round], wires: Wires, say: Callable[[str], None]) -> Turns:
    """All rounds, as far as the time goes that the model's file gives them."""
    turns = Turns()
    try:
        if await _open(wires, turns, asked.timeout):
            with suppress(TimeoutError):
                async with asyncio.timeout(asked.most_seconds):
                    await _measure(asked, rounds, wires, turns, say)
                    return turns
            done = len({each.round for each in turns.asked})
            turns.cut = f"{done} of {len(rounds)} rounds were done within {asked.most_seconds:g} s"
        return turns
    finally:
        for sides in wires:
            for wire in sides.values():
                await wire.close()


async def _open(wires: Wires, turns: Turns, timeout_s: float) -> bool:
    for sides in wires:
        for side, wire in sides.items():
            try:
                await open_wire(wire, timeout_s)
            except EnginehouseError as error:
                turns.unanswered[side] = error.message
    return not turns.unanswered


async def _measure(
    asked: PerformanceSpec, rounds: Sequence[Round], wires: Wires, turns: Turns, say: Callable[[str], None]
) -> None:
    # What both do first, compiling and filling caches, is in none of the figures.
    for sides in wires:
        for wire in sides.values():
            await _turn(asked, rounds[0], rounds[0].items[: asked.warm_up], wire, Buckets())
    for each in rounds:
        sides = [*wires[each.node].items()]
        found: dict[Side, dict[int, Outcome]] = {}
        for side, wire in sides if each.candidate_first else reversed(sides):
            began = time.monotonic()
            found[side] = await _turn(asked, each, each.items, wire, turns.lateness)
            turns.seconds[side] = turns.seconds.get(side, 0.0) + time.monotonic() - began
        turns.asked += [
            Asked(item, each.number, {side: outcomes[place] for side, outcomes in found.items()})
            for place, item in enumerate(each.items)
        ]
        say(f"round {each.number + 1} of {len(rounds)}: {len(turns.asked)} prompts")
        failed = len(turns.failed("candidate"))
        if failed >= _HOPELESS and failed > len(turns.asked) / 2:
            turns.cut = f"{failed} of {len(turns.asked)} requests had failed by then"
            return


async def _turn(
    asked: PerformanceSpec, each: Round, items: Sequence[Item], wire: Wire, lateness: Buckets
) -> dict[int, Outcome]:
    """The outcomes of one turn by the place of each prompt in its round."""
    outcomes: dict[int, Outcome] = {}

    def heard(outcome: Outcome) -> None:
        outcomes[outcome.number] = outcome
        lateness.add(max(outcome.begun - outcome.intended, 0))

    at_once = None if asked.rate is not None else asked.concurrency
    listeners = Listeners(heard, lambda number, seconds: None, lambda seconds: lateness.add(max(seconds, 0)))
    await Load(wire, Pace(at_once, asked.timeout), listeners).run(_asks(asked, each, items))
    return outcomes


def _asks(asked: PerformanceSpec, each: Round, items: Sequence[Item]) -> Iterator[Ask]:
    """At a rate, both sides of a round have the same moments."""
    prompts = (item.prompt for item in items)
    if asked.rate is None:
        return when_free(prompts)
    return at_rate("poisson", asked.rate, asked.seed + each.number, prompts)
