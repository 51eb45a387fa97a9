"""From a value to a place in a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """`low` lies at `begin`, `high` at `end`; `log` where each step is a factor."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / (high - low or 1.0)
        return self.begin + share * (self.end - self.begin)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-6)) if self.log else value

    def ticks(self) -> Iterator[float]:
        """Round numbers: powers of ten with their doubles and fivefolds, or up to six equal steps."""
        if self.log:
            for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1):
                yield from (each for step in (1, 2, 5) if self.low <= (each := step * 10.0**power) <= self.high)
            return
        step = 10.0 ** math.floor(math.log10(max(self.high - self.low, 1e-9) / 2))
        step *= next(each for each in (1, 2, 5, 10) if (self.high - self.low) / (step * each) <= 6)
        value = math.ceil(self.low / step) * step
        while value <= self.high * (1 + 1e-9):
            yield value
            value += step
