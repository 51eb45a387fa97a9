"""Questions put to one release: its answers, and whether they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.errors import TritonError
from infra.triton.client import TritonClient
from tasks.gates.protocol import Served
from tasks.gates.quality.questions import LETTERS, Question
from tasks.gates.quality.scoring import is_right, lettered, likeliest_choice

_LIKELIEST = 20
"""The most that the contract tells. A letter that is not among them is no answer to a choice."""
_LETTER_TOKENS = 8
"""Of an answer that names a letter, where the likeliest tokens are not told."""


@dataclass(frozen=True)
class Mark:
    """One answer of one release. `error` says why there is none, which is not right either.

    `ended` says whether a written answer ended before its last token; None if it was not written, or if nobody knows.
    """

    right: bool
    answer: str
    error: str = ""
    ended: bool | None = None


def mark(client: TritonClient, served: Served, question: Question, *, by_likelihood: bool) -> Mark:
    """Put one question, at temperature 0. Raises TritonError that is retryable; every other one is a mark."""
    try:
        if question.scorer == "choice" and by_likelihood:
            return _likeliest(client, served, question)
        counts = served.intent.serving.get("contract") == 2
        answer = client.generate(served.name, _request(question, counts=counts))
    except TritonError as error:
        if error.retryable:
            raise
        return Mark(right=False, answer="", error=error.message)
    written = question.scorer != "choice" and answer.tokens is not None
    ended = (answer.tokens or 0) < question.max_tokens if written else None
    return Mark(is_right(question, answer.text), answer.text, ended=ended)


def tell_likelihoods(client: TritonClient, releases: Sequence[Served], questions: Sequence[Question]) -> bool:
    """Whether all releases tell the likeliest tokens, which the first contract and some kinds do not.

    The first choice among the questions is put to each; without one it does not matter. Raises TritonError that is
    retryable.
    """
    choice = next((question for question in questions if question.scorer == "choice"), None)
    if choice is None or any(served.intent.serving.get("contract") != 2 for served in releases):
        return False
    try:
        answers = [client.generate(served.name, _letter_request(choice)) for served in releases]
    except TritonError as error:
        if error.retryable:
            raise
        return False
    return all(answer.likeliest for answer in answers)


def _likeliest(client: TritonClient, served: Served, question: Question) -> Mark:
    answer = client.generate(served.name, _letter_request(question))
    place = likeliest_choice(question, answer.likeliest)
    if place is None:
        return Mark(right=False, answer=answer.text)
    return Mark(place == question.choice, f"{LETTERS[place]}. {question.choices[place]}")


def _letter_request(question: Question) -> dict[str, str | int | float]:
    return {
        "text_input": lettered(question),
        "max_tokens": 1,
        "temperature": 0.0,
        "return_log_probs": True,
        "num_top_log_probs": _LIKELIEST,
    }


def _request(question: Question, *, counts: bool) -> dict[str, str | int | float | list[str]]:
    is_choice = question.scorer == "choice"
    request: dict[str, str | int | float | list[str]] = {
        "text_input": lettered(question) if is_choice else question.prompt,
        "max_tokens": _LETTER_TOKENS if is_choice else question.max_tokens,
        "temperature": 0.0,
    }
    if counts:
        request["return_num_output_tokens"] = True
    if question.stop:
        request["stop_words"] = list(question.stop)
    return request
