"""What is asked: prompts of drawn lengths, or those of a file.

A drawn prompt begins with a number of its own, so that no server answers from the cache of the prompt before. Its
words are short and common: in the usual vocabularies each is one token. How many tokens it has, only the server knows
and tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import cast

from infra.errors import UsageError
from tasks.load.lengths import Lengths

MOST_FILE_BYTES = 256 << 20
"""Of a file of prompts or of a trace; it is held in memory."""

_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which
one you were her all she there would their we him been has when who will more no if out so said what up its
about into than them can only other new some could time these two may then do first any my now such like our
over man me even most made after also did many before must through back years where much your way well down
should because each just those people how too little state good very make world still own see men work long
get here between both life being under never day same another know while last might us great old year off come
since against go came right used take three
"""
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Prompt:
    """A text, and the most tokens of its answer."""

    text: str
    output_tokens: int


def drawn_prompt(random: Random, tokens: int, output_tokens: int) -> Prompt:
    """A prompt of about so many tokens."""
    begin = f"{random.randrange(10**6, 10**9)}:"
    return Prompt(" ".join((begin, *random.choices(_WORDS, k=max(tokens - 2, 1)))), output_tokens)


def drawn_prompts(seed: int, prompts: Lengths, answers: Lengths) -> Iterator[Prompt]:
    """Without end, the same for the same seed."""
    random = Random(f"{seed}/prompts")
    while True:
        yield drawn_prompt(random, prompts.draw(random), answers.draw(random))


def prompts_of_file(path: Path, seed: int, answers: Lengths) -> Iterator[Prompt]:
    """The prompts of a file over and over, each with a length that is drawn.

    A line is a prompt. In a file `.jsonl` it is an object with `prompt` and, where the answer has a length of its own,
    `output_tokens`. Raises UsageError, code `load-prompts`.
    """
    found = [*_read_prompts(path)]
    if not found:
        raise UsageError(f"{path} has no prompt", code="load-prompts")
    return _repeated(found, seed, answers)


def _repeated(found: list[tuple[str, int | None]], seed: int, answers: Lengths) -> Iterator[Prompt]:
    random = Random(f"{seed}/answers")
    for text, tokens in cycle(found):
        yield Prompt(text, answers.draw(random) if tokens is None else tokens)


def read_lines(path: Path, code: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers. Raises UsageError with this code."""
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise UsageError(f"{path} has more than {MOST_FILE_BYTES >> 20} MiB", code=code)
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", code=code) from None
    yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def read_object(path: Path, number: int, line: str, code: str) -> dict[str, object]:
    """The JSON object of a line. Raises UsageError with this code."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path}:{number} is no JSON object", code=code)
    return cast("dict[str, object]", found)


def _read_prompts(path: Path) -> Iterator[tuple[str, int | None]]:
    for number, line in read_lines(path, "load-prompts"):
        if path.suffix != ".jsonl":
            yield line, None
            continue
        found = read_object(path, number, line, "load-prompts")
        text, tokens = found.get("prompt"), found.get("output_tokens")
        if not isinstance(text, str) or not text:
            raise UsageError(f"{path}:{number} has no 'prompt'", code="load-prompts")
        if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
            raise UsageError(f"{path}:{number}: 'output_tokens' is no number from 1 on", code="load-prompts")
        yield text, tokens
