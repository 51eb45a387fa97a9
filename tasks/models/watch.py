"""What a model's file asks of the watch over a release that was just promoted."""

from __future__ import annotations

from pydantic import Field, JsonValue

from infra.frozen import Spec
from tasks.models.durations import Seconds


class WatchSpec(Spec):
    """How long clients are watched, and how much worse they may fare than before."""

    lasts: Seconds = Field(default=1800, alias="for", ge=10, le=86_400, description="How long: 30m, 1h30m, or seconds.")
    errors: float = Field(
        default=0.02, ge=0.001, le=0.5, description="The share of requests that may fail beyond what failed before."
    )
    first_token: float | None = Field(
        default=0.5,
        ge=0.1,
        le=10,
        description="How much slower first tokens may be: 0.5 is half as long again. null: not watched.",
    )
    gap: float | None = Field(
        default=0.5, ge=0.1, le=10, description="The same of the time between two tokens of an answer."
    )
    memory: float | None = Field(
        default=0.2,
        ge=0.01,
        le=10,
        description="How much the memory of its processes may grow in that time: 0.2 is a fifth, and 64 MiB are none. "
        "null: not watched.",
    )
    probe_every: Seconds = Field(
        default=5,
        ge=1,
        le=600,
        description="Where clients ask too little, a test prompt goes to both releases so often.",
    )
    alpha: float = Field(
        default=0.05, ge=0.0001, le=0.2, description="The share of equal releases that may be given back."
    )

    @property
    def document(self) -> dict[str, JsonValue]:
        """As JSON, with the names of the model's file."""
        return self.model_dump(mode="json", by_alias=True)
