"""Texts that both releases read, and the places where they are asked what comes next."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UsageError
from tasks.gates.sets import SetText, lines_of, problem_at

BUNDLED = Path(__file__).with_name("passages.jsonl")

_WORD_END = re.compile(r"\w(?!\w)")
_NEAR = 12
"""Characters that a cut moves at most, to fall on the end of a word. Scripts without spaces have none so near."""

_MOST_CHARACTERS = 20_000


@dataclass(frozen=True)
class Passage:
    """One text. `name` tells it from the others of its set."""

    name: str
    text: str

    def prefixes(self, count: int) -> tuple[str, ...]:
        """Up to `count` beginnings, spread evenly over the text, none of them empty and none of them all of it.

        Each ends with a word where one ends nearby: a template may take a space at the end away, and a tokenizer
        joins one with the word that follows.
        """
        ends = {found.end() for found in _WORD_END.finditer(self.text)}
        cuts: set[int] = set()
        for place in range(1, count + 1):
            wanted = round(len(self.text) * place / (count + 1))
            cuts.add(_near(wanted, ends - cuts))
        return tuple(self.text[:cut] for cut in sorted(cuts) if 0 < cut < len(self.text) and self.text[:cut].strip())


def _near(wanted: int, ends: Collection[int]) -> int:
    nearest = min(ends, key=lambda end: abs(end - wanted), default=wanted)
    return nearest if abs(nearest - wanted) <= _NEAR else wanted


def passages_of(found: SetText) -> tuple[Passage, ...]:
    """The passages of a set, in an order that mixes its languages: one a line as JSON, or paragraphs of plain text.

    A line is an object with `text`, and with a `name` if it has one; paragraphs are divided by empty lines. Raises
    UsageError `set-invalid`.
    """
    passages = _of_lines(found) if found.text.lstrip().startswith("{") else _of_paragraphs(found)
    if len({passage.name for passage in passages}) < len(passages):
        raise UsageError(f"{found.name}: two passages have one name", code="set-invalid")
    for passage in passages:
        if len(passage.text) > _MOST_CHARACTERS:
            raise UsageError(
                f"{found.name}: passage '{passage.name}' has {len(passage.text)} characters; "
                f"it may have {_MOST_CHARACTERS}",
                hint="divide it: passages are what is independent of each other, so more of them say more",
                code="set-invalid",
            )
    return tuple(sorted(passages, key=lambda passage: hashlib.sha256(passage.name.encode()).digest()))


def _of_lines(found: SetText) -> list[Passage]:
    passages: list[Passage] = []
    for number, line in lines_of(found):
        text, name = line.get("text"), line.get("name", f"line {number}")
        if not isinstance(text, str) or not text.strip() or not isinstance(name, str):
            raise problem_at(found, number, "needs a `text`, and a `name` that is a text or none")
        passages.append(Passage(name, text))
    return passages


def _of_paragraphs(found: SetText) -> list[Passage]:
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", found.text) if paragraph.strip()]
    return [Passage(f"paragraph {number}", paragraph) for number, paragraph in enumerate(paragraphs, 1)]


def bundled() -> tuple[Passage, ...]:
    """The 64 of Enginehouse: prose in 24 languages, dialogue, code, numbers, tables and JSON."""
    return passages_of(SetText(BUNDLED.name, BUNDLED.read_text(encoding="utf-8")))
