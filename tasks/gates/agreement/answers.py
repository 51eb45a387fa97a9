"""Answers that run on: where those of a candidate first differ from those of the live release. It decides nothing.

After the first token that differs all others may, so the text of an answer says little of a release, and the place
where it first differs says a little more. People see both texts side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from infra.triton.client import TritonClient
from tasks.gates.protocol import Served
from tasks.models.spec import Prompt

MOST_TOKENS = 64


@dataclass(frozen=True)
class RunOn:
    """The answers of both releases to one prompt, at temperature 0."""

    prompt: str
    candidate: str
    live: str

    @property
    def same(self) -> bool:
        return self.candidate == self.live

    @property
    def first_difference(self) -> int:
        """How many characters are the same from the beginning on; all of them if the answers are the same."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.candidate, self.live, strict=False)))


def run_on(client: TritonClient, prompts: Sequence[Prompt], candidate: Served, live: Served) -> list[RunOn]:
    """Both answer each prompt of the model. Raises TritonError."""

    def answer(served: Served, prompt: Prompt) -> str:
        request: dict[str, str | int | float] = {
            "text_input": prompt.text,
            "max_tokens": min(prompt.max_tokens, MOST_TOKENS),
            "temperature": 0.0,
        }
        return client.generate(served.name, request).text

    return [RunOn(prompt.text, answer(candidate, prompt), answer(live, prompt)) for prompt in prompts]
