"""What is wrong with a model's file, in the words of whoever wrote it. Pydantic speaks of its own types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from infra.nearest import did_you_mean
from tasks.models.gates import GATE_SPECS, Gates
from tasks.models.recipe import RECIPES, Recipe
from tasks.models.spec import Model

_WORDS = {
    "missing": "is required",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must be a table of names and values",
    "model_type": "must be a table of names and values",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "string_type": "must be text: put it in quotes",
}

_FEW = 12


def in_words(document: object, detail: ErrorDetails) -> str:
    """One mistake of a model's file, without its place. `document` is the whole of the file."""
    kind = detail["type"]
    if kind == "extra_forbidden":
        *place, key = detail["loc"]
        return f"is no field here: {_hint(str(key), sorted(_fields(document, place)))}".rstrip()
    if kind == "string_pattern_mismatch":
        return f"{detail['input']!r} does not have the form {detail.get('ctx', {})['pattern']}"
    return _WORDS.get(kind) or detail["msg"].removeprefix("Value error, ")


def _hint(key: str, fields: Sequence[str]) -> str:
    if meant := did_you_mean(key, fields):
        return meant
    return f"there are {', '.join(fields)}" if len(fields) <= _FEW else "enginehouse schema model has them all"


def _fields(document: object, place: Iterable[int | str]) -> set[str]:
    """The fields that a place of the document may have."""
    forms: set[type[BaseModel]] = {Model}
    for step in place:
        forms = {each for form in forms for each in _inner(form, step)} or forms
        # A step that is no part of the document is pydantic's name of one branch of a union.
        with suppress(LookupError, TypeError):
            document = cast("Any", document)[step]
        forms = {form for form in forms if _fits(form, document)} or forms
    return {field.alias or name for form in forms for name, field in form.model_fields.items()}


def _inner(form: type[BaseModel], step: int | str) -> Iterator[type[BaseModel]]:
    for name, field in form.model_fields.items():
        if step in (name, field.alias):
            yield from _forms(field.annotation)
    if form is Gates and step not in form.model_fields:  # a gate's name is its kind, or it names one
        yield from [GATE_SPECS[str(step)]] if step in GATE_SPECS else GATE_SPECS.values()


def _forms(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type: of unions, lists and tables too."""
    if annotation is Recipe:
        yield from RECIPES.values()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _forms(part)


def _fits(form: type[BaseModel], document: object) -> bool:
    """Whether the words by which the branches of a union are told apart, such as `kind`, are those of this form."""
    if not isinstance(document, Mapping):
        return False
    table = cast("Mapping[str, object]", document)
    return all(
        table[name] in get_args(field.annotation)
        for name, field in form.model_fields.items()
        if name in table and get_origin(field.annotation) is Literal
    )
