"""Between text and tokens, for engines that take and give tokens: prompts in, pieces of text out."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .contract import RequestRefused, check_length
from .detokenize import Detokenizer
from .engine import Piece
from .tokenizer import Tokenizer
from .words import StopWords


@dataclass(frozen=True)
class Tokens:
    """Some tokens of an answer, with one log probability (natural logarithm) each where they are wanted."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()


class TokenSource(Protocol):
    """One running request of an engine that gives tokens."""

    def __iter__(self) -> Iterator[Tokens]:
        """Tokens in order; ends early and quietly when cancelled. Raises RequestRefused or EngineFailed."""
        ...

    def cancel(self) -> None:
        """Stop, waiting or running, and free what the request holds. From any thread, at any time, repeatedly."""
        ...


class Prompts:
    """The tokenizer in `folder`, and how a request's text becomes a prompt. Nothing is fetched, no code is run."""

    def __init__(self, folder: Path, *, chat_template: bool, most_tokens: int) -> None:
        transformers: Any = importlib.import_module("transformers")
        self._loaded: Any = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        self._chat_template = chat_template
        self._most_tokens = most_tokens
        self.tokenizer: Tokenizer = self._loaded
        self.end_id: int | None = self._loaded.eos_token_id
        # The first call resets what the file says of truncation and padding, which no other thread may be in.
        self.tokenizer.encode("", add_special_tokens=False)
        self.pad_id: int | None = self.end_id if self._loaded.pad_token_id is None else self._loaded.pad_token_id

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt. Raises RequestRefused where there are none or too many."""
        check_length(text, self._most_tokens)
        if self._chat_template:
            messages = [{"role": "user", "content": text}]
            # Rendered first: what it returns as tokens has another type from transformers 5 on.
            text = self._loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer.encode(text, add_special_tokens=not self._chat_template)
        if not ids or not text:
            raise RequestRefused("'text_input' is empty")
        if len(ids) > self._most_tokens:
            raise RequestRefused(f"'text_input' has {len(ids)} tokens; a prompt may have {self._most_tokens}")
        return ids


class TokenGeneration:
    """The `Generation` over a source of tokens: whole characters, without the stop words and what follows them."""

    def __init__(
        self, source: TokenSource, tokenizer: Tokenizer, *, stop_words: tuple[str, ...], end_ids: Collection[int]
    ) -> None:
        self._source = source
        self._detokenizer = Detokenizer(tokenizer)
        self._words = StopWords(stop_words)
        self._end_ids = end_ids

    def __iter__(self) -> Iterator[Piece]:
        waiting: list[float] = []
        for token_id, log_probs in self._each():
            waiting += log_probs
            if text := self._detokenizer.push([token_id]):
                yield self._words.push(Piece(text, tuple(waiting)))
                waiting.clear()
                if self._words.stopped:
                    self.cancel()
                    return
        yield self._words.push(Piece(self._detokenizer.flush(), tuple(waiting)))
        if not self._words.stopped:
            yield self._words.flush()

    def cancel(self) -> None:
        self._source.cancel()

    def _each(self) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Tokens one by one, so that each log probability goes with its own text; the one that ends is none of it."""
        for tokens in self._source:
            for index, token_id in enumerate(tokens.ids):
                if token_id not in self._end_ids:
                    yield token_id, tokens.log_probs[index : index + 1]
