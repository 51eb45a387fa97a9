"""The bytes of single tokens, for log probabilities: in an answer, a character may lie in several tokens.

A vocabulary spells its tokens in one of three ways: each byte as a character of GPT-2's alphabet, each space as `▁`, or
one byte as `<0x0A>`. Special tokens are spelled as they are.
"""

from __future__ import annotations

import re

from .tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"

# `bytes_to_unicode` of GPT-2: printable bytes stand for themselves, the others for the characters from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
_ALPHABET = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + index): byte for index, byte in enumerate(_OTHERS)}


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Empty for a number outside of the vocabulary."""
    spelled = tokenizer.convert_ids_to_tokens(token_id)
    if spelled is None:
        return b""
    if byte := _BYTE.fullmatch(spelled):
        return bytes.fromhex(byte[1])
    alone = tokenizer.decode([token_id], skip_special_tokens=False)
    if all(character in _ALPHABET for character in spelled):
        spelled_bytes = bytes(_ALPHABET[character] for character in spelled)
        if spelled_bytes.decode(errors="replace") == alone:
            return spelled_bytes
    # Alone, a token loses its first space.
    return (spelled.replace(_SPACE, " ") if _SPACE in spelled else alone).encode()
