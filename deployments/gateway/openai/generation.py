"""What a request of OpenAI's API becomes, a row of the serving contract, and what comes back of it, its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from infra.errors import EnginehouseError
from tasks.serving.failures import FailureCode

FinishReason: TypeAlias = Literal["stop", "length", "stop_words"]
"""Why an answer ended: the model's end token, `max_tokens`, or a stop word."""

GuideType: TypeAlias = Literal["", "json", "json_schema", "regex", "ebnf_grammar"]


@dataclass(frozen=True)
class Generation:
    """The inputs of one row, with the names of the serving contract. None and the empty text mean: not sent.

    Either `text_input` or `messages` is set. `messages` and `tools` are JSON lists, `chat_template_kwargs` is a JSON
    object, all as text. Token counts are always asked for, since usage needs them.
    """

    text_input: str | None = None
    messages: str | None = None
    tools: str | None = None
    chat_template_kwargs: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop_words: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stream: bool = False
    return_log_probs: bool = False
    return_output_tokens: bool = False
    num_top_log_probs: int | None = None
    skip_special_tokens: bool | None = None
    return_num_input_tokens: bool = True
    return_num_output_tokens: bool = True
    guided_decoding_guide_type: GuideType = ""
    guided_decoding_guide: str = ""


@dataclass(frozen=True)
class Piece:
    """One response of a row: all of its answer, or a streamed part.

    `num_output_tokens` counts the tokens of this piece, `num_input_tokens` those of the prompt. `log_probs` has one
    natural logarithm a token, `tokens` the bytes of each, which may be part of a character, and `top` the likeliest in
    its place. `finish_reason` is set in the last piece, and only there.
    """

    text: str
    num_input_tokens: int
    num_output_tokens: int
    log_probs: tuple[float, ...] = ()
    tokens: tuple[bytes, ...] = ()
    top: tuple[tuple[tuple[bytes, float], ...], ...] = ()
    finish_reason: FinishReason | None = None


class GenerationFailed(EnginehouseError):
    """Raised by an iterator of pieces. `failure` says which kind; the message of `invalid` names the input."""

    def __init__(self, failure: FailureCode, message: str, *, param: str | None = None) -> None:
        super().__init__(message, code=f"generation-{failure}", retryable=failure == "unavailable")
        self.failure: FailureCode = failure
        self.param = param
