"""What a request of OpenAI's API becomes, a row of the serving contract, and what comes back of it, its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from infra.errors import EnginehouseError

FinishReason: TypeAlias = Literal["stop", "length", "stop_words"]
"""Why an answer ended: the model's end token, `max_tokens`, or a stop word."""

GuideType: TypeAlias = Literal["", "json", "json_schema", "regex", "ebnf_grammar"]

Failure: TypeAlias = Literal["invalid", "unavailable", "cancelled", "deadline", "internal"]


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
    return_num_input_tokens: bool = True
    return_num_output_tokens: bool = True
    guided_decoding_guide_type: GuideType = ""
    guided_decoding_guide: str = ""


@dataclass(frozen=True)
class Piece:
    """One response of a row: all of its answer, or a streamed part.

    `num_output_tokens` counts the tokens of this piece, `num_input_tokens` those of the prompt. `log_probs` has one
    natural logarithm a token. `token_texts` says which part of `text` each of them is; it is empty where the release
    does not say. `finish_reason` is set in the last piece, and only there.
    """

    text: str
    num_input_tokens: int
    num_output_tokens: int
    log_probs: tuple[float, ...] = ()
    token_texts: tuple[str, ...] = ()
    finish_reason: FinishReason | None = None


class GenerationFailed(EnginehouseError):
    """Raised by an iterator of pieces. `failure` says which kind; the message of `invalid` names the input."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message, code=f"generation-{failure}", retryable=failure == "unavailable")
        self.failure: Failure = failure
