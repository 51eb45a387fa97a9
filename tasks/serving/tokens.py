"""Between text and tokens, for engines that take and give tokens: prompts in, pieces of text out."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from .chats import Chats
from .contract import FinishReason, GenerationRequest, Json, LogProb, PromptTooLong, RequestRefused, check_length
from .detokenize import Detokenizer
from .engine import Piece
from .generation import GenerationConfig, files_in
from .plain_text import special_tokens
from .reasoning import beginning_with, opened_by_tokens
from .templates import further_in, read_templates
from .token_bytes import token_bytes
from .tokenizer import Tokenizer, encoded_after
from .words import StopWords

_TOKENIZING_THREADS = 4
"""Long prompts take milliseconds, in which others are answered: the tokenizers library lets go of Python's lock."""

_SHORT_TEXT = 1000
"""Characters that take less time, some 100 us, than the way to another thread and back does beside a busy loop."""


@dataclass(frozen=True)
class Tokens:
    """Some tokens of an answer, with one log probability (natural logarithm) each where they are wanted.

    `top` has, for each of them, the likeliest tokens in its place with their log probabilities, where they are wanted.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


class Prompts:
    """The tokenizer in `folder`, and how a request's text becomes a prompt. Nothing is fetched, no code is run.

    `end_ids` are the tokens that end an answer: the tokenizer's own first, then those that the model names besides.
    """

    def __init__(self, folder: Path, *, chat_template: bool, most_tokens: int) -> None:
        transformers: Any = importlib.import_module("transformers")
        self._loaded: Any = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        templates = read_templates(files_in(folder), further_in(folder))
        self._plain_text = special_tokens(self._loaded, templates.values())
        self._chats = Chats(self._loaded, templates, self._plain_text)
        self._chat_template = chat_template
        self._most_tokens = most_tokens
        self._threads = ThreadPoolExecutor(_TOKENIZING_THREADS)
        self.tokenizer: Tokenizer = self._loaded
        own: list[int] = [] if self._loaded.eos_token_id is None else [self._loaded.eos_token_id]
        self.end_ids = tuple(dict.fromkeys([*own, *GenerationConfig.of(files_in(folder)).end_ids]))
        # The first call resets what the file says of truncation and padding, which no other thread may be in.
        self.tokenizer.encode("", add_special_tokens=False)
        pad_id: int | None = self._loaded.pad_token_id
        self.pad_id = next(iter(self.end_ids), None) if pad_id is None else pad_id

    def ends(self, request: GenerationRequest) -> tuple[int, ...]:
        """The tokens that end the answer to `request`: those of the model, or a token of its own alone.

        One of the model's own is sent by clients that always send it, and changes nothing.
        """
        return self.end_ids if request.end_id in (None, *self.end_ids) else (request.end_id,)

    async def of(self, request: GenerationRequest) -> list[int]:
        """The tokens of a request's prompt, those of a long one made on another thread. Raises as `ids` does."""
        if not request.messages and not self._chat_template and len(request.text_input) <= _SHORT_TEXT:
            return self.ids(request)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.ids, request)

    def ids(self, request: GenerationRequest) -> list[int]:
        """The tokens of a prompt. Raises RequestRefused where there are none or too many."""
        check_length("".join([request.text_input, *map(_content, request.messages)]), self._most_tokens)
        rendered = bool(request.messages) or self._chat_template
        ids = self._rendered(request) if rendered else self._raw(request.text_input)
        if not ids or not (rendered or request.text_input):
            raise RequestRefused("'text_input' is empty")
        if len(ids) > self._most_tokens:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; it may have {self._most_tokens}")
        return ids

    def given(self, request: GenerationRequest, prompt_tokens: int, most_tokens: int) -> list[int]:
        """The tokens of the text that a request gives as its answer, right after a prompt of so many tokens.

        Raises PromptTooLong where both have more than `most_tokens`.
        """
        room = most_tokens - prompt_tokens
        check_length(request.given_output, room)
        ids = self._encoded(request.given_output)
        if len(ids) > room:
            raise PromptTooLong(f"prompt and 'given_output' have {prompt_tokens + len(ids)} tokens of {most_tokens}")
        return ids

    def answer(
        self,
        request: GenerationRequest,
        prompt: Sequence[int],
        tokens: AsyncIterator[Sequence[Tokens]],
        most_tokens: int,
    ) -> AsyncGenerator[Piece]:
        """The answer of whose `tokens`, after that prompt, an engine was asked for at most so many."""
        answer = pieces(
            tokens,
            self.tokenizer,
            stop_words=request.stop_words,
            end_ids=self.ends(request),
            input_tokens=len(prompt),
            most_tokens=most_tokens,
            skip_special_tokens=request.skip_special_tokens,
        )
        if request.skip_special_tokens:
            return answer
        return beginning_with(opened_by_tokens(self.tokenizer, prompt), answer)

    def _raw(self, text: str) -> list[int]:
        """The tokens of a prompt that the client has rendered, which may begin with the token that begins a text."""
        ids = self.tokenizer.encode(text, add_special_tokens=True)
        begin: int | None = self._loaded.bos_token_id
        return ids[1:] if ids[:2] == [begin, begin] else ids

    def _rendered(self, request: GenerationRequest) -> list[int]:
        """The tokens of what the chat template renders. It writes the token that begins a text, or wants none."""
        text, mark = self._chats.rendered(request)
        check_length(text, self._most_tokens)
        ids: list[int] = []
        for part, of_template in self._plain_text.parts(text, mark):
            if of_template:
                ids += self._encoded(part) if ids else self.tokenizer.encode(part, add_special_tokens=False)
            else:
                ids += self._plain_text.ids(part, self._encoded)
        return ids

    def _encoded(self, text: str) -> list[int]:
        after = encoded_after(self.tokenizer, text)
        return self.tokenizer.encode(text, add_special_tokens=False) if after is None else after


def _content(message: Json) -> str:
    return str(message["content"])


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
    """Whole characters, up to a token that ends the answer or a stop word: a piece for each batch that completes some.

    `most_tokens` is how many the engine was asked for; an answer of fewer has ended by itself.
    """
    detokenizer, words = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens), StopWords(stop_words)
    unsent, count, ended = list[float](), 0, False
    said = 0
    finish: FinishReason | None = None
    async for batch in batches:
        text, log_probs = "", list[float]()
        for ids, its_log_probs in _each(batch, tokenizer) if stop_words else _parts(batch, tokenizer):
            # Engines may give the token that ends an answer, and a batch may hold what they made after it.
            new = list(takewhile(lambda token_id: token_id not in end_ids, ids))
            ended = len(new) < len(ids)
            if not new:
                break
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
            if ended:
                break
        if finish is not None:
            yield Piece(text, tuple(log_probs), count - said, input_tokens, finish)
            return
        if text:
            yield Piece(text, tuple(log_probs), count - said, input_tokens)
            said = count
        if ended:
            break
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
            likeliest = tokens.top[index] if tokens.top else ()
            yield (token_id,), tuple(as_log_prob(tokenizer, token_id, value, likeliest) for value in chosen)


def as_log_prob(
    tokenizer: Tokenizer, token_id: int, value: float, likeliest: Sequence[tuple[int, float]] = ()
) -> LogProb:
    """The log probability of a token, with its bytes and those of the likeliest in its place."""
    top = tuple((token_bytes(tokenizer, each), log_prob) for each, log_prob in likeliest)
    return LogProb(value, token_bytes(tokenizer, token_id), top)
