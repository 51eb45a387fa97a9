"""What a list of files of a checkpoint lacks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from infra.errors import SourceError
from tasks.weights.facts import WeightsFacts
from tasks.weights.fields import parsed

INDEX = "model.safetensors.index.json"
"""The file that says in which shard each tensor is."""


_SHARD = re.compile(r"(?P<whole>.+-)\d{5}-of-(?P<count>\d{5})\.safetensors")
_FORMATS = (".safetensors", ".bin", ".pt", ".pth")


def require_weight_files(names: Collection[str]) -> None:
    """Raise SourceError `weights-missing` if none of the files can be weights beside a `config.json`."""
    if any(name.endswith(_FORMATS) for name in names):
        return
    ggufs = [name for name in names if name.endswith(".gguf")]
    raise SourceError(
        f"the source has no weights in safetensors{f', but {ggufs[0]}' if ggufs else ''}",
        code="weights-missing",
        hint="kind llamacpp takes GGUF; the model that it was made from is the source of this kind"
        if ggufs
        else "name a source that has them, or widen `include:` in the model's file",
    )


def require_shards(names: Collection[str], index: bytes | None = None) -> None:
    """Raise SourceError `shards-missing` unless `names` has every file that the text of INDEX names.

    Without an index, the names of the shards say how many there are.
    """
    if index is not None:
        weight_map = parsed(index, INDEX).object("weight_map")
        wanted = {name for name in weight_map.values.values() if isinstance(name, str)}
    else:
        wanted = {
            f"{found['whole']}{number:05}-of-{found['count']}.safetensors"
            for found in filter(None, map(_SHARD.fullmatch, names))
            for number in range(1, int(found["count"]) + 1)
        }
    missing = sorted(wanted - set(names))
    if missing:
        some = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise SourceError(
            f"{len(missing)} of {len(wanted)} files of weights are missing: {some}",
            code="shards-missing",
            hint="Complete the source, or widen `include:` in the model's file.",
        )


def with_files(facts: WeightsFacts, sizes: Mapping[str, int | None]) -> WeightsFacts:
    """The facts with the files of weights in a list of files, each with its size in bytes or None."""
    names = sorted(name for name in sizes if name.endswith(".safetensors") and "/" not in name)
    # Mistral's repositories have the same weights once more, in its own form, which no tool reads beside these.
    names = [name for name in names if "consolidated" not in name] or names
    known = [size for name in names if (size := sizes[name]) is not None]
    return replace(facts, files=tuple(names), bytes=sum(known) if names and len(known) == len(names) else None)
