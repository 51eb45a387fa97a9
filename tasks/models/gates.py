"""The section `gates` of a model's file: what a candidate must prove before traffic moves, beyond its test prompts.

A new gate adds the class of what it is asked for to GATE_SPECS, and the gate itself to `tasks.gates.choice`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self, TypeAlias, Union, cast

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
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from infra.frozen import FrozenDict, Spec
from tasks.targets.release import Undecided

SMOKE = "smoke"
"""The gate of the test prompts, which every model has: `prompts` of its file are what it asks."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class GateSpec(Spec):
    """The base of what gates are asked for. Each has a field `gate` with its kind."""

    @model_validator(mode="before")
    @classmethod
    def _knows_its_fields(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        given = cast("Mapping[str, object]", value)
        _refuse_unknown(cls.__name__, given, [name for name in cls.model_fields if name != "gate"])
        return given


FILE_SCHEME = "file://"
_SET = re.compile(r"file:///[^?#]*[^/?#]|s3://[a-z0-9][a-z0-9.-]+/[^?#]*[^/?#]")


class SetSource(Spec):
    """A file that a gate reads: passages, or questions with known answers."""

    uri: str = Field(description="file:///… where the flow runs, or s3://bucket/key.")
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="Pins its bytes. Empty: as it is then.")

    @field_validator("uri")
    @classmethod
    def _is_one_file(cls, uri: str) -> str:
        if not _SET.fullmatch(uri):
            raise ValueError("is neither file:///folder/name nor s3://bucket/key")
        return uri


class AgreementSpec(GateSpec):
    """The next token after the same beginnings of texts, by the candidate and by the live release."""

    gate: Literal["agreement"] = "agreement"
    passages: SetSource | None = Field(
        default=None, description="Texts of your own: JSON lines with `text`, or paragraphs. None: 64 of Enginehouse."
    )
    positions: int = Field(default=4, ge=1, le=64, description="Places in each passage where both are asked.")
    margin: float = Field(
        default=0.05,
        ge=0.001,
        le=0.5,
        description="The share of next tokens that may differ from those of the live release.",
    )
    max_seconds: float = Field(
        default=900, gt=0, le=86_400, description="No passage is begun later. What has been asked by then is judged."
    )


SampleScorer: TypeAlias = Literal["exact", "contains", "numeric"]
"""How answers are scored that are in a set which does not say it itself."""


class QualitySpec(GateSpec):
    """Questions with known answers, put to the candidate and to the live release."""

    gate: Literal["quality"] = "quality"
    questions: SetSource | None = Field(
        default=None, description="A set of your own, or samples of lm-evaluation-harness. None: that of Enginehouse."
    )
    scorer: SampleScorer | None = Field(
        default=None, description="Of samples whose answers are written: what a right answer is, by their target."
    )
    margin: float = Field(
        default=0.05, ge=0, le=0.5, description="The share of right answers that may be lost against the live release."
    )
    floor: float | None = Field(
        default=None, gt=0, lt=1, description="The share of right answers that a candidate must have, a first one too."
    )
    endings: float | None = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="The share of written answers that may run on where those of the live release end. None: any.",
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Questions that a node is asked at the same time.")
    max_seconds: float = Field(
        default=1800, gt=0, le=86_400, description="No question is put later. What has been answered by then is judged."
    )


class MetricSpec(Spec):
    """What is asked of one metric that a program reports. One of `margin` and `floor`, or both."""

    margin: float | None = Field(
        default=None, ge=0, description="How much worse its mean may be than that of the live release."
    )
    floor: float | None = Field(
        default=None,
        description="What its mean must reach, a first release's too; with `better: less` the most it may be.",
    )
    better: Literal["more", "less"] = "more"

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.margin is None and self.floor is None:
            raise ValueError("needs a `margin`, a `floor`, or both")
        return self


class CommandSpec(GateSpec):
    """A program that asks the candidate and says what it found as JSON."""

    gate: Literal["command"] = "command"
    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="The program with its arguments. No shell reads them."
    )
    timeout_s: float = Field(default=1800, gt=0, le=86_400, description="It is ended then, which is an error.")
    metrics: dict[Annotated[str, Field(min_length=1, max_length=100)], MetricSpec] = Field(
        default={}, validate_default=True, description="What is asked of the metrics that it reports, by their names."
    )

    @field_validator("metrics")
    @classmethod
    def _frozen(cls, metrics: dict[str, MetricSpec]) -> dict[str, MetricSpec]:
        return FrozenDict(metrics)


GATE_SPECS: dict[str, type[GateSpec]] = {
    "agreement": AgreementSpec,
    "quality": QualitySpec,
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
                mistakes.append(_mistake(name, problem))
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
        return f"there is no gate '{kind}'{_near(kind, known)}"
    return "is a table of what the gate is asked for" if table is None else ""


def _refuse_unknown(title: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in given if name != "gate" and name not in known]
    if unknown:
        mistakes = [_mistake(name, f"is unknown here{_near(name, known)}") for name in unknown]
        raise ValidationError.from_exception_data(title, mistakes)


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; the nearest is {near[0]}" if near else f"; there are {', '.join(sorted(known))}" if known else ""


def _mistake(name: str, text: str) -> InitErrorDetails:
    # The text is a value of the template, since what it quotes may have braces.
    return InitErrorDetails(type=PydanticCustomError("gates", "{text}", {"text": text}), loc=(name,), input=None)
