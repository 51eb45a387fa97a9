"""The fields that both endpoints have, and what they become in the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from tasks.serving.contract import MAX_WORD_CHARACTERS

from .bodies import Body, Neutral
from .errors import invalid
from .generation import Generation
from .guides import Guided

MOST_CHOICES = 8
"""Of one prompt: each is an answer of its own."""

MOST_STOP_WORDS = 4
"""OpenAI's limit. Together they have the contract's most characters."""

MOST_BAD_WORDS = 64

_MOST_TOKENS = 2**31 - 1
_SEEDS = 2**64

NEUTRAL: Mapping[str, Neutral] = {
    # These say who asks, or how the answer is paid for and kept.
    "user": str,
    "metadata": dict,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "service_tier": ("auto", "default"),
    "store": (False,),
    # These would change the answer.
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    # So would vLLM's.
    "min_p": (0, 0.0),
    "length_penalty": (1, 1.0),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "priority": (0,),
}
"""Fields that are known and not honoured, with the values that ask for nothing."""


class _StreamOptions(Body):
    include_usage: bool | None = None
    # Padding against those who watch the sizes of encrypted chunks.
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: Literal[False] | None = None


class Common(Guided):
    """What a chat and a completion have in common. Ranges are OpenAI's, for its extensions the contract's."""

    model: str = Field(min_length=1, max_length=256)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1, le=_MOST_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-_SEEDS // 2, lt=_SEEDS)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOP_WORDS)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # The names of vLLM; -1 is its way to say that all tokens count.
    top_k: int | None = Field(default=None, ge=-1, le=_MOST_TOKENS)
    min_tokens: int | None = Field(default=None, ge=0, le=_MOST_TOKENS)
    repetition_penalty: float | None = Field(default=None, gt=0)
    bad_words: Annotated[list[str], Field(max_length=MOST_BAD_WORDS)] | None = None

    @property
    def choices(self) -> int:
        """How many answers there are for a prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def sampled(fields: Common, max_tokens: int | None, choice: int) -> Generation:
    """What the fields become, all but the prompt and the guide. Choice 0 has the seed itself, each next one more.

    Raises ApiError for fields that do not fit together.
    """
    if fields.stream_options is not None and not fields.stream:
        raise invalid("'stream_options' needs 'stream'", "stream_options")
    if max_tokens is not None and fields.min_tokens is not None and fields.min_tokens > max_tokens:
        raise invalid(f"'min_tokens' is {fields.min_tokens}, and the most are {max_tokens}", "min_tokens")
    stop = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    return Generation(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=None if fields.top_k is None else max(fields.top_k, 0),
        seed=None if fields.seed is None else (fields.seed + choice) % _SEEDS,
        stop_words=_words(stop, "stop"),
        bad_words=_words(fields.bad_words or [], "bad_words"),
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        stream=bool(fields.stream),
    )


def _words(words: list[str], param: str) -> tuple[str, ...]:
    """The words that are none are left out, as the contract does."""
    if (characters := sum(map(len, words))) > MAX_WORD_CHARACTERS:
        raise invalid(f"'{param}' has {characters} characters; the most are {MAX_WORD_CHARACTERS}", param)
    return tuple(filter(None, words))
