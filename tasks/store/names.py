"""Names that become part of a key in the store, of a folder on a node, or of a model on a Triton.

They come from records that anybody with a key to the store may have written. So a name is one plain segment of a path,
and no model's name is one that Enginehouse makes itself.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_RELEASE = re.compile(r"(?P<model>.+?)--r(?P<number>\d+)(--.*)?")
RELEASE_MARK = "--"
"""It separates the parts of a release's name on a Triton: `NAME--r7--llm`."""
NODES = "nodes"
"""Beside the folders of a target's models lies this one, with the reports of its nodes."""
Alias = Literal["ensemble", "tensorrt_llm_bls"]
"""A further public name that a model may ask for: NVIDIA's published clients know no others."""
ALIASES: tuple[Alias, ...] = get_args(Alias)
_RESERVED = {
    NODES: "the reports of a target's nodes lie there",
    # Of NVIDIA's templates, whose other names no model can have, since they have underscores.
    **dict.fromkeys((*ALIASES, "preprocessing", "postprocessing"), "a model of NVIDIA's templates has it"),
}


def segment(text: str) -> str:
    """Returns `text`. Raises ValueError unless it is one plain segment of a path: no `/`, no `..`, nothing hidden."""
    if not _SEGMENT.fullmatch(text):
        raise ValueError(f"{text[:200]!r} is not one plain segment of a path")
    return text


Segment = Annotated[str, AfterValidator(segment)]
"""A string of a record that becomes a segment of a path."""


def is_identity(text: str) -> bool:
    """Whether `text` is a whole identity: 64 hexadecimal digits."""
    return _IDENTITY.fullmatch(text) is not None


def is_node(name: str) -> bool:
    """Whether a node can have this name: its report lies beside what a model called `nodes` has left."""
    return _SEGMENT.fullmatch(name) is not None and name != "current"


def collision(model: str) -> str:
    """What else a model of this name would be taken for, in a sentence; empty if for nothing."""
    if reason := _RESERVED.get(model):
        return f"no model can be called '{model}': {reason}"
    if is_identity(model):
        return f"no model can be called '{model}': it has the form of an artifact's identity"
    if release := _RELEASE.fullmatch(model):
        return (
            f"no model can be called '{model}': it is what nodes call release {release['number']} "
            f"of a model '{release['model']}'"
        )
    return ""
