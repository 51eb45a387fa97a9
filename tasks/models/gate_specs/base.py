"""The base of what gates may be asked for, and what an unknown name of one is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from infra.frozen import Spec
from infra.nearest import nearest


class GateSpec(Spec):
    """The base of what gates are asked for. Each has a field `gate` with its kind."""

    @model_validator(mode="before")
    @classmethod
    def _knows_its_fields(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        given = cast("Mapping[str, object]", value)
        refuse_unknown(cls.__name__, given, [name for name in cls.model_fields if name != "gate"])
        return given


def refuse_unknown(title: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in given if name != "gate" and name not in known]
    if unknown:
        mistakes = [mistake(name, f"is unknown here{near(name, known)}") for name in unknown]
        raise ValidationError.from_exception_data(title, mistakes)


def near(name: str, known: Iterable[str]) -> str:
    if like := nearest(name, known):
        return f"; the nearest is {like}"
    return f"; there are {', '.join(sorted(known))}" if known else ""


def mistake(name: str, text: str) -> InitErrorDetails:
    # The text is a value of the template, since what it quotes may have braces.
    return InitErrorDetails(type=PydanticCustomError("gates", "{text}", {"text": text}), loc=(name,), input=None)
