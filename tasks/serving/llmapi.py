"""The engine `llmapi`: `tensorrt_llm.LLM` in this process, with workers of its own on the GPUs.

Everything that the LLM is told, it is told on one event loop, as NVIDIA's own Triton model and server do: it numbers
requests, and writes to its workers' sockets, without a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

from .backend_inputs import MAX_TOP_K, check_guide, check_top_log_probs
from .contract import GenerationRequest, RequestRefused, check_generates
from .engine import EngineFailed, Piece
from .mailbox import Mailbox
from .settings import ADAPTER_FOLDER, ServingSettings
from .tokens import Prompts, Tokens
from .word_ids import word_sequences

ENGINE_PATH = "gpt_model_path"
"""The parameter of the `config.pbtxt` that says where a model reads its engine, as the C++ backend has it."""

_ENDED = ("stop", "length")

_GUIDES = {"json": "json_object", "json_schema": "json", "regex": "regex", "ebnf_grammar": "grammar"}
"""Types of guides as the LLM's GuidedDecodingParams calls them."""


class LlmApi:
    """A checkpoint, loaded with the arguments of its release. Raises EngineFailed where the LLM cannot load it.

    `folder` has its adapters. `parameters` are those of the model's `config.pbtxt`, which say where the checkpoint is.
    """

    def __init__(self, folder: Path, settings: ServingSettings, parameters: Mapping[str, str]) -> None:
        # Before the hub's library is imported, which reads it once.
        os.environ["HF_HUB_OFFLINE"] = "1"
        checkpoint = Path(parameters[ENGINE_PATH])
        self._prompts = Prompts(
            checkpoint, chat_template=settings.chat_template, most_tokens=settings.most_prompt_tokens
        )
        self._settings = settings
        library: Any = importlib.import_module("tensorrt_llm")
        self._sampling_params: Callable[..., Any] = library.SamplingParams
        self._guided_decoding_params: Callable[..., Any] = library.llmapi.GuidedDecodingParams
        self._adapters: list[Any] = [
            importlib.import_module("tensorrt_llm.executor").LoRARequest(
                lora_name=name, lora_int_id=number, lora_path=str(folder / ADAPTER_FOLDER / name)
            )
            for number, name in enumerate(settings.adapters, 1)
        ]
        try:
            self._llm: Any = library.LLM(model=str(checkpoint), **_arguments(settings, checkpoint))
        except Exception as error:
            raise EngineFailed(f"tensorrt_llm.LLM cannot load {checkpoint}: {error}") from error

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        _check(request, self._settings)
        prompt = await self._prompts.of(request)
        parameters = self._parameters(request, len(prompt))
        chosen = self._settings.adapter_of(request)
        adapter = {} if chosen is None else {"lora_request": self._adapters[chosen]}
        # Streamed also where text may end the answer early. The best of several beams is known at the end.
        streaming = request.beam_width == 1 and (request.stream or bool(request.stop_words))
        tokens: Mailbox[Tokens] = Mailbox()
        try:
            result: Any = self._llm.generate_async(prompt, parameters, streaming=streaming, **adapter)
        except Exception as error:
            raise EngineFailed(f"the LLM failed: {error}") from error
        reading = asyncio.create_task(_read(result, tokens, log_probs=request.return_log_probs))
        try:
            answer = self._prompts.answer(request, prompt, aiter(tokens), parameters.max_tokens)
            async with contextlib.aclosing(answer):
                async for piece in answer:
                    yield piece
        finally:
            # The LLM answers an abort as well; nobody has to wait for that.
            reading.cancel()
            if not result.finished:
                result.abort()

    def cache_usage(self) -> None:
        """The LLM tells it to who asked for statistics of each pass, which cost time."""

    async def close(self) -> None:
        self._llm.shutdown()

    def _parameters(self, request: GenerationRequest, prompt_tokens: int) -> Any:
        """The request as the LLM's SamplingParams, in tokens alone."""
        sampling = self._settings.sampling.of(request)
        greedy = sampling.temperature == 0
        # -1 is none: without an end_id the LLM looks for a tokenizer of its own.
        end_id, *other_ends = self._prompts.ends(request) or (-1,)
        parameters = self._sampling_params(
            end_id=end_id,
            pad_id=self._prompts.pad_id if request.pad_id is None else request.pad_id,
            stop_token_ids=other_ends or None,
            max_tokens=self._settings.most_output_tokens(request, prompt_tokens),
            min_tokens=request.min_tokens or None,
            # The best token is asked for by top_k, since 1.0 has no temperature of 0.
            temperature=1.0 if greedy else sampling.temperature,
            top_k=1 if greedy else sampling.top_k,
            top_p=1.0 if greedy else sampling.top_p,
            repetition_penalty=None if sampling.repetition_penalty == 1 else sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty or None,
            frequency_penalty=sampling.frequency_penalty or None,
            # Its own default is the same seed for every request.
            seed=secrets.randbits(64) if request.seed is None else request.seed,
            use_beam_search=request.beam_width > 1,
            best_of=request.beam_width,
            n=1,
            length_penalty=request.length_penalty if request.beam_width > 1 else None,
            # 0, the sampled one without the best beside it, is taken for none by some versions.
            logprobs=1 if request.return_log_probs else None,
            # Tokens come as they are, also those of a stop word: text is made, and cut, here.
            detokenize=False,
            include_stop_str_in_output=True,
            guided_decoding=self._guide(request),
        )
        # As SamplingParams does by itself where it has to find an end_id, but with every spelling of a word.
        for name, words in (("bad", request.bad_words), ("stop", request.stop_words)):
            if words:
                sequences = word_sequences(self._prompts.tokenizer, words)
                setattr(parameters, name, list(words))
                setattr(parameters, f"_{name}_word_ids", [list(sequence) for sequence in sequences])
        return parameters

    def _guide(self, request: GenerationRequest) -> Any:
        if not (kind := request.guided_decoding_guide_type):
            return None
        return self._guided_decoding_params(**{_GUIDES[kind]: request.guided_decoding_guide or True})


async def _read(result: Any, tokens: Mailbox[Tokens], *, log_probs: bool) -> None:
    """Put what the LLM says of one request into `tokens`."""
    try:
        seen = 0
        async for response in result:
            output = response.outputs[0]
            if ids := tuple(output.token_ids[seen:]):
                tokens.put(Tokens(ids, _probabilities(output, seen) if log_probs else ()))
            seen += len(ids)
        if (reason := result.outputs[0].finish_reason) not in _ENDED:
            raise EngineFailed(f"the LLM ended the answer before its time: {reason}")
    except Exception as error:
        tokens.end(error if isinstance(error, EngineFailed) else EngineFailed(f"the LLM failed: {error}"))
    else:
        tokens.end()


def _probabilities(output: Any, seen: int) -> tuple[float, ...]:
    """Natural logarithms, of the tokens that were chosen; beside each stands the best one."""
    chosen = zip(output.token_ids[seen:], output.logprobs[seen:], strict=True)
    return tuple(entry[token_id].logprob for token_id, entry in chosen)


def _arguments(settings: ServingSettings, checkpoint: Path) -> dict[str, Any]:
    """The LLM's arguments. Weights that guess lie in the checkpoint's own folder."""
    arguments = dict(settings.llm_arguments)
    if arguments.get("speculative_config") is None:
        return arguments
    speculation = dict(arguments["speculative_config"])
    for name in ("speculative_model", "speculative_model_dir"):
        if name in speculation:
            speculation[name] = str(checkpoint / speculation[name])
    major, minor = settings.tensorrt_llm.split(".")[:2]
    if (int(major), int(minor)) < (1, 3):
        # Its LLM takes an object alone: `decoding_type` is a field of none, and from_dict goes by it.
        llm_args: Any = importlib.import_module("tensorrt_llm.llmapi.llm_args")
        speculation = llm_args.DecodingBaseConfig.from_dict(speculation)
    return {**arguments, "speculative_config": speculation}


def _check(request: GenerationRequest, settings: ServingSettings) -> None:
    """Raise RequestRefused for what the LLM would refuse, or ignore."""
    beams, arguments = request.beam_width, settings.llm_arguments
    if beams != settings.max_beam_width:
        raise RequestRefused(f"'beam_width' must be {settings.max_beam_width}, as this model is served")
    if beams == 1 and request.length_penalty != 1:
        raise RequestRefused("'length_penalty' must be 1 without a 'beam_width': it belongs to beam search")
    if beams > 1 and request.stream:
        raise RequestRefused("'stream' must be false with a 'beam_width': the best beam is known at the end")
    if beams > 1 and request.return_log_probs:
        raise RequestRefused("'return_log_probs' must be false with a 'beam_width': the LLM has none for many beams")
    check_generates(request)
    check_guide(request, settings)
    check_top_log_probs(request)
    sampling = settings.sampling.of(request)
    if not _samples_all(arguments):
        ignored = {
            "bad_words": bool(request.bad_words),
            "min_tokens": request.min_tokens > 0,
            # The best token is the same with any seed.
            "seed": request.seed is not None and sampling.temperature != 0 and sampling.top_k != 1,
            "return_log_probs": request.return_log_probs,
            "repetition_penalty": sampling.repetition_penalty != 1,
            "presence_penalty": sampling.presence_penalty != 0,
            "frequency_penalty": sampling.frequency_penalty != 0,
        }
        for name in (name for name, wanted in ignored.items() if wanted):
            raise RequestRefused(f"'{name}' cannot be honoured by the sampler that llm_args choose")
    elif {"sampler_type", "enable_trtllm_sampler"} & arguments.keys() and sampling.top_k > MAX_TOP_K:
        raise RequestRefused(f"'top_k' is {sampling.top_k}; the most is {MAX_TOP_K}, and 0 means all tokens")


def _samples_all(arguments: Mapping[str, Any]) -> bool:
    """Whether the sampler honours every field. Speculative decoding has one of its own, and so may `llm_args`."""
    if arguments.get("speculative_config") is not None:
        return False
    return arguments.get("sampler_type", "TRTLLMSampler") == "TRTLLMSampler" and arguments.get(
        "enable_trtllm_sampler", True
    )
