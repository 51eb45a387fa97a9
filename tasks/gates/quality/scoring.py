"""Whether an answer is right."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tasks.gates.quality.questions import LETTERS, Question
from tasks.gates.quality.schemas import takes

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_LETTER = re.compile(r"(?<!\w)([A-Z])(?!\w)")


def is_right(question: Question, answer: str) -> bool:
    """Whether a written answer is right. Of a choice it is the first single letter that counts."""
    match question.scorer:
        case "exact":
            return answer.strip() in {wanted.strip() for wanted in _several(question.exact)}
        case "contains":
            return all(wanted in answer for wanted in _several(question.contains))
        case "regex":
            return re.search(question.regex or "", answer) is not None
        case "numeric":
            return _is_number(question, answer)
        case "json_schema":
            return takes(question.json_schema, answer)
        case "choice":
            letter = _LETTER.search(answer)
            return letter is not None and letter[1] == LETTERS[question.choice or 0]


def likeliest_choice(question: Question, likeliest: Sequence[tuple[str, float]]) -> int | None:
    """The choice whose letter is likeliest to be the next token; None if no letter of one is among the `likeliest`.

    Each of these is the text of a token with its log probability. A letter may be a token with a space or without.
    """
    found = {LETTERS.index(text.strip()): -math.inf for text, _ in likeliest if _is_letter(text, question)}
    for text, log_probability in likeliest:
        if _is_letter(text, question):
            place = LETTERS.index(text.strip())
            found[place] = max(found[place], log_probability)
    return max(found, key=lambda place: found[place], default=None)


def lettered(question: Question) -> str:
    """The prompt of a choice, with the choices below it, unless they are letters that the prompt has explained."""
    if question.choices == tuple(LETTERS[: len(question.choices)]):
        return question.prompt
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{question.prompt}\n{choices}\nAnswer with the letter of the right one alone."


def _is_letter(text: str, question: Question) -> bool:
    stripped = text.strip()
    return len(stripped) == 1 and stripped in LETTERS[: len(question.choices)]


def _several(wanted: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (wanted,) if isinstance(wanted, str) else wanted or ()


def _is_number(question: Question, answer: str) -> bool:
    numbers = _NUMBER.findall(answer)
    wanted = question.numeric
    return (
        bool(numbers) and wanted is not None and abs(float(numbers[-1].replace(",", "")) - wanted) <= question.tolerance
    )
