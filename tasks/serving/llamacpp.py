"""The engine `llamacpp`: llama.cpp's server in a child process, by `xllamacpp`.

Its continuous batching, streaming and templates are reached by its own HTTP interface on loopback, behind a key
made at every start. Only there does llama.cpp tokenize, render a template, and drop a request that still waits for
a slot (its connection closes). And only its process can be ended where a request holds it for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .contract import FinishReason, GenerationRequest, LogProb, RequestRefused, check_generates
from .engine import EngineUnavailable, Piece
from .gguf_vocabulary import control_tokens
from .llama_events import Event, events
from .llama_prompts import LlamaPrompts
from .llama_server import LlamaServer, LlamaServers
from .reasoning import beginning_with, opened_by
from .settings import ADAPTER_FOLDER, Sampling, ServingSettings
from .words import StopWords, grammar_without

ADAPTER_FILE = "adapter.gguf"

RANDOM_SEED = 2**32 - 1
"""llama.cpp's seeds have 32 bits, and this one means random (LLAMA_DEFAULT_SEED in llama.h)."""

MAX_FOLLOWED = 100
"""Schemas that are remembered as ones that this model's engine follows; others cost a token more."""

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"]
"""Of reasoning and calls, which some vocabularies have as special tokens. llama.cpp keeps those in an answer that it is
told; of one that is no token of a vocabulary it knows nothing."""

_CALLING_THREADS = 32
"""For what llama.cpp answers at once, or not at all for some seconds: templates, and a server that starts again."""

_NO_JSON = "A"
"""Text that no JSON begins with, and a token of nearly every vocabulary."""


class LlamaCpp:
    """A GGUF file, loaded. Raises EngineFailed where llama.cpp cannot load it."""

    def __init__(self, folder: Path, settings: ServingSettings) -> None:
        self._settings = settings
        self._cached: dict[object, int] = {}
        """Tokens of each running request in llama.cpp's cache, which keeps none of others (see `llama_program`)."""
        self._servers = LlamaServers(
            {
                "model": str(folder / settings.engine_path),
                "slots": settings.slots,
                "context_tokens": settings.context_tokens,
                "adapters": [str(folder / ADAPTER_FOLDER / name / ADAPTER_FILE) for name in settings.adapters],
                "threads": settings.threads or len(os.sched_getaffinity(0)),
            }
        )
        self._threads = ThreadPoolExecutor(_CALLING_THREADS)
        server = self._servers.get()
        properties = server.call("/props", None)
        end_of_text = properties["eos_token"]
        self._end_of_text = server.call("/tokenize", {"content": end_of_text, "parse_special": True})["tokens"]
        pieces = server.call("/tokenize", {"content": _NO_JSON, "add_special": False, "with_pieces": True})["tokens"]
        self._no_json: int = pieces[-1]["id"]
        self._followed: dict[str, None] = {}
        self._prompts = LlamaPrompts(
            self._servers, self._threads, settings, control_tokens(folder / settings.engine_path)
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        body = self._completion(request)
        text, body["prompt"] = await self._prompts.of(request)
        if request.guided_decoding_guide_type == "json_schema":
            await self._check_schema(request.guided_decoding_guide)
        answer = self._complete(body, request)
        if not request.skip_special_tokens:
            answer = beginning_with(opened_by(text), answer)
        async with contextlib.aclosing(answer) as pieces:
            async for piece in pieces:
                yield piece

    def cache_usage(self) -> float:
        return sum(list(self._cached.values())) / (self._settings.slots * self._settings.context_tokens)

    async def close(self) -> None:
        self._servers.close()
        self._threads.shutdown()

    def _completion(self, request: GenerationRequest) -> dict[str, Any]:
        """The body of llama.cpp's /completion. Raises RequestRefused for what llama.cpp cannot do."""
        sampling = self._settings.sampling.of(request)
        check_generates(request)
        if request.beam_width != 1:
            raise RequestRefused("'beam_width' must be 1: this engine has no beam search")
        if request.length_penalty != 1:
            raise RequestRefused("'length_penalty' must be 1: it belongs to beam search, which this engine lacks")
        if request.min_tokens:
            raise RequestRefused("'min_tokens' must be 0: this engine cannot keep an answer from ending")
        if request.end_id is not None and [request.end_id] != self._end_of_text:
            raise RequestRefused(f"'end_id' must be the model's own, {self._end_of_text[0]}")
        body: dict[str, Any] = {
            "n_predict": -1 if request.max_tokens is None else request.max_tokens,
            "stream": True,
            "seed": secrets.randbelow(RANDOM_SEED) if request.seed is None else request.seed % RANDOM_SEED,
        }
        if (chosen := self._settings.adapter_of(request)) is not None:
            # The others stay as they were loaded, with a scale of 0.
            body["lora"] = [{"id": chosen, "scale": 1.0}]
        if request.return_log_probs:
            body["n_probs"] = max(1, request.num_top_log_probs)
        if not request.skip_special_tokens:
            body["preserved_tokens"] = MARKS
        return body | _samplers(sampling, self._settings.context_tokens) | _grammar(request)

    async def _check_schema(self, schema: str) -> None:
        """Raise RequestRefused for a schema that llama.cpp drops with a line in its log, and answers without.

        So it does with each that it does not know in full. The likeliest token here is one that no JSON begins with:
        where the schema is followed, it does not come.
        """
        if schema in self._followed:
            return
        body = {
            "prompt": _NO_JSON,
            "n_predict": 1,
            "stream": True,
            "temperature": 0,
            "logit_bias": [[self._no_json, 1000.0]],
            "json_schema": json.loads(schema),
        }
        asked = GenerationRequest(guided_decoding_guide_type="json_schema", guided_decoding_guide=schema)
        async with contextlib.aclosing(self._complete(body, asked)) as pieces:
            answer = "".join([piece.text async for piece in pieces])
        if answer.strip() == _NO_JSON:
            raise RequestRefused(
                "'guided_decoding_guide' cannot be honoured: this engine does not know every keyword or format of the"
                " schema, or nothing is valid by it"
            )
        self._followed[schema] = None
        if len(self._followed) > MAX_FOLLOWED:
            del self._followed[next(iter(self._followed))]

    async def _server(self) -> LlamaServer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._servers.get)

    async def _complete(self, body: Mapping[str, Any], request: GenerationRequest) -> AsyncGenerator[Piece]:
        """One completion; from the next server, where the first one ended before it began."""
        begun = False
        for last in (False, True):
            server = await self._server()
            try:
                async with contextlib.aclosing(_pieces(server, body, request, self._cached)) as pieces:
                    if request.stream:
                        async for piece in pieces:
                            begun = True
                            yield piece
                    else:
                        # Who wants no stream hears nothing of an answer that was begun in vain.
                        for piece in [piece async for piece in pieces]:
                            yield piece
                return
            except EngineUnavailable:
                # Schemas are followed within bounds of their own (llguidance's), so grammars are blamed first.
                suspect = "grammar" in body or (last and "json_schema" in body)
                if suspect and server.stuck:
                    raise RequestRefused(_stuck(request)) from None
                # Whoever may have ended one server does not get to end the next.
                if begun or last or suspect:
                    raise


async def _pieces(
    server: LlamaServer, body: Mapping[str, Any], request: GenerationRequest, cached: dict[object, int]
) -> AsyncGenerator[Piece]:
    words, count = StopWords(request.stop_words), 0
    watched = server.guided() if "grammar" in body or "json_schema" in body else contextlib.nullcontext()
    try:
        with watched:
            async with contextlib.aclosing(events(server, "/completion", body)) as batches:
                async for batch in batches:
                    piece = _piece(batch, words, request, count)
                    yield piece
                    if piece.finish_reason is not None:
                        return
                    count += piece.output_tokens
                    cached[words] = piece.input_tokens + count
    except (OSError, TimeoutError) as error:
        raise await asyncio.to_thread(server.failed, f"llama.cpp closed the connection: {error}") from error
    finally:
        cached.pop(words, None)


def _piece(batch: Sequence[Event], words: StopWords, request: GenerationRequest, before: int) -> Piece:
    """All events that have come, as one. `before` is how many tokens there were already."""
    text, log_probs, count = "", list[float](), before
    finish: FinishReason | None = None
    for event in batch:
        tokens, count = event["tokens_predicted"] - count, event["tokens_predicted"]
        released = words.push(Piece(event["content"], _log_probs(event, tokens, request)))
        text, log_probs = text + released.text, [*log_probs, *released.log_probs]
        if words.stopped:
            finish = "stop_words"
            break
        if event["stop"]:
            rest = words.flush()
            text, log_probs = text + rest.text, [*log_probs, *rest.log_probs]
            finish = "length" if event["stop_type"] == "limit" else "stop"
            # The token that ends an answer has no text and does not count.
            count -= finish == "stop"
    return Piece(text, tuple(log_probs), count - before, batch[-1]["tokens_evaluated"], finish)


def _log_probs(event: Event, tokens: int, request: GenerationRequest) -> tuple[float, ...]:
    if not (event["content"] and request.return_log_probs):
        return ()
    log_probs = tuple(_log_prob(entry, request) for entry in event["completion_probabilities"])
    if len(log_probs) != tokens:
        raise RequestRefused(
            f"'return_log_probs' cannot be honoured: {event['content']!r} fell into {tokens} tokens,"
            f" of which llama.cpp reports {len(log_probs)}; ask again without it"
        )
    return log_probs


def _samplers(sampling: Sampling, context_tokens: int) -> dict[str, Any]:
    """Those that change something: each of them goes through the whole vocabulary for every token.

    At temperature 0 the best token is picked first, which leaves nothing to the others: on SmolLM2's 49,152 tokens
    that is 0.5 ms of 11.8 a token, on one thread while the others wait.
    """
    greedy = sampling.temperature == 0
    used: dict[str, dict[str, Any]] = {}
    if (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1, 0, 0):
        used["penalties"] = {
            "repeat_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            # Penalties look at the whole text, not at llama.cpp's last 64 tokens.
            "repeat_last_n": context_tokens,
        }
    if greedy or sampling.top_k:
        # Before the temperature, which changes no order: the others then see a few tokens.
        used["top_k"] = {"top_k": 1 if greedy else sampling.top_k}
    if not greedy:
        used["temperature"] = {"temperature": sampling.temperature}
        if sampling.top_p != 1:
            # After the temperature, as in TensorRT-LLM.
            used["top_p"] = {"top_p": sampling.top_p}
    return {"samplers": list(used)} | {name: value for fields in used.values() for name, value in fields.items()}


def _log_prob(entry: Event, request: GenerationRequest) -> LogProb:
    likeliest = entry["top_logprobs"][: request.num_top_log_probs]
    return LogProb(entry["logprob"], bytes(entry["bytes"]), tuple((bytes(e["bytes"]), e["logprob"]) for e in likeliest))


def _grammar(request: GenerationRequest) -> dict[str, Any]:
    """What keeps the answer to a guide, or free of bad words. llama.cpp takes one of them."""
    kind, guide = request.guided_decoding_guide_type, request.guided_decoding_guide
    if not kind:
        return {"grammar": grammar_without(request.bad_words)} if request.bad_words else {}
    if request.bad_words:
        raise RequestRefused("'bad_words' cannot be honoured beside a guide: this engine keeps to one of them")
    if kind == "regex":
        raise RequestRefused("'guided_decoding_guide_type' cannot be 'regex': this engine knows grammars and schemas")
    return {"grammar": guide} if kind == "ebnf_grammar" else {"json_schema": json.loads(guide or "{}")}


def _stuck(request: GenerationRequest) -> str:
    named = "guided_decoding_guide" if request.guided_decoding_guide_type else "bad_words"
    return (
        f"'{named}' cannot be honoured: for one token it, or the guide of another request at that moment, took"
        f" seconds, so the engine was started again; a grammar must not go on in too many ways at once"
    )
