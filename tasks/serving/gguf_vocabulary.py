"""The control tokens in the vocabulary of a GGUF file, which llama.cpp's server does not tell.

Only what is before them in the file is read: its metadata (ggml's `gguf.md`, version 3, little-endian).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_CONTROL = 3
"""LLAMA_TOKEN_TYPE_CONTROL, the type of tokens that no text becomes unless it is asked to."""

_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Of a value, by its type."""

_STRING, _ARRAY = 8, 9


def control_tokens(path: Path) -> frozenset[str]:
    """These tokens as text; none where the file does not tell of types. `path` is a file that llama.cpp has loaded."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        tokens, types = list[bytes](), tuple[int, ...]()
        (pairs,) = struct.unpack_from("<Q", data, 16)
        for _ in range(pairs):
            name, kind = reader.string().decode(), reader.number("<I")
            if name == _TOKENS:
                tokens = reader.strings()
            elif name == _TYPES:
                types = reader.integers()
            else:
                reader.skip(kind)
        found = [token for token, kind in zip(tokens, types, strict=False) if kind == _CONTROL]
    return frozenset(token.decode(errors="replace") for token in found)


class _Reader:
    """Reads on from the place where the pairs of the metadata begin."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 24

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def string(self) -> bytes:
        length = self.number("<Q")
        self._at += length
        return self._data[self._at - length : self._at]

    def strings(self) -> list[bytes]:
        self.number("<I")
        return [self.string() for _ in range(self.number("<Q"))]

    def integers(self) -> tuple[int, ...]:
        self.number("<I")
        count = self.number("<Q")
        self._at += 4 * count
        return struct.unpack_from(f"<{count}i", self._data, self._at - 4 * count)

    def skip(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            of, count = self.number("<I"), self.number("<Q")
            if of in _BYTES:
                self._at += _BYTES[of] * count
            else:
                for _ in range(count):
                    self.skip(of)
        else:
            self._at += _BYTES[kind]
