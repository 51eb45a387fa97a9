"""How a GGUF begins. Imports the standard library alone, so that a source is checked without the package `gguf`.

Source: `docs/gguf.md` of ggml, and `gguf_init_from_file_impl` of its `src/gguf.cpp`. A big-endian file has its letters
in the same order and all numbers in the other.
"""

from __future__ import annotations

import struct

MAGIC = b"GGUF"
VERSION = 3
READABLE = (2, VERSION)
"""Their layouts differ in nothing that Enginehouse reads. Version 1 has counts and lengths of 32 bits."""

FIXED = struct.Struct("<4sIQQ")
"""How a file begins: magic, version, number of tensors, number of metadata entries."""


def unreadable(version: int) -> tuple[str, str] | None:
    """What a file of this version is, and a hint; None if it can be read.

    `version` is not 0, and is read as little-endian.
    """
    if version in READABLE:
        return None
    if version & 0xFFFF == 0:
        return "a big-endian GGUF", "take the little-endian file, or convert it: gguf-convert-endian FILE little"
    if version < min(READABLE):
        return f"a GGUF of the old version {version}", "convert the model again with a current llama.cpp"
    return f"a GGUF of the newer version {version}", f"take a file of version {VERSION}"
