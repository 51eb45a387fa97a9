"""Between text and tokens, for engines that take and give tokens: prompts in, pieces of text out."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from .contract import FinishReason, GenerationRequest, LogProb, PromptTooLong, RequestRefused, check_length
from .detokenize import Detokenizer
from .engine import Piece
from .messages import for_template
from .token_bytes import token_bytes
from .tokenizer import Tokenizer
from .words import StopWords

_TOKENIZING_THREADS = 4
"""Long prompts take milliseconds, in which others are answered: the tokenizers library lets go of Python's lock."""

_SHORT_TEXT = 1000
"""Characters that take less time, some 100 us, than the way to another thread and back does beside a busy loop."""


@dataclass(frozen=True)
class Tokens:
    """Some tokens of an answer, with one log probability (natural logarithm) each where they are wanted."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()


class Prompts:
    """The tokenizer in `folder`, and how a request's text becomes a prompt. Nothing is fetched, no code is run."""

    def __init__(self, folder: Path, *, chat_template: bool, most_tokens: int) -> None:
        transformers: Any = importlib.import_module("transformers")
        self._loaded: Any = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        self._chat_template = chat_template
        self._most_tokens = most_tokens
        self._threads = ThreadPoolExecutor(_TOKENIZING_THREADS)
        self.tokenizer: Tokenizer = self._loaded
        self.end_id: int | None = self._loaded.eos_token_id
        # The first call resets what the file says of truncation and padding, which no other thread may be in.
        self.tokenizer.encode("", add_special_tokens=False)
        self.pad_id: int | None = self.end_id if self._loaded.pad_token_id is None else self._loaded.pad_token_id

    async def of(self, request: GenerationRequest) -> list[int]:
        """The tokens of a request's prompt, those of a long one made on another thread. Raises as `ids` does."""
        if not request.messages and not self._chat_template and len(request.text_input) <= _SHORT_TEXT:
            return self.ids(request)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.ids, request)

    def ids(self, request: GenerationRequest) -> list[int]:
        """The tokens of a prompt. Raises RequestRefused where there are none or too many."""
        text, special = request.text_input, True
        if request.messages or self._chat_template:
            text, special = self._rendered(request), False
        check_length(text, self._most_tokens)
        ids = self.tokenizer.encode(text, add_special_tokens=special)
        if not ids or not text:
            raise RequestRefused("'text_input' is empty")
        if len(ids) > self._most_tokens:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; it may have {self._most_tokens}")
        return ids

    def _rendered(self, request: GenerationRequest) -> str:
        """What the chat template makes of the messages, or of the text as the one message of a user."""
        texts = [request.text_input, *(str(message["content"]) for message in request.messages)]
        check_length("".join(texts), self._most_tokens)
        if self._loaded.chat_template is None:
            raise RequestRefused("'messages' cannot be honoured: this model has no chat template")
        messages = for_template(request.messages) or [{"role": "user", "content": request.text_input}]
        try:
            # Rendered first: what it returns as tokens has another type from transformers 5 on.
            return self._loaded.apply_chat_template(
                messages,
                tools=list(request.tools) or None,
                add_generation_prompt=True,
                tokenize=False,
                **request.chat_template_kwargs,
            )
        except Exception as error:
            raise RequestRefused(f"the chat template cannot render 'messages': {error}") from error


async def pieces(
    batches: AsyncIterator[Sequence[Tokens]],
    tokenizer: Tokenizer,
    *,
    stop_words: tuple[str, ...],
    end_ids: Collection[int],
    input_tokens: int,
    most_tokens: int,
    skip_special_tokens: bool = True,
) -> AsyncGenerator[Piece]:
    """Whole characters, without the stop words and what follows them: a piece for each batch that completes some.

    `most_tokens` is how many the engine was asked for; an answer of fewer has ended by itself.
    """
    detokenizer, words = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens), StopWords(stop_words)
    unsent, count, ended = list[float](), 0, False
    said = 0
    finish: FinishReason | None = None
    async for batch in batches:
        text, log_probs = "", list[float]()
        for ids, its_log_probs in _each(batch, tokenizer) if stop_words else _parts(batch, tokenizer):
            new = [token_id for token_id in ids if token_id not in end_ids]
            ended |= len(new) < len(ids)
            if not new:
                continue
            count += len(new)
            unsent += its_log_probs
            if certain := detokenizer.push(new):
                released = words.push(Piece(certain, tuple(unsent)))
                unsent.clear()
                text += released.text
                log_probs += released.log_probs
                if words.stopped:
                    finish = "stop_words"
                    break
        if finish is not None:
            yield Piece(text, tuple(log_probs), count - said, input_tokens, finish)
            return
        if text:
            yield Piece(text, tuple(log_probs), count - said, input_tokens)
            said = count
    last = words.push(Piece(detokenizer.flush(), tuple(unsent)))
    rest = Piece("") if words.stopped else words.flush()
    finish = "stop_words" if words.stopped else "stop" if ended or count < most_tokens else "length"
    yield Piece(last.text + rest.text, last.log_probs + rest.log_probs, count - said, input_tokens, finish)


def _parts(batch: Sequence[Tokens], tokenizer: Tokenizer) -> Iterator[tuple[tuple[int, ...], tuple[LogProb, ...]]]:
    """Tokens that are decoded together: all that came at once, unless each has a log probability."""
    if any(tokens.log_probs for tokens in batch):
        return _each(batch, tokenizer)
    return iter([(tuple(chain.from_iterable(tokens.ids for tokens in batch)), ())])


def _each(batch: Sequence[Tokens], tokenizer: Tokenizer) -> Iterator[tuple[tuple[int, ...], tuple[LogProb, ...]]]:
    """Tokens one by one, so that each log probability goes with its own text."""
    for tokens in batch:
        for index, token_id in enumerate(tokens.ids):
            chosen = tokens.log_probs[index : index + 1]
            yield (token_id,), tuple(LogProb(value, token_bytes(tokenizer, token_id)) for value in chosen)
