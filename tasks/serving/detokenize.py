"""Text from tokens as they come: what is streamed, joined, is exactly what the tokenizer makes of all of them.

Decoding is no concatenation: a first space goes, a character may lie in several tokens, and a space may go again
once a full stop follows. So a window of the last tokens is decoded with each new one, and of its text only that goes
out which no token that follows can change. What that is follows from how decoders work:

- Byte-level ones read all bytes as UTF-8. Only a last U+FFFD may be an unfinished character.
- Those with byte fallback read a run of byte tokens (`<0x0A>`) as UTF-8, and one bad byte makes every byte of the run
  a U+FFFD, so nothing of a run is certain until another token ends it.
- Some take spaces out of the finished text (`_UNCERTAIN`).
- What a first token loses (its space, or its `##`) is lost to the first of the window alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .tokenizer import Tokenizer

KEPT_TOKENS = 24
"""The window after it was cut. `_IN_STEP` characters must be in it, of which each may have four tokens."""

MAX_TOKENS = 2 * KEPT_TOKENS
"""The window is cut when it is longer, so one new token costs the decoding of at most so many."""

_REPLACEMENT = "\ufffd"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

# transformers' clean_up_tokenization takes the space from " .", " ?", " !", " ,", " n't", " 'm", " 's", " 've" and
# " 're", and both from " ' ", one after the other. An end like these may lose or get back a space yet.
_UNCERTAIN = re.compile(r" {0,2}[ '] ?(?:n ?'?|[vr])?\Z")

_IN_STEP = 4
"""Characters before those still to go out that make sure that a shorter window gives the same text from here on.

No character has more bytes. And a space that was taken out shows: texts that agree have come to the same state.
"""


class Detokenizer:
    """The text of one answer. Special tokens are left out of it, unless they are asked for."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._bytes: list[int] = []
        """The run of byte tokens after the window, which has not ended yet."""
        self._sent = 0
        """Characters of the window's text that went out."""

    def push(self, ids: Iterable[int]) -> str:
        """The text that became certain with these tokens, often empty for one that ends within a character.

        A token costs two decodings of at most `MAX_TOKENS` tokens, amortized over the answer.
        """
        before = len(self._window)
        for token_id in ids:
            if _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or ""):
                self._bytes.append(token_id)
            # A token that the decoder never sees ends no run.
            elif not self._bytes or not self._is_silent(token_id):
                self._window += (*self._bytes, token_id)
                self._bytes.clear()
        if len(self._window) == before:
            return ""
        text = self._decode(self._window)
        certain = max(self._sent, _certain_length(text))
        piece = text[self._sent : certain]
        self._sent = certain
        if len(self._window) > MAX_TOKENS:
            self._cut(text)
        return piece

    def flush(self) -> str:
        """What is left, now that nothing follows; a broken character is what the tokenizer makes of it."""
        rest = self._decode([*self._window, *self._bytes])[self._sent :]
        self._window, self._bytes, self._sent = [], [], 0
        return rest

    def _cut(self, text: str) -> None:
        """Forget tokens that what follows does not depend on, if that can be told."""
        window = self._window[-KEPT_TOKENS:]
        kept = self._decode(window)
        unsent = len(text) - self._sent
        if _common_end(kept, text) >= unsent + _IN_STEP:
            self._window, self._sent = window, len(kept) - unsent
        else:
            self._window = [token_id for token_id in self._window if not self._is_silent(token_id)]

    def _is_silent(self, token_id: int) -> bool:
        """Whether the decoder never sees this token: it is special and skipped, or in no vocabulary."""
        if self._tokenizer.convert_ids_to_tokens(token_id) is None:
            return True
        alone = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return alone != "" and self._decode([token_id]) == ""

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


def _certain_length(text: str) -> int:
    if text.endswith(_REPLACEMENT):
        return len(text) - 1
    uncertain = _UNCERTAIN.search(text)
    return uncertain.start() if uncertain else len(text)


def _common_end(one: str, other: str) -> int:
    length = 0
    for first, second in zip(reversed(one), reversed(other), strict=False):
        if first != second:
            break
        length += 1
    return length
