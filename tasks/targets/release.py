"""The records of one release: what it is, and what became of it. Each is created once.

targets/TARGET/MODEL/N/intent.json   reserves release number N
targets/TARGET/MODEL/N/signatures/SHA256.json   of the intent with that sha256, if a signing key is set
targets/TARGET/MODEL/N/result.json   the verdict of its gates, whose evidence is in the records of `gate_record`
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, JsonValue, field_validator

from tasks.store.artifact import ArtifactRef, recorded
from tasks.store.names import ALIASES, Alias, Segment, segment
from tasks.store.record import Record
from tasks.targets.changes import FieldChange, changes
from tasks.targets.gate_record import PromptResult, Verdict, VerdictState

Undecided: TypeAlias = Literal["ask", "refuse", "promote"]
"""What happens to a candidate on which the gates could not decide: it waits, goes, or is promoted all the same."""


def _now() -> datetime:
    return datetime.now(UTC)


class Intent(Record):
    """What release N is: a repository artifact, which run made it, and from what."""

    newest: ClassVar[int] = 3

    schema_version: int = 3
    model: Segment
    release: int
    repository: str
    """Reference of the repository artifact. Up to version 2 it lies in the layout of before."""
    digest: str
    """Digest of the bytes of the repository and of the engine below it."""
    recipe: dict[str, JsonValue]
    serving: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Both as JSON. Records of version 1 have the text of each field of the recipe, and no serving."""
    ranks: int = Field(default=0, ge=0, le=1024)
    """Processes of the servers that its engine has for itself; 0 if the node's Triton runs the engine."""
    changes: tuple[FieldChange, ...] = ()
    """What differs from the release that was live then: fields of the recipe, and of serving as `serving.…`."""
    lost: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Fields that have no counterpart in the kind that the recipe was translated to, with their old values."""
    live: int | None = None
    """The release that was live then. Records of before do not have it."""
    source: str
    adapters: dict[str, str] = Field(default_factory=dict[str, str])
    """The addresses of those that requests may choose, by name."""
    flow_run: str
    former: str = ""
    """`MODEL@N`: the release of the same bytes under the name that the model had before. Empty if it had none."""
    traceparent: str = ""
    """Where the run that made it is in its trace, as W3C writes that; empty if none was recorded."""
    created: datetime = Field(default_factory=_now)

    @field_validator("former")
    @classmethod
    def _names_a_release(cls, former: str) -> str:
        model, at, number = former.rpartition("@")
        if former and not (at and number.isdecimal() and segment(model)):
            raise ValueError(f"{former[:200]!r} is no release")
        return former

    @property
    def artifact(self) -> ArtifactRef:
        """The repository artifact. Raises ArtifactDamaged, code `record-invalid`, if `repository` names none."""
        return recorded(self.repository)

    @property
    def takes_ids(self) -> bool:
        """Whether it takes a request that has an id, by which its figures leave it out.

        Before there was a second contract, an id that came by /generate was refused as a field that nobody knows.
        """
        contract = self.serving.get("contract")
        return isinstance(contract, int) and contract > 1

    @property
    def aliases(self) -> tuple[Alias, ...]:
        """The further public names that the release asks for."""
        asked = self.serving.get("aliases")
        return tuple(name for name in ALIASES if isinstance(asked, list) and name in asked)


class Result(Record):
    """The verdict on release N: `passed`, `refused` with the reason, or `undecided`."""

    newest: ClassVar[int] = 2

    schema_version: int = 1
    """1 says all there is to say, but for `undecided`."""
    release: int
    state: VerdictState
    reason: str = ""
    undecided: Undecided | None = None
    """What the model's file says of a release that is undecided. `promote`: it may be public all the same."""
    prompts: tuple[PromptResult, ...] = ()
    live: int | None = None
    """The release that it was compared with. None if it was compared with none."""
    gates: tuple[Verdict, ...] = ()
    """In the order in which they ran. Empty in records of before, and where the release came to no gate."""
    asked: str = ""
    """Digest of the section `gates` of the model's file. Empty if the file has none."""
    created: datetime = Field(default_factory=_now)

    @property
    def may_be_public(self) -> bool:
        """Whether traffic may move to the release."""
        return self.state == "passed" or (self.state == "undecided" and self.undecided == "promote")


def changes_since(
    live: Intent | None, recipe: Mapping[str, JsonValue], serving: Mapping[str, JsonValue]
) -> tuple[FieldChange, ...]:
    """What differs between the live release and one with this recipe and serving; empty if no release is live."""
    if live is None:
        return ()
    if live.schema_version == 1:
        return changes(live.recipe, {name: str(value) for name, value in recipe.items()})
    return changes({**live.recipe, "serving": live.serving}, {**recipe, "serving": dict(serving)})
