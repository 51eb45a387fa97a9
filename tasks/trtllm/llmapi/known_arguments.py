"""Whether a version's `tensorrt_llm.LLM` takes the arguments that a model's file names, objects in them included.

The table is `arguments.toml`. The real classes forbid what they do not know, and say so when the node loads the model.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import cast

from packaging.version import Version
from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from tasks.trtllm.releases import minor

LAST_READ = Version("1.4")
"""The last minor release of the table. A later one may have names that are not in it."""

_ROOT = "LLM"
_PLAIN: Mapping[str, TypeAdapter[object]] = {
    name: TypeAdapter[object](kind)
    for name, kind in (("int", int), ("float", float), ("bool", bool), ("str", str), ("map", dict), ("any", object))
}
_Location = tuple[str | int, ...]
_Table = Mapping[str, object]


@dataclass(frozen=True)
class _Field:
    """How a field reads in versions from `since` to before `until`, as the table writes them."""

    kind: str
    nullable: bool
    since: str
    until: str

    def is_in(self, version: Version) -> bool:
        return not (self.since and version < _bound(self.since)) and not (self.until and version >= _bound(self.until))

    @property
    def span(self) -> str:
        begin, end = self.since or "1.0", f"to before {self.until}" if self.until else "and later"
        return f"{begin} {end}"


def check_known(version: Version, arguments: Mapping[str, JsonValue]) -> None:
    """Raise a ValidationError with every argument, and field of one, that `version` does not take as it is given."""
    mistakes = list(_object(version, _ROOT, arguments, ()))
    if mistakes:
        raise ValidationError.from_exception_data("llm_args", mistakes)


def known_names(version: Version, table: str = _ROOT) -> frozenset[str]:
    """The names of the arguments of `version`, or of the fields of the objects that `table` describes."""
    return frozenset(name for name, _ in _fields(version, _tables()[table]))


def _object(
    version: Version, table: str, given: Mapping[str, JsonValue], place: _Location
) -> Iterator[InitErrorDetails]:
    entries = _tables()[table]
    known = dict(_fields(version, entries))
    variants = {name: cast(_Table, each) for name, each in entries.items() if isinstance(each, dict)}
    if variants:
        tag = next(iter(entries))
        chosen = given.get(tag)
        if chosen is None:
            yield _mistake(place, given, f"needs {tag}, one of {known[tag].kind.replace('|', ', ')}")
            return
        for name, each in variants.items():
            if chosen in name.split("|"):
                known |= dict(_fields(version, each))
    for name, value in given.items():
        if (field := known.get(name)) is not None:
            yield from _value(version, field, value, (*place, name))
        elif (text := _unknown(version, table, name, known)) is not None:
            yield _mistake((*place, name), value, text)


def _value(version: Version, field: _Field, value: JsonValue, place: _Location) -> Iterator[InitErrorDetails]:
    kind = field.kind
    if kind == "object":
        yield _mistake(place, value, "takes an object of Python, which a file cannot give")
    elif value is None and field.nullable:
        return
    elif kind in _tables():
        if isinstance(value, dict):
            yield from _object(version, kind, value, place)
        else:
            yield _mistake(place, value, f"takes the fields of a {kind}")
    elif "|" in kind:
        if value not in kind.split("|"):
            yield _mistake(place, value, f"of TensorRT-LLM {version} takes {kind.replace('|', ', ')}")
    else:
        yield from _plain(kind, value, place)


def _plain(kind: str, value: JsonValue, place: _Location) -> Iterator[InitErrorDetails]:
    listed = kind.startswith("[")
    if listed and not isinstance(value, list):
        yield _mistake(place, value, "takes a list")
        return
    for index, each in enumerate(value) if isinstance(value, list) and listed else [(None, value)]:
        try:
            _PLAIN[kind.strip("[]")].validate_python(each)
        except ValidationError as error:
            where = place if index is None else (*place, index)
            yield _mistake(where, each, error.errors()[0]["msg"].removeprefix("Value error, "))


def _unknown(version: Version, table: str, name: str, known: Mapping[str, _Field]) -> str | None:
    """What is wrong with a name that the version has not. None if the version came after the table."""
    if others := [field.span for field in _all_fields(_tables()[table]).get(name, ())]:
        return f"is not in TensorRT-LLM {version}: {' and '.join(others)} have it"
    near = get_close_matches(name, known, n=1)
    if minor(version) > minor(LAST_READ) and not near:
        return None
    whose = "the LLM API" if table == _ROOT else table
    nearest = f"; the nearest is {near[0]}" if near else ""
    return f"is unknown to {whose} of TensorRT-LLM {version}{nearest}"


def _mistake(place: _Location, value: object, text: str) -> InitErrorDetails:
    # The text is a value of the template, since what it quotes may have braces.
    return InitErrorDetails(type=PydanticCustomError("llm_args", "{text}", {"text": text}), loc=place, input=value)


def _fields(version: Version, entries: _Table) -> Iterator[tuple[str, _Field]]:
    for name, fields in _all_fields(entries).items():
        for field in fields:
            if field.is_in(version):
                yield name, field


def _all_fields(entries: _Table) -> dict[str, tuple[_Field, ...]]:
    return {
        name: tuple(_read(each) for each in (cast("list[str]", entry) if isinstance(entry, list) else [str(entry)]))
        for name, entry in entries.items()
        if not isinstance(entry, dict)
    }


def _read(text: str) -> _Field:
    kind, *bounds = text.split()
    return _Field(
        kind.removesuffix("?"),
        kind.endswith("?"),
        next((bound[2:] for bound in bounds if bound.startswith(">=")), ""),
        next((bound[1:] for bound in bounds if bound.startswith("<")), ""),
    )


def _bound(text: str) -> Version:
    """A minor release begins with its first candidate."""
    return Version(text if "rc" in text else f"{text}.dev0")


@cache
def _tables() -> Mapping[str, _Table]:
    return tomllib.loads(Path(__file__).with_name("arguments.toml").read_text("utf-8"))
