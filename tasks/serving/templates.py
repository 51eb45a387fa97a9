"""The chat templates of a model, by their names, wherever its files keep them.

That is `tokenizer_config.json`, with one or with several by name; `chat_template.jinja`, and the folder of the further
ones beside it, which count before it; or `chat_template.json`, where models that also see keep theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from .generation import Files

DEFAULT = "default"
"""The template that renders a chat, but for one with tools where there is `tool_use`."""

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")
"""Where it is looked for: what a file before another has counts."""

FURTHER = "additional_chat_templates"
"""The folder of those with other names."""


def read_templates(files: Files, further: Sequence[str] = ()) -> Mapping[str, str]:
    """The templates in `files`; `further` are the names of those in their folder. Raises ValueError."""
    own, *others = TEMPLATE_FILES
    found: dict[str, str] = {}
    for path in reversed(others):
        found |= _named(path, files)
    for name, path in ((DEFAULT, own), *((name, f"{FURTHER}/{name}.jinja") for name in further)):
        if (text := files(path)) is not None:
            found[name] = text.decode()
    return found


def further_in(folder: Path) -> list[str]:
    """The names of the further templates in a folder."""
    return sorted(path.stem for path in (folder / FURTHER).glob("*.jinja"))


def _named(path: str, files: Files) -> dict[str, str]:
    """The templates in the value `chat_template` of a file in JSON: one, a list of named ones, or an object of them."""
    text = files(path)
    document: object = {} if text is None else json.loads(text)
    value = cast("dict[str, object]", document).get("chat_template") if isinstance(document, dict) else None
    if isinstance(value, list):
        entries = [
            cast("dict[object, object]", entry) for entry in cast("list[object]", value) if isinstance(entry, dict)
        ]
        named: dict[object, object] = {entry.get("name"): entry.get("template") for entry in entries}
    else:
        named = cast("dict[object, object]", value) if isinstance(value, dict) else {DEFAULT: value}
    return {name: each for name, each in named.items() if isinstance(name, str) and isinstance(each, str)}
