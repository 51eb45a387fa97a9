"""What a client may send and what it gets back: the one table behind every kind and every config.pbtxt.

All tensors are `[batch, 1]` (`[batch, n]` for the lists of words) with the names of the TensorRT-LLM ensemble, so
its published clients work unchanged. Whatever is not in the table is an error that names it, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .guides import GuideRefused, check_guide

Scalar: TypeAlias = bool | int | float | str
Tensor: TypeAlias = npt.NDArray[Any]

MAX_BATCH_SIZE = 64
"""Rows in one request; the published `triton_max_batch_size`."""

GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar")
"""What a guide can be, in the published names: any JSON value, one of a schema, a regular expression, or a grammar in
GBNF with the rule `root`. All but the first need the guide itself."""


MAX_WORD_CHARACTERS = 2000
"""All stop words of a row together, and all bad words: each token that comes is held against them."""


MAX_CHARACTERS_PER_TOKEN = 64
"""Of a prompt, on the average: longer texts are refused before their tokens are counted. Real ones have about four."""


class RequestRefused(ValueError):
    """The client asked for something that does not exist or cannot be honoured; the message names the field."""


@dataclass(frozen=True)
class Input:
    """One input tensor: `data_type` is Triton's name for it; `minimum` and `maximum` are inclusive."""

    name: str
    data_type: str
    required: bool = False
    many: bool = False
    alias_of: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf


@dataclass(frozen=True)
class Output:
    """One output tensor; `dims` without the batch, as in the published ensemble."""

    name: str
    data_type: str
    dims: tuple[int, ...]


INPUTS: tuple[Input, ...] = (
    Input("text_input", "BYTES", required=True),
    Input("max_tokens", "INT32", required=True, minimum=1),
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
    Input("exclude_input_in_output", "BOOL"),
    Input("guided_decoding_guide_type", "BYTES"),
    Input("guided_decoding_guide", "BYTES"),
)

OUTPUTS: tuple[Output, ...] = (
    Output("text_output", "BYTES", (-1,)),
    Output("cum_log_probs", "FP32", (-1,)),
    Output("output_log_probs", "FP32", (-1, -1)),
)


@dataclass(frozen=True)
class GenerationRequest:
    """One row of a request. None means the model's own default, for `seed` a random one."""

    text_input: str
    max_tokens: int
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
    exclude_input_in_output: bool = True
    guided_decoding_guide_type: str = ""
    guided_decoding_guide: str = ""


@dataclass(frozen=True)
class Answer:
    """What a client gets of one row: all of it, or one streamed piece.

    `log_probs` has one natural logarithm a token of `text`; `cum_log_prob` is their sum from the first piece on.
    """

    text: str
    log_probs: tuple[float, ...] = ()
    cum_log_prob: float = 0.0


def parse_request(tensors: Mapping[str, Tensor], parameters: Mapping[str, object]) -> tuple[GenerationRequest, ...]:
    """The rows of one Triton request.

    `tensors` maps input names to arrays of shape `[batch, n]`, absent inputs left out. `parameters` are Triton's
    request parameters: a field of a `/generate` body that is no input arrives there, so nearly all of them are unknown.
    Raises RequestRefused, which names the field.
    """
    known = {entry.name: entry for entry in INPUTS}
    for name in parameters:
        if name == "id":
            # Triton's own name of the request, which /generate passes on as a parameter too.
            continue
        if name in known:
            raise RequestRefused(f"'{name}' came as a request parameter; send it as an input tensor")
        raise RequestRefused(f"'{name}' is not a field that this model knows; it takes {', '.join(known)}")
    for entry in INPUTS:
        if entry.required and entry.name not in tensors:
            raise RequestRefused(f"'{entry.name}' is required")
        if entry.alias_of and entry.name in tensors and entry.alias_of in tensors:
            raise RequestRefused(f"'{entry.name}' and '{entry.alias_of}' are the same; send one of them")
    rows = len(tensors["text_input"])
    fields: list[dict[str, Any]] = [{} for _ in range(rows)]
    for name, tensor in tensors.items():
        entry = known[name]
        if tensor.ndim != 2 or len(tensor) != rows or not (entry.many or tensor.shape[1] == 1):
            wanted = f"[{rows}, {'n' if entry.many else 1}]"
            raise RequestRefused(f"'{name}' has shape {list(tensor.shape)} where {wanted} is expected")
        for row, values in zip(fields, tensor, strict=True):
            row[entry.alias_of or name] = _words(entry, values) if entry.many else _scalar(entry, values[0])
    requests = tuple(GenerationRequest(**row) for row in fields)
    for request in requests:
        _check_guide(request)
    if rows > 1 and any(request.stream for request in requests):
        raise RequestRefused(f"'stream' works on a batch of 1, not {rows}: pieces of several rows would mix")
    return requests


def check_length(text: str, most_tokens: int) -> None:
    """Raise RequestRefused for a prompt with more text than so many tokens hold."""
    if len(text) > (most := most_tokens * MAX_CHARACTERS_PER_TOKEN):
        raise RequestRefused(f"'text_input' has {len(text)} characters; of {most_tokens} tokens it may have {most}")


def encode_answers(answers: Sequence[Answer], *, log_probs: bool) -> dict[str, Tensor]:
    """The output tensors of a batch: text `[batch, 1]`, and if wanted log probabilities `[batch, 1(, tokens)]`.

    Rows shorter than the longest are filled up with 0, as TensorRT-LLM does.
    """
    tensors: dict[str, Tensor] = {
        "text_output": np.array([[answer.text.encode()] for answer in answers], dtype=np.object_)
    }
    if log_probs:
        tokens = max(len(answer.log_probs) for answer in answers)
        filled = np.zeros((len(answers), 1, tokens), dtype=np.float32)
        for row, answer in zip(filled, answers, strict=True):
            row[0, : len(answer.log_probs)] = answer.log_probs
        tensors["output_log_probs"] = filled
        tensors["cum_log_probs"] = np.array([[answer.cum_log_prob] for answer in answers], dtype=np.float32)
    return tensors


def _check_guide(request: GenerationRequest) -> None:
    kind, guide = request.guided_decoding_guide_type, request.guided_decoding_guide
    if not kind and guide:
        raise RequestRefused("'guided_decoding_guide' needs a 'guided_decoding_guide_type'")
    if kind and kind not in GUIDE_TYPES:
        raise RequestRefused(f"'guided_decoding_guide_type' is '{kind}'; it can be {', '.join(GUIDE_TYPES)}")
    if kind == "json" and guide:
        raise RequestRefused("'guided_decoding_guide' must be empty with the type 'json'; a schema is 'json_schema'")
    if kind not in ("", "json") and not guide:
        raise RequestRefused(f"'guided_decoding_guide' is required with the type '{kind}'")
    if guide:
        try:
            check_guide(kind, guide)
        except GuideRefused as error:
            raise RequestRefused(f"'guided_decoding_guide' {error}") from error
    if kind and request.beam_width > 1:
        raise RequestRefused("'beam_width' must be 1 with a guide: it follows one answer")


def _words(entry: Input, values: Tensor) -> tuple[str, ...]:
    # Published clients send [""] where they mean no words.
    words = tuple(word for word in (_text(entry, value) for value in values) if word)
    if (characters := sum(map(len, words))) > MAX_WORD_CHARACTERS:
        raise RequestRefused(f"'{entry.name}' hold {characters} characters; the most is {MAX_WORD_CHARACTERS}")
    return words


def _scalar(entry: Input, value: Any) -> Scalar:
    if entry.data_type == "BYTES":
        return _text(entry, value)
    if entry.data_type == "BOOL":
        return bool(value)
    number = float(value) if entry.data_type == "FP32" else int(value)
    if not math.isfinite(number):
        raise RequestRefused(f"'{entry.name}' is {number}, not a number")
    if number < entry.minimum:
        # Triton wraps a number of a JSON body that does not fit into 32 bits.
        wrapped = ", and the most 2147483647" if entry.data_type == "INT32" else ""
        raise RequestRefused(f"'{entry.name}' is {number}; the least is {entry.minimum:g}{wrapped}")
    if number <= entry.above:
        raise RequestRefused(f"'{entry.name}' is {number}; it must be above {entry.above:g}")
    if number > entry.maximum:
        raise RequestRefused(f"'{entry.name}' is {number}; the most is {entry.maximum:g}")
    return number


def _text(entry: Input, value: Any) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise RequestRefused(f"'{entry.name}' is not UTF-8: {error}") from error
