"""When requests come: at a constant rate, as a Poisson process, or as soon as a sender is free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from tasks.load.prompts import Prompt

Arrivals = Literal["constant", "poisson"]


@dataclass(frozen=True)
class Ask:
    """A request that is to come `after_s` seconds after the start; None: as soon as a sender is free."""

    number: int
    prompt: Prompt
    after_s: float | None


def at_rate(arrivals: Arrivals, rate: float, seed: int, prompts: Iterator[Prompt]) -> Iterator[Ask]:
    """`rate` requests a second, in equal steps or in steps of an exponential distribution."""
    random = Random(f"{seed}/arrivals")
    after = 0.0
    for number, prompt in enumerate(prompts):
        # Multiplied, not added up: equal steps stay equal after a million of them.
        yield Ask(number, prompt, number / rate if arrivals == "constant" else after)
        after += random.expovariate(rate)


def when_free(prompts: Iterator[Prompt]) -> Iterator[Ask]:
    """As many at once as there are senders."""
    for number, prompt in enumerate(prompts):
        yield Ask(number, prompt, None)
