"""What a gate measured of a candidate, and the verdict on it. The record is created once: nobody measures it again.

targets/TARGET/MODEL/N/gates/GATE.json
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from tasks.store.names import Segment
from tasks.store.record import Record

VerdictState = Literal["passed", "refused", "undecided"]


def _now() -> datetime:
    return datetime.now(UTC)


class PromptResult(Record):
    """What one node answered to one test prompt."""

    prompt: str
    node: str
    passed: bool
    answer: str
    seconds: float
    failures: tuple[str, ...]


class Comparison(Record):
    """One measure of the candidate beside the same measure of something else, and what that says of the difference.

    The difference, its bounds and the margin count what is better as positive, whichever way the measure goes.
    """

    measure: str
    """What was measured, as people say it: `next-token agreement`."""
    method: str = ""
    """How the bounds were found, in a few words: `exact McNemar, 200 prompts`."""
    unit: str = ""
    """Of all values here. Empty for a share of 1."""
    against: Literal["live", "reference", "floor"] = "live"
    """What it is compared with: the live release, the reference of the weights, or a value of the model's file."""
    candidate: float
    other: float
    """The same measure of what it is compared with."""
    difference: float
    """How much better the candidate is. Not always `candidate - other`: a gate may compare ratios, or where less is
    better."""
    lower: float | None
    """The lower one-sided confidence bound of the difference, at the level that the model's file asks for. None: none
    says anything."""
    upper: float | None
    margin: float = Field(ge=0)
    """The loss that the model's file allows."""
    p_worse: float = Field(ge=0, le=1)
    """How probable data like these, or worse ones, are for a candidate that loses no more than the margin. A small one
    refuses."""
    p_fine: float = Field(ge=0, le=1)
    """How probable data like these, or better ones, are for a candidate that loses the margin or more. A small one
    passes."""
    samples: int = Field(ge=0)
    detectable: float | None = None
    """The loss that is refused with a power of 0.8 from so many samples. None: unknown."""
    needed: int | None = None
    """About how many samples in all would decide, if they went on like these. None: nobody knows, or none would."""


class Figure(Record):
    """A further number, which decides nothing."""

    name: str
    unit: str = ""
    candidate: float
    live: float | None = None


class Histogram(Record):
    """How the times of one metric spread over the requests, of the candidate and beside it of the live release."""

    measure: str
    unit: str = "ms"
    edges: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=2, max_length=201)
    """Ascending, one more than there are counts. Every time lies between the first and the last."""
    candidate: tuple[int, ...]
    live: tuple[int, ...] = ()
    """Empty if the live release was not asked."""


class Differing(Record):
    """Two answers to one question that differ, side by side."""

    question: str
    candidate: str
    other: str
    note: str = ""
    against: Literal["live", "reference"] = "live"
    """Whose the other answer is."""


class Evidence(Record):
    """What a gate found."""

    comparisons: tuple[Comparison, ...] = ()
    failures: tuple[str, ...] = ()
    """What the candidate cannot be excused for: a prompt that failed, a floor missed, no answer. One refuses it."""
    gaps: tuple[str, ...] = ()
    """What should have been measured, and was not. One of them keeps the gate from passing."""
    figures: tuple[Figure, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    differing: tuple[Differing, ...] = ()
    prompts: tuple[PromptResult, ...] = ()
    notes: tuple[str, ...] = ()
    """What else people should know, a sentence each."""
    reference: str = ""
    """The artifact with the answers of the reference, as `KIND/IDENTITY`. Empty if it was compared with none."""

    @property
    def samples(self) -> int:
        """The samples of the comparison that has the fewest; of a gate without one, its prompts."""
        return min((each.samples for each in self.comparisons), default=len(self.prompts))


class GateRecord(Record):
    """One gate's evidence on one candidate."""

    gate: Segment
    """Its name in the model's file."""
    kind: str
    """What it is: `smoke`, `agreement`."""
    asked: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """What the model's file asks of it."""
    candidate: int
    live: int | None
    """The release that was live when the gates began. None if none was."""
    evidence: Evidence
    seconds: float = 0
    flow_run: str = ""
    created: datetime = Field(default_factory=_now)


class Verdict(Record):
    """What one gate's evidence comes to, beside that of the other gates."""

    gate: Segment
    kind: str
    state: VerdictState
    reason: str
    """In a sentence or two: what decided, or what would."""
    samples: int = 0
    decisive: Comparison | None = None
    """The comparison that the state rests on. None if it rests on none."""
    level: float | None = None
    """The level at which the decisive one could have refused, with the other gates beside it (Holm)."""
