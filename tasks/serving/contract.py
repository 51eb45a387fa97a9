"""What a client may send and what it gets back: the one table behind every kind and every config.pbtxt.

Tensors have the names and shapes of the TensorRT-LLM ensemble, so its published clients work unchanged: inputs are
`[batch, 1]`, or `[batch, n]` for lists. Whatever is not in the table is an error that names it, never ignored.

A release says which contract it has. The first had no chats, no counts and no reason of the end. A model's file may
stay with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy.typing as npt

Scalar: TypeAlias = bool | int | float | str
Tensor: TypeAlias = npt.NDArray[Any]
Json: TypeAlias = Mapping[str, Any]

CONTRACT = 2
"""The newest one."""

MAX_BATCH_SIZE = 64
"""Rows in one request; the published `triton_max_batch_size`."""

GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar")
"""What a guide can be, in the published names: any JSON value, one of a schema, a regular expression, or a grammar in
GBNF with the rule `root`. All but the first need the guide itself."""

MAX_WORD_CHARACTERS = 2000
"""All stop words of a row together, and all bad words: each token that comes is held against them."""

MAX_CHARACTERS_PER_TOKEN = 64
"""Of a prompt, on the average: longer texts are refused before their tokens are counted. Real ones have about four."""

MAX_TOP_LOG_PROBS = 20
"""The likeliest tokens that are told beside each; OpenAI's limit."""

FinishReason = Literal["stop", "length", "stop_words"]
"""Why an answer ended: the model's end token, the limit of tokens, or a stop word. Every other end is an error."""


class RequestRefused(ValueError):
    """The client asked for something that does not exist or cannot be honoured; the message names the field."""


class PromptTooLong(RequestRefused):
    """The prompt has more than the model takes; the message has both numbers."""


class LogProb(float):
    """The log probability (natural logarithm) of a token of an answer, and what else is known of this token.

    `token` is its bytes, which may be part of a character. `top` has the likeliest tokens in its place, each with its
    log probability, the likeliest first, where they are wanted.
    """

    token: bytes
    top: tuple[tuple[bytes, float], ...]

    def __new__(cls, value: float, token: bytes = b"", top: tuple[tuple[bytes, float], ...] = ()) -> LogProb:
        made = super().__new__(cls, value)
        made.token, made.top = token, top
        return made


@dataclass(frozen=True)
class Input:
    """One input tensor: `data_type` is Triton's name for it; `minimum` and `maximum` are inclusive.

    `since` is the first contract that has it, and `required_until` the last that requires it. With `neutral` it is
    here for the clients that always send it, and this value, which asks for nothing, is the only one. `json` says what
    a text has to hold.
    """

    name: str
    data_type: str
    many: bool = False
    alias_of: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf
    since: int = 1
    required_until: int = 0
    neutral: Scalar | None = None
    json: Literal["", "array", "object"] = ""


@dataclass(frozen=True)
class Output:
    """One output tensor; `dims` without the batch, as in the published ensemble."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    since: int = 1


_INPUTS: tuple[Input, ...] = (
    Input("text_input", "BYTES", required_until=1),
    Input("messages", "BYTES", since=2, json="array"),
    Input("tools", "BYTES", since=2, json="array"),
    Input("chat_template_kwargs", "BYTES", since=2, json="object"),
    Input("max_tokens", "INT32", minimum=1, required_until=1),
    Input("bad_words", "BYTES", many=True),
    Input("stop_words", "BYTES", many=True),
    Input("end_id", "INT32"),
    Input("pad_id", "INT32"),
    Input("top_k", "INT32", minimum=0),
    Input("beam_width", "INT32", minimum=1),
    Input("min_tokens", "INT32", minimum=0),
    Input("min_length", "INT32", minimum=0, alias_of="min_tokens"),
    Input("top_p", "FP32", minimum=0, maximum=1),
    Input("temperature", "FP32", minimum=0),
    Input("length_penalty", "FP32"),
    Input("repetition_penalty", "FP32", above=0),
    Input("presence_penalty", "FP32"),
    Input("frequency_penalty", "FP32"),
    Input("seed", "UINT64"),
    Input("random_seed", "UINT64", alias_of="seed"),
    Input("stream", "BOOL"),
    Input("return_log_probs", "BOOL"),
    Input("return_output_tokens", "BOOL", since=2),
    Input("num_top_log_probs", "INT32", minimum=0, maximum=MAX_TOP_LOG_PROBS, since=2),
    Input("given_output", "BYTES", since=2),
    Input("skip_special_tokens", "BOOL", since=2),
    Input("return_num_input_tokens", "BOOL", since=2),
    Input("return_num_output_tokens", "BOOL", since=2),
    Input("exclude_input_in_output", "BOOL"),
    Input("lora_name", "BYTES", since=2),
    Input("guided_decoding_guide_type", "BYTES"),
    Input("guided_decoding_guide", "BYTES"),
    Input("num_return_sequences", "INT32", since=2, neutral=1),
    Input("return_context_logits", "BOOL", since=2, neutral=False),
    Input("return_generation_logits", "BOOL", since=2, neutral=False),
    Input("return_perf_metrics", "BOOL", since=2, neutral=False),
    Input("return_kv_cache_reuse_stats", "BOOL", since=2, neutral=False),
    Input("num_draft_tokens", "INT32", since=2, neutral=0),
    Input("use_draft_logits", "BOOL", since=2, neutral=False),
    Input("prompt_vocab_size", "INT32", since=2, neutral=0),
    Input("decoder_text_input", "BYTES", since=2, neutral=""),
    Input("embedding_bias_words", "BYTES", many=True, since=2, neutral=""),
    Input("embedding_bias_weights", "FP32", many=True, since=2, neutral=0.0),
)

_OUTPUTS: tuple[Output, ...] = (
    Output("text_output", "BYTES", (-1,)),
    Output("cum_log_probs", "FP32", (-1,)),
    Output("output_log_probs", "FP32", (-1, -1)),
    Output("output_tokens", "BYTES", (-1, -1), since=2),
    Output("top_tokens", "BYTES", (-1, -1), since=2),
    Output("top_log_probs", "FP32", (-1, -1), since=2),
    Output("batch_index", "INT32", (1,), since=2),
    Output("sequence_index", "INT32", (1,), since=2),
    Output("num_input_tokens", "INT32", (1,), since=2),
    Output("num_output_tokens", "INT32", (1,), since=2),
    Output("finish_reason", "BYTES", (1,), since=2),
)


def inputs_of(contract: int) -> tuple[Input, ...]:
    """The inputs of a contract, in the order of the table."""
    return tuple(entry for entry in _INPUTS if entry.since <= contract)


def outputs_of(contract: int) -> tuple[Output, ...]:
    """The outputs of a contract, in the order of the table."""
    return tuple(entry for entry in _OUTPUTS if entry.since <= contract)


@dataclass(frozen=True)
class GenerationRequest:
    """One row of a request. None means the model's own default, for `seed` a random one.

    It has `messages`, or a `text_input`. Without `skip_special_tokens` the special tokens that mark calls and reasoning
    stay in the text, and an answer whose prompt ends within reasoning begins with the mark that opened it.

    With a `given_output` nothing is generated: that text is the answer, and its log probabilities say what the model
    makes of it. The token in each place follows the given ones before it, not those that the model would have chosen.
    """

    text_input: str = ""
    messages: tuple[Json, ...] = ()
    tools: tuple[Json, ...] = ()
    chat_template_kwargs: Json = field(default_factory=dict[str, Any])
    max_tokens: int | None = None
    bad_words: tuple[str, ...] = ()
    stop_words: tuple[str, ...] = ()
    end_id: int | None = None
    pad_id: int | None = None
    top_k: int | None = None
    beam_width: int = 1
    min_tokens: int = 0
    top_p: float | None = None
    temperature: float | None = None
    length_penalty: float = 1.0
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stream: bool = False
    return_log_probs: bool = False
    return_output_tokens: bool = False
    num_top_log_probs: int = 0
    given_output: str = ""
    skip_special_tokens: bool = True
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    exclude_input_in_output: bool = True
    lora_name: str = ""
    guided_decoding_guide_type: str = ""
    guided_decoding_guide: str = ""


@dataclass(frozen=True)
class Answer:
    """What a client gets of one row: all of it, or one streamed piece.

    `log_probs` has one a token of `text`, a LogProb where tokens are wanted; `cum_log_prob` is their sum from the first
    piece on.
    `output_tokens` are those of `text`, and of the words that were cut off behind it. `finish_reason` is set in the
    last piece alone.
    """

    text: str
    log_probs: tuple[float, ...] = ()
    cum_log_prob: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: FinishReason | None = None


def check_generates(request: GenerationRequest) -> None:
    """Raise RequestRefused for a text that is given, for an engine that only generates."""
    if request.given_output:
        raise RequestRefused("'given_output' cannot be honoured: this engine generates, and scores no text of others")


def check_length(text: str, most_tokens: int) -> None:
    """Raise RequestRefused for a prompt with more text than so many tokens hold."""
    if len(text) > (most := most_tokens * MAX_CHARACTERS_PER_TOKEN):
        raise PromptTooLong(f"the prompt has {len(text)} characters; of {most_tokens} tokens it may have {most}")
