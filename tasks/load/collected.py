"""The outcomes of a run in columns of numbers: 41 bytes a request, and buckets where there are more than requests."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.load.buckets import Buckets
from tasks.load.metrics import MetricName
from tasks.load.outcome import FailureKind, Outcome

MOST_REQUESTS = 2_000_000
"""Of one run: 82 MB."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Failures:
    """How many requests failed in one way, and what the server said of the first."""

    kind: FailureKind
    count: int
    first_message: str


class Collected:
    """What was measured so far. The first `warm_up` requests are counted and left out. Times in milliseconds.

    A request that ran out of the load's time counts with the time that it waited: left out, a server that hangs would
    look fast. Others that failed have no times.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._moment, self._first, self._whole = array("d"), array("d"), array("d")
        self._output, self._input = array("d"), array("d")
        self._answered = array("b")
        self.gaps, self.lateness, self.pulse, self.queued = Buckets(), Buckets(), Buckets(), Buckets()
        self._failures: Counter[FailureKind] = Counter()
        self._messages: dict[FailureKind, str] = {}
        self._start, self._end = math.inf, -math.inf
        self.warmed_up = 0
        self.answered = 0

    def outcome(self, outcome: Outcome) -> None:
        if outcome.number < self._warm_up:
            self.warmed_up += 1
            return
        self._start, self._end = min(self._start, outcome.intended), max(self._end, outcome.ended)
        self.lateness.add(max(outcome.begun - outcome.intended, 0))
        self.queued.add(outcome.sent - outcome.begun)
        if outcome.failure is None:
            self.answered += 1
        else:
            self._failures[outcome.failure] += 1
            self._messages.setdefault(outcome.failure, outcome.message)
        if outcome.failure in (None, "timeout"):
            whole = outcome.ended - outcome.intended
            self._moment.append(outcome.intended)
            self._whole.append(whole * 1000)
            self._first.append(whole * 1000 if outcome.first is None else (outcome.first - outcome.intended) * 1000)
            answered = outcome.failure is None
            self._answered.append(answered)
            self._output.append(_number(outcome.output_tokens if answered else None))
            self._input.append(_number(outcome.input_tokens))

    def gap(self, number: int, seconds: float) -> None:
        if number >= self._warm_up:
            self.gaps.add(seconds)

    def late(self, seconds: float) -> None:
        self.pulse.add(max(seconds, 0))

    @property
    def measured(self) -> int:
        """Requests that were answered or failed after the warm-up."""
        return self.answered + self._failures.total()

    @property
    def failures(self) -> tuple[Failures, ...]:
        """The most frequent first."""
        return tuple(Failures(kind, count, self._messages[kind]) for kind, count in self._failures.most_common())

    @property
    def duration_s(self) -> float:
        """From the first intended moment to the end of the last answer; 0 if there was none."""
        return max(self._end - self._start, 0.0) if self.measured else 0.0

    def moments_s(self) -> Column:
        """When each request was to be sent, since the first."""
        return _column(self._moment) - (self._start if self._moment else 0)

    def column(self, name: MetricName) -> Column:
        """The values of a metric, one a request in the order in which they ended; NaN where one has none."""
        first, whole, output = _column(self._first), _column(self._whole), _column(self._output)
        match name:
            case "time_to_first_token":
                return first
            case "request_latency":
                return whole
            case "inter_token_latency":
                steps = np.where(output > 1, output - 1, np.nan)
                return (whole - first) / steps
            case "output_sequence_length":
                return output
            case "input_sequence_length":
                return _column(self._input)
            case "inter_chunk_latency":
                raise ValueError("there are several of each request: they are in `gaps`")

    def output_tokens(self) -> float | None:
        """All that the server counted of answers; None if it counted none."""
        output = _column(self._output)
        return None if np.isnan(output).all() else float(np.nansum(output))

    def good(self, limits: dict[MetricName, float]) -> int:
        """Answered requests of which each limited metric is at most its limit. One without a metric is good in it."""
        kept = np.ones(len(self._whole), dtype=bool)
        for name, limit in limits.items():
            values = self.column(name)
            kept &= np.isnan(values) | (values <= limit)
        return int(np.count_nonzero(kept & np.array(self._answered, dtype=bool)))


def _column(numbers: array[float]) -> Column:
    return np.array(numbers, dtype=np.float64)


def _number(value: int | None) -> float:
    return math.nan if value is None else float(value)
