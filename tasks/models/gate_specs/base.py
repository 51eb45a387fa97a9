"""The base of what gates may be asked for, and what the unknown name of one is told."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic_core import InitErrorDetails, PydanticCustomError

from infra.frozen import Spec
from infra.nearest import nearest


class GateSpec(Spec):
    """The base of what gates are asked for. Each has a field `gate` with its kind."""


def near(name: str, known: Iterable[str]) -> str:
    if like := nearest(name, known):
        return f"; the nearest is {like}"
    return f"; there are {', '.join(sorted(known))}" if known else ""


def mistake(name: str, text: str) -> InitErrorDetails:
    # The text is a value of the template, since what it quotes may have braces.
    return InitErrorDetails(type=PydanticCustomError("gates", "{text}", {"text": text}), loc=(name,), input=None)
