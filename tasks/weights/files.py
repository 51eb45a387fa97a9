"""What a list of files of a checkpoint lacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from infra.errors import SourceError
from tasks.weights.facts import WeightsFacts
from tasks.weights.fields import parsed

INDEX = "model.safetensors.index.json"
"""The file that says in which shard each tensor is."""


def require_shards(names: Collection[str], index: bytes) -> None:
    """Raise SourceError `shards-missing` unless `names` has every file that the text of INDEX names."""
    fields = parsed(index, INDEX)
    weight_map = fields.object("weight_map")
    wanted = {name for name in weight_map.values.values() if isinstance(name, str)}
    missing = sorted(wanted - set(names))
    if missing:
        some = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise SourceError(
            f"{len(missing)} of {len(wanted)} files of weights are missing: {some}",
            code="shards-missing",
            hint=f"{INDEX} names them. Complete the source, or widen `include:` in the model's file.",
        )


def with_files(facts: WeightsFacts, sizes: Mapping[str, int | None]) -> WeightsFacts:
    """The facts with the files of weights in a list of files, each with its size in bytes or None."""
    names = sorted(name for name in sizes if name.endswith(".safetensors") and "/" not in name)
    # Mistral's repositories have the same weights once more, in its own form, which no tool reads beside these.
    names = [name for name in names if "consolidated" not in name] or names
    known = [size for name in names if (size := sizes[name]) is not None]
    return replace(facts, files=tuple(names), bytes=sum(known) if names and len(known) == len(names) else None)
