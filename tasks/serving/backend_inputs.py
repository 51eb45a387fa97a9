"""What the model of TensorRT-LLM's C++ backend is asked: a request's fields in the names and values it knows.

Names and what becomes of them from `inflight_batcher_llm/src/utils.cc` of tensorrtllm_backend 0.8 to 0.19.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .contract import GenerationRequest, RequestRefused, Tensor, check_generates
from .settings import ServingSettings
from .tokens import Prompts
from .word_ids import word_ids

SENT: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "input_ids": ("INT32", (-1,)),
    "input_lengths": ("INT32", (1,)),
    "request_output_len": ("INT32", (1,)),
    "streaming": ("BOOL", (1,)),
    "stop": ("BOOL", (1,)),
    "end_id": ("INT32", (1,)),
    "pad_id": ("INT32", (1,)),
    "beam_width": ("INT32", (1,)),
    "len_penalty": ("FP32", (1,)),
    "runtime_top_k": ("INT32", (1,)),
    "runtime_top_p": ("FP32", (1,)),
    "temperature": ("FP32", (1,)),
    "repetition_penalty": ("FP32", (1,)),
    "presence_penalty": ("FP32", (1,)),
    "frequency_penalty": ("FP32", (1,)),
    "min_tokens": ("INT32", (1,)),
    "seed": ("UINT64", (1,)),
    "return_log_probs": ("BOOL", (1,)),
    "stop_words_list": ("INT32", (2, -1)),
    "bad_words_list": ("INT32", (2, -1)),
    "guided_decoding_guide_type": ("BYTES", (1,)),
    "guided_decoding_guide": ("BYTES", (1,)),
    "lora_task_id": ("UINT64", (1,)),
    "lora_weights": ("FP16", (-1, -1)),
    "lora_config": ("INT32", (-1, 3)),
    "draft_input_ids": ("INT32", (-1,)),
}
"""Every input that may be sent, by its name in 0.20 and later: its type in Triton's names, its dims without batch."""

GUIDES = ("guided_decoding_guide_type", "guided_decoding_guide")
"""Sent where the model is served with guides alone: 0.19 and later know them."""

LORA_WEIGHTS = "lora_weights"
"""In the type of the engine, whatever SENT says."""

ADAPTERS = ("lora_task_id", LORA_WEIGHTS, "lora_config")
"""Sent where a request chooses an adapter: 0.9 and later know them. The two last are for an engine that does not have
the adapter in its cache."""
DRAFTS = ("draft_input_ids",)
"""Sent where a draft model guesses."""

ALWAYS_SENT = ("input_ids", "input_lengths", "request_output_len")

READ: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "output_ids": ("INT32", (-1, -1)),
    "sequence_length": ("INT32", (-1,)),
    "output_log_probs": ("FP32", (-1, -1)),
}
"""The outputs that are read, the last where log probabilities are wanted."""

MAX_TOP_K = 1024
"""TOP_K_MAX in TensorRT-LLM's samplingTopKKernels.h, 0.8 to 1.2. It takes more for as many, with a warning."""

_UNTIL_0_19 = {"min_tokens": "min_length", "seed": "random_seed"}

_DTYPES = {
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "BOOL": np.bool_,
    "BYTES": np.object_,
}


def backend_inputs(
    request: GenerationRequest, prompt: Sequence[int], prompts: Prompts, settings: ServingSettings
) -> dict[str, Tensor]:
    """The inputs for one request, each with a batch of one; only what is wanted. Raises RequestRefused."""
    _check(request, settings)
    sampling = settings.sampling.of(request)
    greedy = sampling.temperature == 0
    if sampling.top_k > MAX_TOP_K:
        raise RequestRefused(f"'top_k' is {sampling.top_k}; the most is {MAX_TOP_K}, and 0 means all tokens")
    # The engine knows one, of which no answer with `min_tokens` has any before its time; others end it as words do.
    end_id, *other_ends = prompts.ends(request) or (None,)
    wanted: dict[str, object] = {
        "input_ids": prompt,
        "input_lengths": len(prompt),
        "request_output_len": settings.most_output_tokens(request, len(prompt)),
        # Without either, TensorRT-LLM takes the best token.
        "runtime_top_k": 1 if greedy else sampling.top_k,
        "runtime_top_p": 1.0 if greedy else sampling.top_p,
        # Its own default is the same seed for every request.
        "seed": secrets.randbits(64) if request.seed is None else request.seed,
    }
    optional = {
        "streaming": streams(request, settings),
        "end_id": end_id,
        "pad_id": prompts.pad_id if request.pad_id is None else request.pad_id,
        # Several versions refuse a temperature of 0.
        "temperature": None if greedy or sampling.temperature == 1 else sampling.temperature,
        "repetition_penalty": None if sampling.repetition_penalty == 1 else sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "min_tokens": request.min_tokens or None,
        "beam_width": None if request.beam_width == 1 else request.beam_width,
        "len_penalty": None if request.length_penalty == 1 else request.length_penalty,
        "return_log_probs": request.return_log_probs,
        "stop_words_list": _words(prompts, request.stop_words, other_ends),
        "bad_words_list": _words(prompts, request.bad_words),
        "guided_decoding_guide_type": request.guided_decoding_guide_type.encode() or None,
        "guided_decoding_guide": request.guided_decoding_guide.encode() or None,
    }
    wanted |= {name: value for name, value in optional.items() if value is not None and value is not False}
    return {input_name(name, settings.tensorrt_llm): as_input(name, value) for name, value in wanted.items()}


def input_name(name: str, version: str) -> str:
    """What a version of TensorRT-LLM calls the input that is `name` in 0.20 and later."""
    major, minor = version.split(".")[:2]
    return name if (int(major), int(minor)) >= (0, 20) else _UNTIL_0_19.get(name, name)


def streams(request: GenerationRequest, settings: ServingSettings) -> bool:
    """Whether the backend is to give tokens as they come: always where it can, so that a word may end the answer.

    And a call that waits for a whole answer would take a thread of the Python backend as long.
    """
    return settings.decoupled and request.beam_width == 1


def as_input(name: str, value: object) -> Tensor:
    """A value in the type of its input, with the batch of one before its dims."""
    data_type, dims = SENT[name]
    return np.array(value, dtype=_DTYPES[data_type]).reshape(1, *dims)


def save_adapter(folder: Path, weights: Tensor, config: Tensor) -> None:
    """Write an adapter as the backend takes it: for `adapter_inputs`, in a folder of its own."""
    for name, tensor in ((LORA_WEIGHTS, weights), ("lora_config", config)):
        np.save(folder / f"{name}.npy", tensor)


def adapter_inputs(folder: Path) -> dict[str, Tensor]:
    """What the backend has to be given of an adapter once: bfloat16 as numpy's 16 bits, of which it has no type."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r")[np.newaxis] for name in ADAPTERS[1:]}


def _words(prompts: Prompts, words: Sequence[str], tokens: Sequence[int] = ()) -> Tensor | None:
    array = word_ids(prompts.tokenizer, words, tokens)
    return array if array.size else None


def _check(request: GenerationRequest, settings: ServingSettings) -> None:
    beams = request.beam_width
    if beams > settings.max_beam_width:
        raise RequestRefused(f"'beam_width' is {beams}; this engine is served with {settings.max_beam_width} at most")
    if beams == 1 and request.length_penalty != 1:
        raise RequestRefused("'length_penalty' must be 1 without a 'beam_width': it belongs to beam search")
    if request.stream and beams > 1:
        raise RequestRefused("'stream' must be false with a 'beam_width': the best beam is known at the end")
    if request.stream and not settings.decoupled:
        raise RequestRefused("'stream' must be false: this model is served without streams (not decoupled)")
    check_generates(request)
    check_guide(request, settings)
    check_top_log_probs(request)


def check_top_log_probs(request: GenerationRequest) -> None:
    """Raise RequestRefused for the likeliest tokens: the backend tells of the chosen one alone, the LLM of one more."""
    if request.num_top_log_probs:
        raise RequestRefused("'num_top_log_probs' must be 0: this engine tells of the tokens of the answer alone")


def check_guide(request: GenerationRequest, settings: ServingSettings) -> None:
    """Raise RequestRefused for a guide where the model is served without: TensorRT-LLM would not follow it."""
    if request.guided_decoding_guide_type and not settings.guided_decoding:
        raise RequestRefused(
            "'guided_decoding_guide_type' must be empty: this model is served without guides "
            "(serving.tensorrt_llm.guided_decoding of its file)"
        )
