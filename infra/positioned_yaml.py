"""Reads YAML, remembers the line of each value, and reports keys that are given twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import yaml

# libyaml's loader reads a catalogue of thousands in a tenth of the time. A source build of PyYAML may lack it.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


MAX_CHARACTERS = 2**20
MAX_DEPTH = 50
MAX_VALUES = 100_000
"""Of a whole file. A model's file of many prompts has a few hundred, and five levels."""

_TEXT, _LIST, _MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))

_BEFORE_A_BLOCK = " \t-?:\ufeff"
_ALIAS = re.compile(r"""(?<![\w.)\]\\"'])\*""")
"""What may begin an alias. After these characters it is part of a text (`'.*'`, `"*.json"`), or no YAML."""


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


def read_yaml(text: str) -> tuple[PositionedDocument | None, list[Problem]]:
    """The document, or None if it does not parse, and its problems: those of YAML, and keys that are given twice."""
    try:
        if not is_plain(text) and (problem := excess(text)) is not None:
            return None, [problem]
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, [Problem(1, "", "is empty")]
        problems = _repeated_keys(root, ())
        return PositionedDocument(_built(loader, root), root), problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return None, [Problem(mark.line + 1 if mark else 1, "", f"is not YAML: {error.problem}")]
    except (yaml.YAMLError, ValueError) as error:
        return None, [Problem(1, "", f"is not YAML: {error}")]


def is_plain(text: str) -> bool:
    """Whether nothing in it can be excessive, told from its characters: its events take as long as all the rest.

    Without aliases one character begins three values at most (`:` alone is a mapping of nothing to nothing). A
    collection in brackets holds one more without (`[a: b]`). A block begins further to the right than the one that it
    is in, but for a list in a mapping, and in its line nothing stands before it but what begins blocks.
    """
    if _ALIAS.search(text) or 3 * len(text) > MAX_VALUES:
        return False
    rightmost = max((len(line) - len(line.lstrip(_BEFORE_A_BLOCK)) for line in text.splitlines()), default=0)
    return 2 * (rightmost + 1) + 2 * (text.count("[") + text.count("{")) <= MAX_DEPTH


def excess(text: str) -> Problem | None:
    """What makes a document more than any reader should build: told from its events, before anything is built.

    libyaml's own loader crashes on brackets that nest deep, and aliases of aliases are written in a few lines.
    """
    if len(text) > MAX_CHARACTERS:
        return Problem(1, "", f"has {len(text)} characters; the most is {MAX_CHARACTERS}")
    sizes: dict[str | None, int] = {}
    # Of each collection that is open, the anchor and the number of values so far; the first is the document itself.
    opened: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Loader):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
            sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                return Problem(_line(event), "", f"the alias *{event.anchor} is part of what it names")
            size = sizes.get(event.anchor, 1)
        opened[-1] = (opened[-1][0], opened[-1][1] + size)
        if len(opened) > MAX_DEPTH + 1:
            return Problem(_line(event), "", f"nests deeper than {MAX_DEPTH} levels")
        if opened[-1][1] > MAX_VALUES:
            return Problem(_line(event), "", f"has more than {MAX_VALUES} values, aliases counted in full")
    return None


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark else 1


def _built(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    """What the loader makes of a node. It takes three times as long as this for texts, lists and mappings by text."""
    if isinstance(node, yaml.ScalarNode) and node.tag == _TEXT:
        return node.value
    if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
        return [_built(loader, item) for item in node.value]
    by_text = isinstance(node, yaml.MappingNode) and node.tag == _MAPPING
    if by_text and all(isinstance(key, yaml.ScalarNode) and key.tag == _TEXT for key, _ in node.value):
        return {key.value: _built(loader, value) for key, value in node.value}
    return cast(Any, loader).construct_object(node, deep=True)


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
