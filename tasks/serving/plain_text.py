"""Special tokens in what somebody has written stay text: `<|im_end|>` of a user ends no turn.

A template renders text and its own tokens into one text, in which nobody can tell them apart any more. So those in the
text are marked before, and what is marked becomes tokens by itself, in halves that are no special tokens. transformers
does alike where it is asked to (`sanitize_control_tokens` of 5.24); vLLM and llama.cpp's server do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .contract import Json

_LONGEST = 100
"""Characters of a special token. Real ones have thirty; a longer one stays what it is."""

_MARKS = range(0xE000, 0xF8FF)
"""Characters for private use: the first that is in no text of a request marks its special tokens."""


@dataclass(frozen=True)
class PlainText:
    """`tokens` are the special ones, as text. One of a single character cannot be written otherwise: it stays one."""

    tokens: Collection[str]

    @cached_property
    def _token(self) -> re.Pattern[str]:
        # The second never matches.
        return re.compile(_any_of(token for token in self.tokens if 1 < len(token) <= _LONGEST) or "(?!)")

    def mark_for(self, messages: Collection[Json]) -> str:
        """What marks the special tokens in the texts of these messages; empty where they have none."""
        texts = [text for message in messages if _is_written(message) for text in _texts(message)]
        if not any(self._token.search(text) for text in texts):
            return ""
        used = set("".join(texts))
        return next(mark for mark in map(chr, _MARKS) if mark not in used)

    def marked(self, message: Json, mark: str) -> Json:
        """The message with the special tokens in its texts between two marks."""
        if not (mark and _is_written(message)):
            return message
        return {
            name: self._token.sub(lambda found: f"{mark}{found[0]}{mark}", value)
            if isinstance(value, str) and name != "role"
            else value
            for name, value in message.items()
        }

    def parts(self, rendered: str, mark: str) -> Iterator[tuple[str, bool]]:
        """What a template made of marked messages, in parts, and whether each is the template's; never empty ones."""
        if not mark:
            yield rendered, True
            return
        for index, part in enumerate(re.split(f"{mark}({self._token.pattern}){mark}", rendered)):
            # A template may have taken a token apart, or one of its marks away.
            if text := part.replace(mark, ""):
                yield text, index % 2 == 0

    def ids(self, token: str, encoded: Callable[[str], list[int]]) -> list[int]:
        """The tokens of a special one as text; `encoded` gives those of a text."""
        for cut in range(1, len(token)):
            halves = token[:cut], token[cut:]
            if not any(self._token.search(half) or half in self.tokens for half in halves):
                return [token_id for half in halves for token_id in encoded(half)]
        return encoded(token)


def special_tokens(loaded: Any, templates: Collection[str]) -> PlainText:
    """Those of a tokenizer of transformers, and added tokens that a template writes, such as the turns of DeepSeek."""
    added = loaded.added_tokens_decoder.values()
    written = "".join(templates)
    return PlainText(
        {
            *loaded.all_special_tokens,
            *(token.content for token in added if token.special),
            *(token.content for token in added if token.content in written and not token.content.isspace()),
        }
    )


def _any_of(tokens: Iterable[str]) -> str:
    """A pattern of the longest of these texts, which looks at each character of a text once.

    Vocabularies have thousands of special tokens that begin alike; one after the other they take seconds.
    """
    after: dict[str, list[str]] = {}
    for token in tokens:
        after.setdefault(token[:1], []).append(token[1:])
    ends = after.pop("", None) is not None
    choices = [re.escape(first) + _any_of(rests) for first, rests in after.items()]
    if not choices:
        return ""
    return f"(?:{'|'.join(choices)}){'?' if ends else ''}" if ends or len(choices) > 1 else choices[0]


def _is_written(message: Json) -> bool:
    """Whether somebody else has written it: what the model said may hold tokens of its own."""
    return message.get("role") != "assistant"


def _texts(message: Json) -> list[str]:
    return [value for name, value in message.items() if isinstance(value, str) and name != "role"]
