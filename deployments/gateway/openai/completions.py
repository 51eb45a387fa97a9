"""`POST /v1/completions`: a body becomes generations, one a prompt and choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from .bodies import Document, Neutral, moved_up, validated, without_neutral
from .errors import invalid
from .fields import NEUTRAL, Common, sampled
from .generation import Generation
from .guides import NESTED, guide_of

MOST_PROMPTS = 64
MOST_ANSWERS = 64
"""Of one request: prompts times choices."""

_NEUTRAL: Mapping[str, Neutral] = {**NEUTRAL, "add_special_tokens": (True,)}


@dataclass(frozen=True)
class CompletionRequest:
    """A request that was understood. The choices of the first prompt come first, then those of the next."""

    model: str
    generations: tuple[Generation, ...]
    choices_per_prompt: int
    stream: bool
    include_usage: bool
    log_probs: bool


class _Fields(Common):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
    # How many of the likeliest tokens are told beside the one that was chosen.
    logprobs: int | None = Field(default=None, ge=0, le=5)


def parse_completion(document: Document) -> CompletionRequest:
    """What a body asks for. Raises ApiError, which names the field that is wrong or cannot be honoured."""
    _refuse_tokens(document.get("prompt"))
    fields = validated(_Fields, without_neutral(moved_up(document, NESTED), _NEUTRAL))
    prompts = [fields.prompt] if isinstance(fields.prompt, str) else fields.prompt
    if (answers := len(prompts) * fields.choices) > MOST_ANSWERS:
        raise invalid(
            f"{len(prompts)} prompts with 'n' {fields.choices} are {answers}; the most are {MOST_ANSWERS}", "n"
        )
    guide = guide_of(fields)
    return CompletionRequest(
        model=fields.model,
        generations=tuple(
            replace(
                sampled(fields, fields.max_tokens, number),
                text_input=prompt,
                return_log_probs=fields.logprobs is not None,
                return_output_tokens=fields.logprobs is not None,
                num_top_log_probs=fields.logprobs or None,
                guided_decoding_guide_type=guide.type if guide else "",
                guided_decoding_guide=guide.guide if guide else "",
            )
            for prompt in prompts
            for number in range(fields.choices)
        ),
        choices_per_prompt=fields.choices,
        stream=bool(fields.stream),
        include_usage=fields.include_usage,
        log_probs=fields.logprobs is not None,
    )


def _refuse_tokens(prompt: object) -> None:
    if isinstance(prompt, list) and any(isinstance(each, int | list) for each in prompt):  # pyright: ignore[reportUnknownVariableType]
        raise invalid("'prompt' can be a text or a list of texts; token ids are not taken", "prompt")
