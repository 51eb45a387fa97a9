"""What a list of files of a checkpoint lacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from infra.errors import SourceError
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


def weight_bytes(sizes: Mapping[str, int | None]) -> int | None:
    """Bytes of all weights in a list of files, each with its size. None if there are none, or a size is not known."""
    found = [size for name, size in sizes.items() if name.endswith(".safetensors")]
    return sum(size for size in found if size is not None) if found and None not in found else None
