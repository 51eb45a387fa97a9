"""What those who publish weights say of them: the head of `README.md`, as the hub reads it, and `config.json`.

Both are files of a stranger. So what is too long, or of another form, counts as nothing said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

import yaml

from tasks.store.artifact import Artifact
from tasks.store.artifact_store import ArtifactStore

_README, _CONFIG = "README.md", "config.json"
_LARGEST_BYTES = 1 << 20
"""Of a file that is read: the cards of the hub have some ten thousand bytes."""
_LARGEST_HEAD = 1 << 15
"""Characters. PyYAML takes a second for so many brackets, and four for twice as many."""
_MOST = 100
"""Values of one field."""


@dataclass(frozen=True)
class ModelCard:
    """Empty where nothing is said. Names are those of the hub."""

    licence: str = ""
    """As the card names it: `apache-2.0`; where it says `other`, the name that it gives."""
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    architecture: str = ""
    """The class that `config.json` names: `LlamaForCausalLM`."""
    family: str = ""
    """The `model_type` there: `llama`."""


def model_card(store: ArtifactStore, snapshot: Artifact | None) -> ModelCard:
    """The card in a snapshot; an empty one where there is none, or its files are gone. Raises StoreError."""
    found = None if snapshot is None else store.find(snapshot.ref)
    if found is None:
        return ModelCard()
    return parse(_read(store, found, _README), _read(store, found, _CONFIG))


def parse(readme: bytes, config: bytes) -> ModelCard:
    """The card of these two files. One that is not there is empty."""
    said, weights = _head(readme.decode(errors="replace")), _object(config)
    licence = next(iter(_texts(said.get("license"))), "")
    if licence == "other":
        licence = next(iter(_texts(said.get("license_name"))), licence)
    return ModelCard(
        licence=licence,
        base_models=_texts(said.get("base_model")),
        datasets=_texts(said.get("datasets")),
        architecture=next(iter(_texts(weights.get("architectures"))), ""),
        family=next(iter(_texts(weights.get("model_type"))), ""),
    )


def _read(store: ArtifactStore, snapshot: Artifact, name: str) -> bytes:
    sizes = {file.path: file.size for file in snapshot.manifest.files}
    return store.read(snapshot, name) if 0 < sizes.get(name, 0) <= _LARGEST_BYTES else b""


def _head(readme: str) -> dict[str, object]:
    """The YAML between the first two lines `---`."""
    first, _, rest = readme.partition("\n")
    head, end, _ = rest.partition("\n---")
    if first.strip() != "---" or not end or len(head) > _LARGEST_HEAD:
        return {}
    try:
        # This loader makes texts alone. The safe one also merges what aliases name, and so doubles it level by level.
        found: object = yaml.load(head, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _object(config: bytes) -> dict[str, object]:
    try:
        found: object = json.loads(config)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _texts(value: object) -> tuple[str, ...]:
    """A field that is a text, or a list of texts."""
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(each for each in values[:_MOST] if isinstance(each, str) and each and each.isprintable())
