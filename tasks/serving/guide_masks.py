"""Which tokens may come next in an answer that is kept to a guide: for engines that give scores and choose nothing.

The library llguidance follows the guide, by the bytes of the vocabulary. It ends by itself what costs too much, so a
guide holds its neighbours for no longer than a pass of a small model.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import GenerationRequest, RequestRefused

_JSON_OPTIONS: Mapping[str, object] = {"whitespace_pattern": r"[ \n\t]{0,20}"}
"""A model that has lost its way could fill an answer with spaces, which JSON allows between any two marks."""

_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)
_ASCII = 0x80

_CANNOT = "'guided_decoding_guide' cannot be honoured"


class Guide:
    """The way of one answer through its guide."""

    def __init__(self, matcher: Any, vocabulary_ends: Sequence[int], end_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._not_text = list(vocabulary_ends)
        self._end_ids = list(end_ids)

    def forbid(self, scores: npt.NDArray[np.float64]) -> None:
        """Take the tokens out that cannot come next. Raises RequestRefused where that takes too much to find out."""
        allowed = np.zeros(len(scores), dtype=np.bool_)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        if self._matcher.is_error():
            raise RequestRefused(f"{_CANNOT}: {_first_line(self._matcher.get_error())}")
        allowed[: len(bits)] = bits[: len(scores)]
        for tokens, may_come in ((self._not_text, False), (self._end_ids, self._matcher.is_accepting())):
            allowed[[token_id for token_id in tokens if token_id < len(scores)]] = may_come
        scores[~allowed] = -np.inf

    def take(self, token_id: int) -> None:
        """The token that was chosen."""
        if token_id not in self._end_ids:
            self._matcher.consume_token(token_id)


class Guides:
    """Makes the guides of one model. `tokenizer` is one of transformers, `end_ids` are those of its vocabulary.

    Nothing is imported and nothing is read before the first guide: a vocabulary of 128,000 tokens takes a second.
    """

    def __init__(self, tokenizer: object, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._thread = ThreadPoolExecutor(1, "guides")
        """A guide takes a part of a second. All of them together take one core."""
        self._vocabulary: Any = None

    async def of(self, request: GenerationRequest, end_ids: Sequence[int]) -> Guide | None:
        """That of a request, whose answer ends with one of `end_ids`; None where it has none.

        Raises RequestRefused for a guide that cannot be followed.
        """
        if not request.guided_decoding_guide_type:
            return None
        if request.min_tokens:
            raise RequestRefused("'min_tokens' must be 0 beside a guide, which says itself where the answer may end")
        if not end_ids:
            raise RequestRefused(
                "'guided_decoding_guide_type' must be empty: this model has no token that ends an answer"
            )
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._made, request, end_ids)

    def close(self) -> None:
        self._thread.shutdown()

    def _made(self, request: GenerationRequest, end_ids: Sequence[int]) -> Guide:
        library = _library()
        if self._vocabulary is None:
            self._vocabulary = self._read_vocabulary(library)
        try:
            grammar = _grammar(library, request.guided_decoding_guide_type, request.guided_decoding_guide)
        # What makes a grammar of GBNF raises whatever its parser stumbles over.
        except Exception as error:
            raise RequestRefused(f"{_CANNOT}: {_first_line(str(error))}") from error
        matcher = library.LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise RequestRefused(f"{_CANNOT}: {_first_line(matcher.get_error())}")
        return Guide(matcher, self._end_ids, end_ids)

    def _read_vocabulary(self, library: Any) -> Any:
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise _unfit("it is none of the library tokenizers")
        tokenizers: Any = importlib.import_module("tokenizers")
        own: Any = tokenizers.Tokenizer.from_str(backend.to_str())
        own.no_padding()
        own.no_truncation()
        try:
            return library.LLTokenizer(own.to_str(), eos_token=list(self._end_ids))
        except Exception as error:
            raise _unfit(_first_line(str(error))) from error


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise RequestRefused(
            "'guided_decoding_guide_type' must be empty: guides need the package llguidance where Triton runs "
            "(pip install 'enginehouse[transformers]')"
        ) from error


def _grammar(library: Any, kind: str, guide: str) -> str:
    """The guide as llguidance takes it. Raises whatever its parsers raise."""
    if kind == "regex":
        return library.LLMatcher.grammar_from_regex(guide)
    if kind == "ebnf_grammar":
        gbnf: Any = importlib.import_module("llguidance.gbnf_to_lark")
        return library.LLMatcher.grammar_from_lark(gbnf.gbnf_to_lark(_ESCAPE.sub(_spelled, guide)))
    return library.LLMatcher.grammar_from_json_schema(guide or "{}", overrides=dict(_JSON_OPTIONS))


def _spelled(escape: re.Match[str]) -> str:
    r"""A character by its number as llguidance reads it: it takes the zeros from `\u0041`, and knows no `\u41`."""
    number = escape[1] or escape[2] or escape[3]
    if number is None:
        return escape[0]
    code = int(number, 16)
    return f"\\x{code:02X}" if code < _ASCII else chr(code)


def _unfit(why: str) -> RequestRefused:
    return RequestRefused(
        f"'guided_decoding_guide_type' must be empty: the tokenizer of this model does not fit guides: {why}"
    )


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")[:300]
