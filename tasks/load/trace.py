"""A trace: what came when, one JSON object a line.

    {"timestamp": 1500, "input_length": 700, "output_length": 120}

`timestamp` is in milliseconds and never decreases. Lengths are in tokens; a `prompt` may stand in place of the
`input_length`. These are the names of the traces that Mooncake has published and that AIPerf replays. Further fields
are of no account here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from infra.errors import UsageError
from tasks.load.arrivals import Ask
from tasks.load.lengths import MOST_TOKENS
from tasks.load.prompts import Prompt, drawn_prompt, read_lines, read_object

_CODE = "load-trace"


@dataclass(frozen=True)
class Entry:
    """A line of a trace. `prompt` is empty where only its length is known."""

    after_s: float
    input_tokens: int
    output_tokens: int
    prompt: str = ""


def read_trace(path: Path) -> tuple[Entry, ...]:
    """The first line is at 0 s, whatever its timestamp. Raises UsageError, code `load-trace`."""
    found: list[Entry] = []
    begin = last = -math.inf
    for number, line in read_lines(path, _CODE):
        fields = read_object(path, number, line, _CODE)
        moment = fields.get("timestamp")
        if isinstance(moment, bool) or not isinstance(moment, int | float) or not math.isfinite(moment):
            raise UsageError(f"{path}:{number}: 'timestamp' is no number of milliseconds", code=_CODE)
        if moment < last:
            raise UsageError(f"{path}:{number}: 'timestamp' is before that of the line before", code=_CODE)
        begin, last = moment if begin == -math.inf else begin, moment
        prompt = fields.get("prompt", "")
        if not isinstance(prompt, str):
            raise UsageError(f"{path}:{number}: 'prompt' is no text", code=_CODE)
        tokens = 0 if prompt else _length(path, number, fields, "input_length")
        output = _length(path, number, fields, "output_length")
        found.append(Entry((moment - begin) / 1000, tokens, output, prompt))
    if not found:
        raise UsageError(f"{path} is an empty trace", code=_CODE)
    return tuple(found)


def _length(path: Path, number: int, fields: dict[str, object], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        raise UsageError(f"{path}:{number}: '{name}' is no number of tokens", code=_CODE)
    return value


def replayed(entries: tuple[Entry, ...], seed: int, speed: float) -> Iterator[Ask]:
    """The trace once, `speed` times as fast as it was."""
    random = Random(f"{seed}/prompts")
    for number, entry in enumerate(entries):
        prompt = (
            Prompt(entry.prompt, entry.output_tokens)
            if entry.prompt
            else drawn_prompt(random, entry.input_tokens, entry.output_tokens)
        )
        yield Ask(number, prompt, entry.after_s / speed)
