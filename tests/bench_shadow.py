"""What a shadow costs the clients of the live release: requests that are all copied to a candidate, and requests that
are not, in turns (ABBA), at a constant rate through a gateway of its own before a real Triton.

The model is small and sends five pieces, one every 10 ms, so what is measured is the house, not a model.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from random import Random

import httpx
import numpy as np

from tasks.load.arrivals import at_rate
from tasks.load.clock import punctual_loop
from tasks.load.http_stream import Address, Connections
from tasks.load.measure import open_wire
from tasks.load.outcome import Outcome
from tasks.load.percentiles import percentile_of
from tasks.load.prompts import Prompt
from tasks.load.send import Listeners, Load, Pace
from tasks.load.triton_sse import TritonSse
from tasks.load.wire import Sampling
from tasks.targets.traffic import Shadow, copy_to_shadow, traffic
from tests.bench_rollout import MODEL, gateway, store
from tests.deployments.gateway.house import until
from tests.deployments.gateway.moving import Moving
from tests.deployments.node.served import served

REQUESTS = int(os.environ.get("BENCH_REQUESTS", "5000"))
RATE = float(os.environ.get("BENCH_RATE", "40"))
TURNS = 20
SLOTS = 8
LIMIT = 0.02
"""The share of a time by which it may be longer with a shadow, if it is shown to be longer at all."""
_PROMPT = Prompt("count 5 0.01", 5)
_PERCENTILES = (50, 99)
_DRAWS = 2000
_COPY_S = 0.3
"""A copy has ended by then."""


@dataclass(frozen=True)
class Turn:
    """Times in ms."""

    copied: bool
    first: tuple[float, ...]
    whole: tuple[float, ...]


@dataclass(frozen=True)
class Switch:
    """Turns the shadow on and off, and waits until the gateway goes by it."""

    moving: Moving

    def turn(self, *, on: bool) -> None:
        target = self.moving.node.target
        if on:
            copy_to_shadow(target, MODEL, Shadow(release=2, share=1))
        else:
            traffic(target, MODEL).move(lambda known: known.without(2))
        until(lambda: self._copies() == on, "gateway that follows", 30)

    def counted(self) -> Counter[str]:
        """Copies by what became of them."""
        told = httpx.get(f"{self.moving.url}/metrics", trust_env=False, timeout=30).text
        found = re.findall(r'shadow_requests_total\{.*outcome="([a-z-]+)".*\} (\d+)', told)
        return Counter({outcome: int(number) for outcome, number in found})

    def _copies(self) -> bool:
        before = self.counted().total()
        assert self.moving.answers()
        time.sleep(_COPY_S)
        return self.counted().total() > before


def turns() -> Iterator[bool]:
    """Whether each is with the shadow."""
    yield from (number % 4 in (1, 2) for number in range(TURNS))


async def asked(url: str, requests: int, seed: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    wire = TritonSse(MODEL, Connections(Address.parse(url)), Sampling())
    load = Load(wire, Pace(), Listeners(outcomes.append, lambda number, seconds: None, lambda seconds: None))
    await open_wire(wire, 60)
    await load.run(at_rate("poisson", RATE, seed, repeat(_PROMPT, requests)))
    await wire.close()
    return outcomes


def measured(switch: Switch) -> list[Turn]:
    found: list[Turn] = []
    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        runner.run(asked(switch.moving.url, 100, 0))  # what is slow the first time alone
        for number, on in enumerate(turns()):
            switch.turn(on=on)
            outcomes = runner.run(asked(switch.moving.url, REQUESTS // TURNS, number + 1))
            failed = [each.message for each in outcomes if each.failure is not None]
            assert not failed, failed[:3]
            first = tuple(((each.first or each.ended) - each.intended) * 1000 for each in outcomes)
            whole = tuple((each.ended - each.intended) * 1000 for each in outcomes)
            found.append(Turn(on, first, whole))
    return found


def percentiles(found: Sequence[Turn], which: int) -> Mapping[tuple[str, bool], float]:
    return {
        (what, on): percentile_of([ms for each in found if each.copied == on for ms in getattr(each, what)], which)
        for what in ("first", "whole")
        for on in (False, True)
    }


def print_table(found: Sequence[Turn]) -> bool:
    """Each time with and without, and an interval of its change, by a bootstrap over pairs of neighbouring turns.

    Whether none is shown to be longer, by more than the limit.
    """
    pairs = [found[at : at + 2] for at in range(0, len(found), 2)]
    random, fine = Random(1), True
    for which in _PERCENTILES:
        drawn: dict[str, list[float]] = {"first": [], "whole": []}
        for _ in range(_DRAWS):
            chosen = [turn for pair in random.choices(pairs, k=len(pairs)) for turn in pair]
            of = percentiles(chosen, which)
            for what, changes in drawn.items():
                changes.append(of[what, True] / of[what, False] - 1)
        of = percentiles(found, which)
        for what, name in (("first", "first token"), ("whole", "whole answer")):
            change = of[what, True] / of[what, False] - 1
            low, high = np.quantile(drawn[what], (0.025, 0.975))
            fine = fine and (low <= 0 or change <= LIMIT)
            print(
                f"  {name:12} p{which}: {of[what, False]:7.2f} ms without, {of[what, True]:7.2f} ms with, "
                f"{change:+.1%} ({low:+.1%} … {high:+.1%})"
            )
    return fine


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="enginehouse-bench-") as name:
        folder = Path(name)
        with store(folder) as fleet, served(fleet, folder / "node") as node, gateway(fleet) as (url, _):
            node.release(MODEL, slots=SLOTS)
            node.wait_for(MODEL, 1)
            moving = Moving(node, url, MODEL)
            until(moving.answers, "gateway", 60)
            node.release(MODEL, slots=SLOTS, public=False)
            node.wait(lambda: node.state(MODEL, 2) == "ready", "candidate")
            switch = Switch(moving)
            found = measured(switch)
            asked_of = Counter(
                {on: sum(len(each.first) for each in found if each.copied == on) for on in (False, True)}
            )
            print(f"\n{asked_of[False]} requests without a shadow and {asked_of[True]} with one, {RATE:g} a second")
            fine = print_table(found)
            print(f"  copies: {dict(switch.counted())}")
            return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
