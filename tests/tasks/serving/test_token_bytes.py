"""The bytes of single tokens, for every family of tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tasks.serving.token_bytes import token_bytes
from tests.tasks.serving.small_tokenizers import CORPUS, Adapter, byte_level, metaspace, sentencepiece


@pytest.mark.parametrize("make", [byte_level, sentencepiece, metaspace])
def test_the_bytes_of_all_tokens_are_those_of_the_text(make: Callable[[], Adapter]) -> None:
    tokenizer = make()
    for text in (*CORPUS, "emoji 😀 and 漢字"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        joined = b"".join(token_bytes(tokenizer, token_id) for token_id in ids)
        # What a decoder takes from the first token is not the token's.
        assert joined.decode().removeprefix(" ") == decoded.removeprefix(" ")


def test_part_of_a_character_is_bytes_that_are_no_text() -> None:
    tokenizer = byte_level()
    found = [token_bytes(tokenizer, each) for each in tokenizer.encode("😀", add_special_tokens=False)]
    assert len(found) > 1 and b"".join(found) == "😀".encode()
    with pytest.raises(UnicodeDecodeError):
        found[0].decode()


def test_a_number_outside_of_the_vocabulary_has_none() -> None:
    assert token_bytes(byte_level(), 10**6) == b""
