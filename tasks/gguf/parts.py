"""The files of a model that `gguf-split` of llama.cpp has cut up: `NAME-00001-of-00003.gguf` and so on.

Only names are read here, and only the standard library is imported, so that a source is checked before its download.
Source: `llama_split_path` and `llama_split_prefix` of llama.cpp, which finds the other parts by the name of the first.
"""

from __future__ import annotations

import re

_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


def parts_of(name: str) -> tuple[str, ...]:
    """All parts, in order, of the model that the file `name` is a part of; `name` alone if it is a whole model."""
    found = _PART.fullmatch(name)
    count = int(found["count"]) if found else 0
    if found is None or not 1 <= int(found["number"]) <= count:
        return (name,)
    return tuple(f"{found['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))
