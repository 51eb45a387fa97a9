"""Values of `config.json`, each of the type that its reader expects, whoever wrote the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from pydantic import JsonValue

from infra.errors import SourceError


@dataclass(frozen=True)
class Fields:
    """The fields of one object in a file. `defaults` are those of its class, for what the file leaves out.

    A reader takes several names, as families of models call the same value differently. Each raises SourceError
    `config-unreadable` for a value of another type.
    """

    values: Mapping[str, JsonValue]
    defaults: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    file: str = "config.json"

    def __bool__(self) -> bool:
        return bool(self.values)

    def get(self, *names: str) -> JsonValue:
        """The first of the names that the file has, or else the class. None is a value: a file may say null."""
        for values in (self.values, self.defaults):
            for name in names:
                if name in values:
                    return values[name]
        return None

    def integer(self, *names: str, least: int = 0) -> int | None:
        """From `least` on: nearly all are sizes."""
        value = self.get(*names)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53):
            return value
        raise self._wrong(names[0], f"an integer from {least} on")

    def needed(self, *names: str, most: int = 2**53) -> int:
        """A size: an integer from 1 to `most`. Raises SourceError also if there is none."""
        found = self.integer(*names)
        if found is None or not 0 < found <= most:
            raise unreadable(self.file, f"{names[0]} is {'missing' if found is None else found}")
        return found

    def number(self, *names: str) -> float | None:
        value = self.get(*names)
        # Python's JSON has NaN and Infinity too.
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53):
            return value
        raise self._wrong(names[0], "a number from 0 on")

    def text(self, *names: str) -> str:
        """Empty for what no name is: errors and plans show it on terminals."""
        return _printable(self.get(*names))

    def flag(self, *names: str) -> bool:
        return bool(self.get(*names))

    def object(self, name: str) -> Fields:
        value = self.values.get(name)
        return Fields(value if isinstance(value, dict) else {}, file=self.file)

    def objects(self, name: str) -> tuple[Fields, ...]:
        """A list of objects; an element of another type is an empty one."""
        value = self.values.get(name)
        listed = value if isinstance(value, list) else []
        return tuple(Fields(each if isinstance(each, dict) else {}) for each in listed)

    def integers(self, name: str) -> tuple[int, ...]:
        value = self.get(name)
        if value is None:
            return ()
        if isinstance(value, list) and all(type(each) is int for each in value):
            return tuple(cast("list[int]", value))
        raise self._wrong(name, "a list of integers")

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.get(name)
        return tuple(map(_printable, value)) if isinstance(value, list) else ()

    def _wrong(self, name: str, expected: str) -> SourceError:
        return unreadable(self.file, f"{name} is not {expected}")


def _printable(value: JsonValue) -> str:
    return value if isinstance(value, str) and value.isprintable() else ""


def parsed(text: bytes, file: str) -> Fields:
    """The fields of a whole file. Raises SourceError `config-unreadable` unless it is an object in JSON."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise unreadable(file, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise unreadable(file, "holds no object")
    return Fields(cast("dict[str, JsonValue]", value), file=file)


def unreadable(file: str, problem: str) -> SourceError:
    """The error for a file that says nothing that can be used."""
    return SourceError(
        f"{file}: {problem}",
        code="config-unreadable",
        hint="It must be the file that transformers wrote beside the weights.",
    )
