"""Stop and bad words as TensorRT-LLM takes them: sequences of tokens, in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .tokenizer import Tokenizer, encoded_after


def word_ids(tokenizer: Tokenizer, words: Sequence[str], tokens: Sequence[int] = ()) -> npt.NDArray[np.int32]:
    """The sequences of the words, and `tokens` as one each, as an array `[2, n]`, n the number of all their tokens.

    The first row holds the tokens of one sequence after the other, the second where each sequence ends, filled up
    with -1: the form of TensorRT-LLM's `to_word_list_format`.
    """
    sequences = [*word_sequences(tokenizer, words), *((token,) for token in tokens)]
    array = np.full((2, sum(map(len, sequences))), -1, dtype=np.int32)
    if sequences:
        array[0] = np.concatenate(sequences)
        array[1, : len(sequences)] = np.cumsum([len(sequence) for sequence in sequences])
    return array


def word_sequences(tokenizer: Tokenizer, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The token sequences that are one of the words.

    A word becomes several where its tokens differ: at the start of a text, right after other text, and after a space.
    One that ends with another is left out, since the engine compares the last tokens. A word that only begins or ends
    inside a token is not found by it.
    """
    return list(dict.fromkeys(sequence for word in words if word for sequence in _spellings(tokenizer, word)))


def _spellings(tokenizer: Tokenizer, word: str) -> list[tuple[int, ...]]:
    after = (encoded_after(tokenizer, text) for text in (word, f" {word}"))
    found = [tuple(tokenizer.encode(word, add_special_tokens=False)), *(tuple(ids) for ids in after if ids is not None)]
    return [one for one in found if one and not any(other and other != one and _ends(one, other) for other in found)]


def _ends(sequence: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return sequence[-len(end) :] == end
