"""What the gate of performance may be asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from infra.errors import UsageError
from tasks.load.lengths import parse_lengths
from tasks.load.metrics import MetricName
from tasks.load.percentiles import needed
from tasks.models.gate_specs.base import GateSpec


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
