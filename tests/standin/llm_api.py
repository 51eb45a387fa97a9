"""A stand-in for the LLM API of the package `tensorrt_llm`. Only tests put it on a path.

It takes the arguments that the real one takes in the version that the checkpoint's `standin.json` names, and no others.
It runs requests in flight on a thread of its own, and answers with the real one's attributes and words. Its model is
the n-grams of `standin.json`. As in the real one, a request is passed on and ended on one thread only.
"""

from __future__ import annotations

import asyncio
import json
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from .backend_sampler import Beam, NGrams, Wanted, adapter_logits, generate
from .guide import Guide
from .llm_args import SamplingParams, check_arguments, parts, sampler_of
from .llm_lora import Adapters, LoRARequest


class RequestError(RuntimeError):
    """The failure of one request, which the others survive."""


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    index: int
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[dict[int, Logprob]] = field(default_factory=list[dict[int, Logprob]])
    finish_reason: str | None = None


@dataclass(frozen=True)
class _Response:
    beams: list[Beam]
    finish_reason: str | None = None
    error: str = ""


class RequestOutput:
    """A request and its answer so far. Iterating takes each response in turn."""

    def __init__(self, llm: LLM, number: int, prompt: list[int], parameters: SamplingParams, streaming: bool) -> None:
        self.request_id = number
        self.prompt_token_ids = prompt
        self.sampling_params = parameters
        self.streaming = streaming
        self.outputs = [CompletionOutput(0)]
        self.finished = False
        self._llm = llm
        self._sync: queue.SimpleQueue[_Response] = queue.SimpleQueue()
        try:
            self._loop = asyncio.get_running_loop()
            self._async: asyncio.Queue[_Response] | None = asyncio.Queue()
        except RuntimeError:
            self._async = None

    def abort(self) -> None:
        self._llm.abort(self)

    def respond(self, response: _Response) -> None:
        if self._async is None:
            self._sync.put(response)
        else:
            self._loop.call_soon_threadsafe(self._async.put_nowait, response)

    def __iter__(self) -> RequestOutput:
        return self

    def __next__(self) -> RequestOutput:
        if self.finished:
            raise StopIteration
        return self._take(self._sync.get())

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        assert self._async is not None, "The asyncio event loop was not present during initialization"
        return self._take(await self._async.get())

    def _take(self, response: _Response) -> RequestOutput:
        if response.error:
            raise RequestError(response.error)
        output, parameters = self.outputs[0], self.sampling_params
        best = response.beams[0]
        output.token_ids = list(best.ids)
        if self._llm.gives_log_probs(parameters):
            output.logprobs = [
                {token_id: Logprob(value, 1)} for token_id, value in zip(best.ids, best.log_probs, strict=True)
            ]
        output.finish_reason = response.finish_reason
        self.finished = response.finish_reason is not None
        return self


@dataclass
class _Running:
    result: RequestOutput
    tokens: int
    beams: Iterator[list[Beam]]
    last: list[Beam] = field(default_factory=lambda: [Beam()])


class LLM:
    """A model with the requests that run in it. Raises ValueError for arguments that its version lacks."""

    def __init__(self, model: str, **arguments: Any) -> None:
        folder = Path(model)
        standin = json.loads((folder / "standin.json").read_text())
        self._version = parts(standin["tensorrt_llm"])
        check_arguments(self._version, arguments)
        self._arguments = arguments
        self._sampler = sampler_of(self._version, arguments)
        self._width = int(arguments.get("max_beam_width") or 1)
        self._seconds = float(standin["token_seconds"])
        self._pieces: list[str] = standin["pieces"]
        self._vocabulary: int = json.loads((folder / "config.json").read_text())["vocab_size"]
        self._model = NGrams(standin["corpus"], self._vocabulary)
        self._adapters = Adapters(arguments.get("lora_config"))
        self._slots = int(arguments.get("max_batch_size") or 2048)
        self._cache = int(arguments.get("kv_cache_config", {}).get("max_tokens") or 10**9)
        self._lock = threading.Condition()
        self._waiting: list[_Running] = []
        self._aborted: set[int] = set()
        self._owner: int | None = None
        self._numbers = 1
        self._down = False
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams,
        lora_request: LoRARequest | None = None,
        *,
        streaming: bool = False,
    ) -> RequestOutput:
        if self._down:
            raise RuntimeError("LLM is shutting down")
        self._require_owner()
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        most = self._arguments.get("max_num_tokens", 8192)
        if len(inputs) > most and not self._arguments.get("enable_chunked_prefill"):
            raise RequestError(
                f"The sum of prompt length ({float(len(inputs))}), query length (0) should not exceed "
                f"max_num_tokens ({most})"
            )
        self._numbers += 1
        result = RequestOutput(self, self._numbers, inputs, sampling_params, streaming)
        try:
            wanted = self._wanted(inputs, sampling_params)
        except RequestError as error:
            result.respond(_Response([], error=str(error)))
            return result
        if (weights := self._adapters.weights(lora_request)) is not None:
            wanted.adapter = adapter_logits(weights, self._vocabulary)
        running = _Running(result, len(inputs) + wanted.max_tokens, generate(self._model, wanted))
        with self._lock:
            self._waiting.append(running)
            self._lock.notify()
        return result

    def abort(self, result: RequestOutput) -> None:
        self._require_owner()
        with self._lock:
            self._aborted.add(result.request_id)
            self._lock.notify()

    def shutdown(self) -> None:
        with self._lock:
            self._down = True
            self._lock.notify()
        self._worker.join()

    def gives_log_probs(self, parameters: SamplingParams) -> bool:
        # Up to 1.1 zero meant none.
        return bool(parameters.logprobs) if self._version < (1, 2) else parameters.logprobs is not None

    def _wanted(self, prompt: list[int], parameters: SamplingParams) -> Wanted:
        """What the sampler makes of a request's parameters."""
        width = cast("int", parameters.best_of) if parameters.use_beam_search else 1
        if width != self._width:
            raise RequestError(
                f"Request beam width {width} is not equal to max_beam_width {self._width}. This is not supported!"
            )
        if width > 1 and self.gives_log_probs(parameters):
            raise RequestError("Beam search is not supported for multiple prompts and logprobs")
        if parameters.temperature is not None and parameters.temperature <= 0:
            raise RequestError("Incorrect sampling config: temperature must be above 0")
        room = int(self._arguments.get("max_seq_len") or 2048) - len(prompt)
        wanted = Wanted(
            prompt,
            min(parameters.max_tokens, room),
            end_id=cast("int", parameters.end_id),
            top_k=parameters.top_k or 0,
            top_p=parameters.top_p or 0.0,
            temperature=parameters.temperature or 1.0,
            beam_width=width,
            length_penalty=parameters.length_penalty or 0.0,
            stop_words=parameters.words("stop"),
            seed=secrets.randbits(64),
        )
        if parameters.guided_decoding is not None:
            if "guided_decoding_backend" not in self._arguments:
                raise RequestError("Guided decoding is not enabled")
            kind, guide = parameters.guided_decoding.guide()
            try:
                wanted.guide = Guide(kind, guide, self._pieces, wanted.end_id)
            except ValueError as error:
                raise RequestError(str(error)) from error
        bad = parameters.words("bad")
        if self._sampler != "early torch":
            wanted.seed = parameters.seed or 0
            wanted.bad_words = bad
            wanted.min_tokens = parameters.min_tokens or 0
            wanted.repetition_penalty = parameters.repetition_penalty or 1.0
            wanted.presence_penalty = parameters.presence_penalty or 0.0
            wanted.frequency_penalty = parameters.frequency_penalty or 0.0
        return wanted

    def _require_owner(self) -> None:
        self._owner = self._owner or threading.get_ident()
        if self._owner != threading.get_ident():
            raise RuntimeError("the sockets to the workers belong to the thread that used them first")

    def _work(self) -> None:
        """Each round gives one more token to each running request, and starts waiting ones that there is room for."""
        running: list[_Running] = []
        while True:
            with self._lock:
                while not (self._down or self._waiting or running):
                    self._lock.wait()
                if self._down:
                    break
                room = self._cache - sum(entry.tokens for entry in running)
                while self._waiting and len(running) < self._slots and self._waiting[0].tokens <= room:
                    room -= self._waiting[0].tokens
                    running.append(self._waiting.pop(0))
                aborted, self._aborted = self._aborted, set()
                gone = [entry for entry in self._waiting if entry.result.request_id in aborted]
                self._waiting = [entry for entry in self._waiting if entry not in gone]
            time.sleep(self._seconds)
            for entry in gone:
                entry.result.respond(_Response(entry.last, "cancelled"))
            running = [entry for entry in running if self._step(entry, entry.result.request_id in aborted)]
        for entry in (*running, *self._waiting):
            entry.result.respond(_Response(entry.last, "cancelled"))

    def _step(self, entry: _Running, aborted: bool) -> bool:
        """Give a request one more token. Returns whether others may follow."""
        result, wanted = entry.result, entry.result.sampling_params
        if aborted:
            result.respond(_Response(entry.last, "cancelled"))
            return False
        beams = next(entry.beams, None)
        if beams is None:
            result.respond(_Response(self._shown(entry.last, wanted), "length"))
            return False
        entry.last = beams
        if beams[0].ended and all(beam.ended for beam in beams):
            result.respond(_Response(self._shown(beams, wanted), "stop"))
            return False
        if result.streaming:
            result.respond(_Response(beams))
        return True

    def _shown(self, beams: list[Beam], parameters: SamplingParams) -> list[Beam]:
        """The finished beams, without the end token if the sampler is C++, and without stop words unless asked for."""
        return [_without(beam, self._cut(beam, parameters)) for beam in beams]

    def _cut(self, beam: Beam, parameters: SamplingParams) -> int:
        if not beam.ended:
            return 0
        if beam.ids[-1] == parameters.end_id:
            return 1 if self._sampler == "cpp" else 0
        if parameters.include_stop_str_in_output:
            return 0
        return next(len(word) for word in parameters.words("stop") if word == list(beam.ids[-len(word) :]))


def _without(beam: Beam, tokens: int) -> Beam:
    kept = len(beam.ids) - tokens
    return Beam(beam.ids[:kept], beam.log_probs[:kept], beam.ended)
