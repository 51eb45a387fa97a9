"""The section `gates` of a model's file: what a candidate must prove before traffic moves, beyond its test prompts.

A new gate adds the class of what it is asked for to GATE_SPECS, and the gate itself to `tasks.gates.choice`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Union, cast

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

from infra.errors import UsageError
from infra.frozen import Spec
from tasks.load.lengths import parse_lengths
from tasks.load.metrics import MetricName
from tasks.load.percentiles import needed
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


class PerformanceSpec(GateSpec):
    """How soon the candidate answers under load: beside the live release, and within limits."""

    gate: Literal["performance"]
    margin: float = Field(
        default=0.1, ge=0.01, le=2, description="How much longer it may take than the live release: 0.1 for a tenth."
    )
    errors: float = Field(
        default=0.05, ge=0.001, le=0.5, description="The share of requests that may fail beyond the live release's."
    )
    time_to_first_token_ms: float | None = Field(default=None, gt=0, description="A limit, at the percentile.")
    inter_token_latency_ms: float | None = Field(default=None, gt=0, description="A limit, at the percentile.")
    request_latency_ms: float | None = Field(default=None, gt=0, description="A limit, at the percentile.")
    percentile: Literal[50, 90, 95, 99] = Field(default=95, description="Of the limits.")
    requests: int = Field(default=120, ge=40, le=100_000, description="Measured of each release.")
    rounds: int = Field(default=12, ge=8, le=500, description="In each, both releases get the same prompts in turns.")
    concurrency: int = Field(default=4, ge=1, le=1024, description="Requests at once, where no rate is given.")
    rate: float | None = Field(default=None, gt=0, le=1000, description="Requests a second, as a Poisson process.")
    prompt_tokens: str = Field(default="uniform:16,128", description="N, or KIND:A,B: see docs/how-to/load.md.")
    answer_tokens: str = Field(default="uniform:8,32", description="The most tokens of an answer, likewise.")
    exact_lengths: bool = Field(default=False, description="Answers have all their tokens, if the kind can do that.")
    over: Literal["grpc", "sse"] = Field(default="grpc", description="The protocol.")
    warm_up: int = Field(default=8, ge=0, le=1000, description="Requests to each release that are not measured.")
    timeout: float = Field(default=60, gt=0, le=3600, description="Seconds after which a request has failed.")
    most_seconds: float = Field(default=900, gt=0, le=86_400, description="After which the gate ends with what it has.")
    most_lateness_ms: float = Field(
        default=10,
        gt=0,
        description="How late the load itself may be at p99; with more, nothing is decided.",
    )
    seed: int = Field(default=1, ge=0, lt=2**63, description="Of lengths, prompts and moments.")

    @field_validator("prompt_tokens", "answer_tokens")
    @classmethod
    def _are_lengths(cls, text: str) -> str:
        try:
            parse_lengths(text)
        except UsageError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None
        return text

    @model_validator(mode="after")
    def _can_say(self) -> PerformanceSpec:
        if self.requests < 2 * self.rounds:
            raise ValueError(f"{self.rounds} rounds take {2 * self.rounds} requests or more")
        # 0.95: the bounds of gates are 95 % ones, as long as the file does not ask for others.
        if self.limits and self.requests < (least := needed(self.percentile, 0.95)):
            raise ValueError(f"a limit of the {self.percentile}th percentile takes {least} requests or more")
        return self

    @property
    def limits(self) -> tuple[tuple[MetricName, float], ...]:
        """Metrics with their limits in milliseconds."""
        limits: tuple[tuple[MetricName, float | None], ...] = (
            ("time_to_first_token", self.time_to_first_token_ms),
            ("inter_token_latency", self.inter_token_latency_ms),
            ("request_latency", self.request_latency_ms),
        )
        return tuple((metric, limit) for metric, limit in limits if limit is not None)


GATE_SPECS: dict[str, type[GateSpec]] = {"performance": PerformanceSpec}
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
