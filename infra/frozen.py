"""The base of everything in a model's file."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class Spec(BaseModel):
    """A frozen value. It refuses unknown fields, and checks defaults like any other value.

    Its validator is built when the first value is made: those of all classes are a quarter of a command's imports.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, defer_build=True)


class FrozenDict(dict[KeyT, ValueT]):
    """A dictionary of a frozen value, with which that can be hashed. Nobody changes it."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(frozenset(self.items()))


def problems(error: ValidationError) -> str:
    """What is wrong, field by field. Values are left out, since they may be secret."""
    return "; ".join(
        f"{'.'.join(map(str, detail['loc'])) or 'all of it'}: {detail['msg'].removeprefix('Value error, ')}"
        for detail in error.errors(include_url=False, include_input=False)
    )
