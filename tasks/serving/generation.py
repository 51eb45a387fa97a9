"""What a model's own files say of its answers: the tokens that end one, and how it is sampled.

`generation_config.json` says both. A model without that file may say the first in its `config.json`, where
transformers and vLLM look for it then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

FILE = "generation_config.json"
_MODEL_FILE = "config.json"

_FITS: Mapping[str, Callable[[float], bool]] = {
    "temperature": lambda value: value >= 0,
    # -1 is another way to say that all tokens count.
    "top_k": lambda value: value >= -1 and value == int(value),
    "top_p": lambda value: 0 < value <= 1,
    "repetition_penalty": lambda value: value > 0,
}

Files: TypeAlias = Callable[[str], bytes | None]
"""The bytes of a file by its name; None for one that does not exist."""


@dataclass(frozen=True)
class GenerationConfig:
    """`end_ids` are tokens, `sampling` has the values by their names in `Sampling`."""

    end_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, files: Files) -> GenerationConfig:
        """What these files say. Raises ValueError, which names the file and the value that makes no sense."""
        own = _read(files, FILE)
        if own is None:
            model = _read(files, _MODEL_FILE) or {}
            return cls(_end_ids(_MODEL_FILE, model.get("eos_token_id")))
        return cls(_end_ids(FILE, own.get("eos_token_id")), _sampling(own))


def files_in(folder: Path) -> Files:
    """The files of a folder."""
    return lambda name: path.read_bytes() if (path := folder / name).is_file() else None


def _read(files: Files, name: str) -> Mapping[str, object] | None:
    text = files(name)
    if text is None:
        return None
    try:
        document: object = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{name} holds no object")
    return cast("dict[str, object]", document)


def _end_ids(name: str, value: object) -> tuple[int, ...]:
    listed = cast("list[object]", value) if isinstance(value, list) else [] if value is None else [value]
    ids = [each for each in listed if isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**31]
    if len(ids) < len(listed):
        raise ValueError(f"{name}: eos_token_id is {json.dumps(value)}; it may be a token, or a list of them")
    return tuple(dict.fromkeys(ids))


def _sampling(document: Mapping[str, object]) -> dict[str, float]:
    """The values that the serving contract has too, but for those that are null."""
    found: dict[str, float] = {}
    for name, fits in _FITS.items():
        if (value := document.get(name)) is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not (abs(value) < 2**31 and fits(value)):
            raise ValueError(f"{FILE}: {name} is {json.dumps(value)}, which cannot be")
        found[name] = max(int(value), 0) if name == "top_k" else float(value)
    return found
