"""Reads YAML, remembers the line of each value, and reports keys that are given twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

# libyaml's loader reads a catalogue of thousands in a tenth of the time. A source build of PyYAML may lack it.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Problem(NamedTuple):
    """One mistake in a file. `line` counts from 1; `field` is a dotted path, empty for the whole file."""

    line: int
    field: str
    message: str


@dataclass(frozen=True)
class PositionedDocument:
    """The content of a file as plain Python (`value`), with the line of each part."""

    value: object
    root: yaml.Node

    def locate(self, location: Sequence[int | str]) -> tuple[int, str]:
        """Line and dotted name of a location such as ("prompts", 0, "text").

        A step that the file does not have is skipped if others follow: it is a validator's own name for a branch. If it
        is the last one, it is a missing field, and gets the line of its parent.
        """
        node, line, names = self.root, self.root.start_mark.line + 1, list[str]()
        for position, step in enumerate(location):
            found = _child(node, step)
            if found is not None:
                line, node = found
            elif position < len(location) - 1:
                continue
            names.append(str(step))
        return line, ".".join(names)


def read_yaml(path: Path) -> tuple[PositionedDocument | None, list[Problem]]:
    """The document, or None if it does not parse, and its problems: those of YAML, and keys that are given twice."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return None, [Problem(1, "", f"cannot be read: {error}")]
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, [Problem(1, "", "is empty")]
        problems = _repeated_keys(root, ())
        value = cast(Any, loader).construct_document(root)
        return PositionedDocument(value, root), problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return None, [Problem(mark.line + 1 if mark else 1, "", f"is not YAML: {error.problem}")]
    except (yaml.YAMLError, ValueError) as error:
        return None, [Problem(1, "", f"is not YAML: {error}")]


def _repeated_keys(node: yaml.Node, path: tuple[str, ...]) -> list[Problem]:
    problems: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in first:
                problems.append(Problem(line, ".".join((*path, name)), f"is given before, in line {first[name]}"))
            first.setdefault(name, line)
            problems += _repeated_keys(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            problems += _repeated_keys(item, (*path, str(index)))
    return problems


def _child(node: yaml.Node, step: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line + 1, item
    return None
