"""A wire without a server: each answer by a schedule that the test knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.load.outcome import Hearing, Outcome, RequestFailed
from tasks.load.prompts import Prompt
from tasks.load.send import Listeners
from tasks.load.wire import Call


@dataclass
class FakeWire:
    """Answers with one token after `delay_s` of the prompt's text. `prepare_s` is how long it keeps the loop busy."""

    delay_s: Callable[[str], float] = lambda _: 0.0
    prepare_s: float = 0.0
    failure: RequestFailed | None = None
    answers_first: int = 0
    """How many requests are answered in spite of `failure`."""
    asked: int = 0
    opened: int = 0
    closed: int = 0
    most_at_once: int = 0
    _running: int = 0

    async def open(self) -> None:
        self.opened += 1

    def prepare(self, prompt: Prompt) -> Call:
        time.sleep(self.prepare_s)

        async def call(hearing: Hearing) -> None:
            self._running += 1
            self.asked += 1
            self.most_at_once = max(self.most_at_once, self._running)
            try:
                await asyncio.sleep(self.delay_s(prompt.text))
            finally:
                self._running -= 1
            if self.failure is not None and self.asked > self.answers_first:
                raise self.failure
            hearing.text(time.monotonic())
            hearing.count(prompt.output_tokens)

        return call

    async def close(self) -> None:
        self.closed += 1


@dataclass
class Heard:
    """What a load tells."""

    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    gaps: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    late: list[float] = field(default_factory=list[float])

    @property
    def listeners(self) -> Listeners:
        return Listeners(
            self.outcomes.append, lambda number, seconds: self.gaps.append((number, seconds)), self.late.append
        )
