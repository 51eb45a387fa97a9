"""The engine `tensorrt_llm`: the model of TensorRT-LLM's C++ backend, called.

What comes before and after that model cannot be steps of an ensemble around it. Triton does not load one whose step
takes tensors of a decoupled model beside others ("receives inputs originated from different decoupled models", 2.51):
what streams out of the engine can be joined with nothing that tells whose it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .backend_inputs import ALWAYS_SENT, READ, adapter_inputs, as_input, backend_inputs
from .called import DRAFT_MODEL, CalledModel, Response
from .contract import GenerationRequest, RequestRefused, Tensor
from .drafts import check_drafted, checked_guesses
from .engine import EngineFailed, EngineUnavailable, Piece
from .mailbox import Mailbox
from .settings import ADAPTER_FOLDER, ServingSettings
from .tokens import Prompts, Tokens

_TOKENS = ("output_ids", "sequence_length")
"""Outputs without which the backend answers nothing."""

STOP_INTERVAL_S = 0.1
"""What a cancelled request gets to end by itself before it is told to, and to obey before it is told again.

Again, since an instance of the backend knows only the requests that it got itself. And not at once, since most end
anyway, and 0.8 and 0.9 never release a request that tells of a stop.
"""

_CLIENT_IS_TO_BLAME = ("exceeds maximum input length", "Incorrect sampling config")
"""In what the backend answers to a request that `llm` lets pass and it does not (llmRequest.h of 0.8 to 1.2)."""


_NOT_LOADED = "Request for unknown model: "

_NOT_IN_CACHE = "not found in cache. Please send LoRA weights"
_CACHE_IS_FULL = "Cache is full. There are no done tasks to evict"
"""What peftCacheManager.cpp and loraCache.cpp of TensorRT-LLM say of an adapter, 0.9 to 1.2."""


class AdapterMissing(EngineFailed):
    """The engine does not have the adapter that a request named without its weights."""


class TensorRtLlm:
    """The backend's model; `parameters` are those of the model that calls it. Nothing is loaded but the tokenizer."""

    def __init__(self, folder: Path, settings: ServingSettings, parameters: Mapping[str, str]) -> None:
        self._settings = settings
        self._model = CalledModel(parameters)
        self._draft = CalledModel(parameters, DRAFT_MODEL) if DRAFT_MODEL in parameters else None
        self._stopping: set[asyncio.Task[None]] = set()
        self._adapters = folder / ADAPTER_FOLDER
        self._given: set[int] = set()
        """Adapters that the engine was given. It may have dropped them since."""
        self._prompts = Prompts(
            folder / settings.engine_path,
            chat_template=settings.chat_template,
            most_tokens=settings.most_prompt_tokens,
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        prompts = self._prompts
        prompt = await prompts.of(request)
        inputs = backend_inputs(request, prompt, prompts, self._settings)
        most_tokens = self._settings.most_output_tokens(request, len(prompt))
        adapter = self._settings.adapter_of(request)
        if self._draft is None:
            tokens = self._tokens(inputs, adapter, log_probs=request.return_log_probs)
        else:
            check_drafted(request, self._settings)
            tokens = checked_guesses(
                inputs,
                prompt,
                self._settings,
                guess=partial(self._ask, self._draft),
                check=partial(self._ask, self._model),
                end_ids=prompts.ends(request),
                most_tokens=most_tokens,
                min_tokens=request.min_tokens,
            )
        async with contextlib.aclosing(tokens):
            answer = prompts.answer(request, prompt, tokens, most_tokens)
            async with contextlib.aclosing(answer):
                async for piece in answer:
                    yield piece

    async def _tokens(
        self, inputs: dict[str, Tensor], adapter: int | None, *, log_probs: bool
    ) -> AsyncGenerator[list[Tokens]]:
        """The tokens of an answer. The engine gets an adapter's weights where it does not have them: with the first
        request for it, and again when others have taken its place in the engine's cache."""
        outputs = READ if log_probs else _TOKENS
        chosen = inputs if adapter is None else {**inputs, "lora_task_id": as_input("lora_task_id", adapter + 1)}
        while True:
            new = None if adapter in self._given else adapter
            asked = chosen if new is None else chosen | await self._weights(new)
            try:
                async with contextlib.aclosing(self._ask(self._model, asked, outputs)) as batches:
                    async for batch in batches:
                        if new is not None:
                            self._given.add(new)
                        yield batch
                return
            except AdapterMissing:
                if new is not None or adapter is None:
                    raise
                self._given.discard(adapter)

    async def _weights(self, adapter: int) -> dict[str, Tensor]:
        return await asyncio.to_thread(adapter_inputs, self._adapters / self._settings.adapters[adapter])

    async def _ask(
        self, model: CalledModel, inputs: Mapping[str, Tensor], outputs: Iterable[str] = _TOKENS
    ) -> AsyncGenerator[list[Tokens]]:
        """The tokens that a model of the backend gives, as they come. It is told to stop where nobody takes all."""
        # A number: until 0.9 the backend takes the leading digits of other names for one.
        request_id = str(1 + secrets.randbits(63))
        responses = model.call(request_id, inputs, outputs)
        try:
            async with contextlib.aclosing(tokens_of(responses)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            if not responses.ended:
                task = asyncio.create_task(self._stop(model, request_id, responses))
                self._stopping.add(task)
                task.add_done_callback(self._stopping.discard)

    def cache_usage(self) -> None:
        """Triton has it of the backend's own model: `nv_trt_llm_kv_cache_block_metrics`."""

    async def close(self) -> None:
        await asyncio.gather(*self._stopping)
        await self._model.close()
        if self._draft is not None:
            await self._draft.close()

    async def _stop(self, model: CalledModel, request_id: str, responses: Mailbox[Response]) -> None:
        """Tell the backend until its last response has come: only then its place is free."""
        # Triton wants the others, the backend looks at none of them.
        inputs = {name: as_input(name, 1) for name in (*ALWAYS_SENT, "stop")}
        while True:
            await asyncio.sleep(STOP_INTERVAL_S)
            if responses.ended:
                return
            try:
                answered = [response.failure async for response in model.call_alone(request_id, inputs, _TOKENS)]
            except EngineFailed as error:
                answered = [str(error)]
            failures = list(filter(None, answered))
            # Until 0.9 there is one where the request has ended meanwhile.
            for failure in failures if not responses.ended else ():
                triton: Any = importlib.import_module("triton_python_backend_utils")
                triton.Logger.log_warn(f"the engine does not stop {request_id}: {failure}")


async def tokens_of(responses: Mailbox[Response]) -> AsyncGenerator[list[Tokens]]:
    """The best beam's new tokens; the beams come sorted."""
    count = 0
    async for batch in responses:
        found: list[Tokens] = []
        for response in batch:
            tokens = _read(response, count)
            count += len(tokens.ids)
            found.append(tokens)
        yield found


def _read(response: Response, before: int) -> Tokens:
    """The tokens of one response, of a request that has had `before` of them."""
    if message := response.failure:
        if any(text in message for text in _CLIENT_IS_TO_BLAME):
            raise RequestRefused(f"the engine refuses the request: {message}")
        if _NOT_IN_CACHE in message:
            raise AdapterMissing(message)
        if _CACHE_IS_FULL in message:
            raise EngineUnavailable(f"adapters of running requests take all of the engine's cache: {message}")
        if message.startswith(_NOT_LOADED):
            # In other words than Triton's, which are for whoever asked for an unknown model himself.
            raise EngineFailed(f"the engine is not loaded: {message.removeprefix(_NOT_LOADED)}")
        raise EngineFailed(f"the engine failed: {message}")
    tensors = response.tensors
    if "output_ids" not in tensors:
        return Tokens(())
    length = int(tensors["sequence_length"][0, 0])
    ids = tuple(map(int, tensors["output_ids"][0, 0, :length]))
    if "output_log_probs" not in tensors:
        return Tokens(ids)
    log_probs = tuple(map(float, tensors["output_log_probs"][0, 0]))
    # A streamed response has those of all tokens so far, from 0.10 on at least.
    new = log_probs[before : before + length] if len(log_probs) >= before + length else log_probs[:length]
    if len(new) < length:
        raise EngineFailed(f"the engine gave {len(log_probs)} log probabilities for {before + length} tokens")
    return Tokens(ids, new)
