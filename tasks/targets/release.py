"""The records of one release: what it is, and what became of it. Each is created once.

targets/TARGET/MODEL/N/intent.json   reserves release number N
targets/TARGET/MODEL/N/result.json   the verdict of its gates
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from tasks.store.record import Record
from tasks.targets.changes import FieldChange, changes


def _now() -> datetime:
    return datetime.now(UTC)


class Intent(Record):
    """What release N is: a repository artifact, who made it and from what."""

    newest: ClassVar[int] = 2

    schema_version: int = 2
    model: str
    release: int
    repository: str
    """Reference of the repository artifact."""
    digest: str
    """Digest of the bytes of the repository and of the engine below it."""
    recipe: dict[str, JsonValue]
    serving: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Both as JSON. Records of version 1 have the text of each field of the recipe, and no serving."""
    ranks: int = 0
    """How many processes the servers of its engine are, apart from the node's Triton; 0 where it needs none."""
    changes: tuple[FieldChange, ...] = ()
    """What differs from the release that was live then: fields of the recipe, and of its serving as `serving.…`."""
    lost: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Fields without a counterpart in the kind that the recipe was translated to, named likewise: their old values."""
    source: str
    flow_run: str
    created: datetime = Field(default_factory=_now)


class PromptResult(Record):
    prompt: str
    node: str
    passed: bool
    answer: str
    seconds: float
    failures: tuple[str, ...]


class Result(Record):
    """What became of release N: `passed`, or `refused` with the reason."""

    release: int
    state: Literal["passed", "refused"]
    reason: str = ""
    prompts: tuple[PromptResult, ...] = ()
    created: datetime = Field(default_factory=_now)


def changes_since(
    live: Intent | None, recipe: Mapping[str, JsonValue], serving: Mapping[str, JsonValue]
) -> tuple[FieldChange, ...]:
    """What differs in a release with this recipe and serving from the live one; nothing where there is none."""
    if live is None:
        return ()
    if live.schema_version == 1:
        return changes(live.recipe, {name: str(value) for name, value in recipe.items()})
    return changes({**live.recipe, "serving": live.serving}, {**recipe, "serving": dict(serving)})
