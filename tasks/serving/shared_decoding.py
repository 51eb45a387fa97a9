"""Answers that grow together: a shared pass makes the next token of each.

Between two passes whoever has come joins, and whoever is done leaves. Nobody waits for a client that reads slowly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from .contract import GenerationRequest, RequestRefused
from .engine import EngineFailed
from .sampling import Sampler
from .settings import Sampling
from .tokens import Tokens
from .torch_model import Logits, Sequenced

Made: TypeAlias = Tokens | Exception
"""The next token of an answer, or why there is none."""

Read: TypeAlias = Callable[[Sequence[tuple[Sequenced, int]]], list[Logits | EngineFailed]]
"""One more token of each request: the scores of the next."""


def may_share(request: GenerationRequest, sampling: Sampling, *, exact: bool) -> bool:
    """Whether an answer may come from shared passes, whose scores are those of a plain one but for rounding.

    A seed must give the same answer beside any neighbours, and log probabilities show the rounding. The likeliest token
    is the same where the numbers are `exact`, and one that is drawn without a seed is a matter of chance anyway.
    """
    if request.seed is not None or request.return_log_probs or request.lora_name:
        return False
    return exact or not (sampling.temperature == 0 or sampling.top_k == 1)


@dataclass(eq=False)
class _Growing:
    """An answer that still grows. `last` is its newest token, `left` how many may still come."""

    sequenced: Sequenced
    sampler: Sampler
    last: int
    left: int
    made: asyncio.Queue[Made] = field(default_factory=lambda: asyncio.Queue[Made]())


class SharedDecoding:
    """All that grows in one engine, on its event loop. `on_device` does work on the thread that computes."""

    def __init__(self, read: Read, on_device: Callable[[Callable[[], list[Made]]], Awaitable[list[Made]]]) -> None:
        self._read = read
        self._on_device = on_device
        self._growing: list[_Growing] = []
        self._passes: asyncio.Task[None] | None = None

    async def tokens(
        self, sequenced: Sequenced, sampler: Sampler, first: int, most_tokens: int
    ) -> AsyncGenerator[list[Tokens]]:
        """What follows the `first` token of an answer, at most `most_tokens`. What has come at once comes at once."""
        if most_tokens < 1 or first in sampler.end_ids:
            return
        answer = _Growing(sequenced, sampler, first, most_tokens)
        self._growing.append(answer)
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run())
        try:
            while answer in self._growing or not answer.made.empty():
                came = [await answer.made.get()]
                while not answer.made.empty():
                    came.append(answer.made.get_nowait())
                if tokens := [each for each in came if isinstance(each, Tokens)]:
                    yield tokens
                if isinstance(came[-1], Exception):
                    raise came[-1]
        finally:
            self._leave(answer)

    async def close(self) -> None:
        """Wait for the last pass. Nothing grows any more."""
        if self._passes is not None:
            await self._passes

    async def _run(self) -> None:
        while growing := list(self._growing):
            try:
                made = await self._on_device(lambda: self._next(growing))
            except Exception as error:
                made = [error] * len(growing)
            for answer, each in zip(growing, made, strict=True):
                answer.made.put_nowait(each)
                answer.left -= 1
                if not isinstance(each, Tokens) or answer.left < 1 or each.ids[0] in answer.sampler.end_ids:
                    self._leave(answer)
                else:
                    answer.last = each.ids[0]

    def _next(self, growing: Sequence[_Growing]) -> list[Made]:
        """On the thread that computes."""
        made = list[Made]()
        scores = self._read([(answer.sequenced, answer.last) for answer in growing])
        for answer, logits in zip(growing, scores, strict=True):
            try:
                made.append(
                    logits if isinstance(logits, EngineFailed) else Tokens((answer.sampler.choose(logits).token_id,))
                )
            except RequestRefused as error:
                made.append(error)
        return made

    def _leave(self, answer: _Growing) -> None:
        if answer in self._growing:
            self._growing.remove(answer)
