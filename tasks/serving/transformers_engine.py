"""The engine `transformers`: PyTorch in this process, no kernels of its own, the checkpoint as it is.

It is the reference: what shows numbers comes from plain passes of one request each. Answers in which nothing but the
tokens shows grow together, by shared passes. The device goes by turns of one pass, in the order in which they are asked
for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .contract import GenerationRequest, LogProb, RequestRefused
from .engine import Piece
from .guide_masks import Guides
from .llmapi import ENGINE_PATH
from .sampling import Chosen, Sampler, told
from .settings import ServingSettings
from .shared_decoding import SharedDecoding, may_share
from .tokens import Prompts, Tokens, as_log_prob
from .torch_model import SCORED_AT_ONCE, Sequenced, TorchModel

ResultT = TypeVar("ResultT")


class Transformers:
    """A checkpoint, loaded. Raises EngineFailed where transformers cannot load it.

    `folder` has its adapters. `parameters` are those of the model's `config.pbtxt`, which say where the checkpoint is.
    """

    def __init__(self, folder: Path, settings: ServingSettings, parameters: Mapping[str, str]) -> None:
        # Before the hub's library is imported, which reads it once.
        os.environ["HF_HUB_OFFLINE"] = "1"
        checkpoint = Path(parameters[ENGINE_PATH])
        self._settings = settings
        self._prompts = Prompts(
            checkpoint, chat_template=settings.chat_template, most_tokens=settings.most_prompt_tokens
        )
        self._guides = Guides(self._prompts.tokenizer, self._prompts.end_ids)
        # Threads that spin while they wait take the cores from others, and stand still once these are busy.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._device = ThreadPoolExecutor(1, "device")
        """The one thread that computes. What is asked of it waits in a line."""
        self._model = self._device.submit(TorchModel, folder, settings, checkpoint).result()
        self._rooms: asyncio.Queue[Any] = asyncio.Queue()
        for room in self._model.rooms:
            self._rooms.put_nowait(room)
        self._shared = SharedDecoding(self._model.read_together, self._on_device)
        self._cached: dict[object, int] = {}
        """Tokens of each running request in its room."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        _check(request)
        settings, prompts = self._settings, self._prompts
        chosen = settings.adapter_of(request)
        adapter = None if chosen is None else settings.adapters[chosen]
        prompt = await prompts.of(request)
        if request.given_output:
            async with contextlib.aclosing(self._scored(request, prompt, adapter)) as scored:
                async for piece in scored:
                    yield piece
            return
        most_tokens = settings.most_output_tokens(request, len(prompt))
        sampling, ends = settings.sampling.of(request), prompts.ends(request)
        guide = await self._guides.of(request, ends)
        sampler = Sampler(request, sampling, prompt, prompts.tokenizer, ends, guide)
        grow = self._tokens
        if self._model.shares and may_share(request, sampling, exact=self._model.exact):
            grow = self._tokens_together
        async with self._sequenced(adapter) as sequenced:
            tokens = self._counted(prompt, grow(sequenced, prompt, sampler, most_tokens))
            async with contextlib.aclosing(tokens):
                answer = prompts.answer(request, prompt, tokens, most_tokens)
                async with contextlib.aclosing(answer):
                    async for piece in answer:
                        yield piece

    async def _scored(
        self, request: GenerationRequest, prompt: list[int], adapter: str | None
    ) -> AsyncGenerator[Piece]:
        """The text that a request gives, with what the model makes of each of its tokens."""
        given = self._prompts.given(request, len(prompt), self._settings.context_tokens)
        tokenizer, log_probs = self._prompts.tokenizer, list[LogProb]()
        async with self._sequenced(adapter) as sequenced:
            unread = prompt
            for begin in range(0, len(given), SCORED_AT_ONCE):
                scored = given[begin : begin + SCORED_AT_ONCE]
                # The last of what was read tells of the first of these, each of these of the one after it.
                read = [*unread, *scored[:-1]]

                def score(read: list[int] = read, scored: list[int] = scored) -> list[Chosen]:
                    logits = self._model.read(sequenced, read, len(scored))
                    return [
                        told(row, each, request.num_top_log_probs) for row, each in zip(logits, scored, strict=True)
                    ]

                log_probs += [as_log_prob(tokenizer, *astuple(each)) for each in await self._on_device(score)]
                unread = scored[-1:]
        yield Piece(request.given_output, tuple(log_probs), len(given), len(prompt), "stop")

    @contextlib.asynccontextmanager
    async def _sequenced(self, adapter: str | None) -> AsyncGenerator[Sequenced]:
        """A room, once one is free."""
        room = await self._rooms.get()
        try:
            yield self._model.begin(room, adapter)
        finally:
            # A pass of this request may still run: whoever has the room next must come after it.
            asyncio.get_running_loop().run_in_executor(self._device, _nothing).add_done_callback(
                lambda _: self._rooms.put_nowait(room)
            )

    def cache_usage(self) -> float:
        return sum(list(self._cached.values())) / (self._settings.slots * self._settings.context_tokens)

    async def close(self) -> None:
        await self._shared.close()
        await asyncio.get_running_loop().run_in_executor(self._device, self._model.close)
        self._guides.close()
        self._device.shutdown()

    async def _tokens(
        self, sequenced: Sequenced, prompt: list[int], sampler: Sampler, most_tokens: int
    ) -> AsyncGenerator[list[Tokens]]:
        """The tokens of an answer, a plain pass each; whoever reads them ends it."""
        unread = prompt
        for _ in range(most_tokens):
            tokens = await self._on_device(partial(self._next, sequenced, unread, sampler))
            yield [tokens]
            unread = list(tokens.ids)

    async def _tokens_together(
        self, sequenced: Sequenced, prompt: list[int], sampler: Sampler, most_tokens: int
    ) -> AsyncGenerator[list[Tokens]]:
        """The first by a plain pass over the prompt, the others by shared passes."""
        first = await self._on_device(partial(self._next, sequenced, prompt, sampler))
        yield [first]
        others = self._shared.tokens(sequenced, sampler, first.ids[0], most_tokens - 1)
        async with contextlib.aclosing(others):
            async for tokens in others:
                yield tokens

    def _next(self, sequenced: Sequenced, unread: list[int], sampler: Sampler) -> Tokens:
        chosen = sampler.choose(self._model.read(sequenced, unread)[-1])
        if not sampler.tells:
            return Tokens((chosen.token_id,))
        return Tokens((chosen.token_id,), (chosen.log_prob,), (chosen.top,))

    async def _counted(self, prompt: list[int], tokens: AsyncGenerator[list[Tokens]]) -> AsyncGenerator[list[Tokens]]:
        """The same tokens; while they come, what they and the prompt take of the cache is told."""
        request = object()
        self._cached[request] = len(prompt)
        try:
            async with contextlib.aclosing(tokens):
                async for made in tokens:
                    self._cached[request] += len(made)
                    yield made
        finally:
            del self._cached[request]

    async def _on_device(self, work: Callable[[], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._device, work)


def _nothing() -> None:
    return None


def _check(request: GenerationRequest) -> None:
    """Raise RequestRefused for what a plain pass cannot do."""
    if request.beam_width != 1:
        raise RequestRefused("'beam_width' must be 1: this engine has no beam search")
    if request.length_penalty != 1:
        raise RequestRefused("'length_penalty' must be 1: it belongs to beam search, which this engine lacks")
