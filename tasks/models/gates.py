"""The section `gates` of a model's file: what a candidate must prove before traffic moves, beyond its test prompts.

A new gate adds the class of what it is asked for to GATE_SPECS, and the gate itself to `tasks.gates.choice`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Union, cast

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails

from infra.frozen import Spec
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.gate_specs.base import GateSpec, mistake, near
from tasks.models.gate_specs.command import CommandSpec
from tasks.models.gate_specs.performance import PerformanceSpec
from tasks.models.gate_specs.quality import QualitySpec
from tasks.targets.release import Undecided

SMOKE = "smoke"
"""The gate of the test prompts, which every model has: `prompts` of its file are what it asks."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


GATE_SPECS: dict[str, type[GateSpec]] = {
    "agreement": AgreementSpec,
    "quality": QualitySpec,
    "performance": PerformanceSpec,
    "command": CommandSpec,
}
"""What each kind of gate may be asked for, by the kind's name."""


def kind_of(asked: GateSpec) -> str:
    """The kind that a gate is of."""
    return next(kind for kind, known in GATE_SPECS.items() if type(asked) is known)


def _read(value: object, _: ValidatorFunctionWrapHandler) -> GateSpec:
    """A gate of a model's file, of the class that its `gate` names."""
    if isinstance(value, GateSpec):
        return value
    document = cast("Mapping[str, object]", value)  # `Gates` has seen to it
    return GATE_SPECS[str(document["gate"])].model_validate(document)


def _json_schema(_: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    # `agreement:` without anything is the gate as it comes.
    union = Union[(*GATE_SPECS.values(), None)]
    return handler(TypeAdapter[GateSpec](cast("type[GateSpec]", union)).core_schema)


AnyGate = Annotated[
    SerializeAsAny[GateSpec], WrapValidator(_read), GetPydanticSchema(get_pydantic_json_schema=_json_schema)
]
"""A gate of whichever kind GATE_SPECS knows when a model's file is read."""


class Gates(Spec):
    """What a candidate must prove. Every further key is a gate by its name, which is its kind unless `gate` says so."""

    model_config = ConfigDict(frozen=True, extra="allow", validate_default=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, AnyGate]  # pyright: ignore[reportIncompatibleVariableOverride]

    alpha: float = Field(
        default=0.05, ge=0.0001, le=0.2, description="The share of equal candidates that all gates together may refuse."
    )
    undecided: Undecided = Field(
        default="ask",
        description="What happens where the data decide nothing. ask: it stays a candidate. refuse: it goes. "
        "promote: it is promoted, and its record says undecided.",
    )

    @property
    def asked(self) -> Mapping[str, GateSpec]:
        """The gates that the file asks for, by name, in its order."""
        return self.__pydantic_extra__

    @model_validator(mode="before")
    @classmethod
    def _names_kinds(cls, value: object) -> object:
        """Each gate with its kind. `agreement:` alone asks for one as it comes."""
        if not isinstance(value, Mapping):
            return value
        document: dict[str, object] = {}
        mistakes: list[InitErrorDetails] = []
        for key, asked in cast("Mapping[object, object]", value).items():
            name = str(key)
            document[name] = asked
            if name in cls.model_fields or isinstance(asked, GateSpec):
                continue
            table: object = asked if asked is not None else dict[str, object]()
            if problem := _problem_of(name, table):
                mistakes.append(mistake(name, problem))
            else:
                document[name] = {"gate": name, **cast("Mapping[str, object]", table)}
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return document


def _problem_of(name: str, asked: object) -> str:
    if name == SMOKE:
        return "is always there: `prompts` are what it asks"
    if not _NAME.fullmatch(name):
        return "a gate's name has lowercase letters, digits and dashes"
    table = cast("Mapping[str, object]", asked) if isinstance(asked, Mapping) else None
    kind = name if table is None else str(table.get("gate", name))
    if kind not in GATE_SPECS:
        known = [*GATE_SPECS] if table is not None and "gate" in table else [*GATE_SPECS, *Gates.model_fields]
        return f"there is no gate '{kind}'{near(kind, known)}"
    return "is a table of what the gate is asked for" if table is None else ""
