"""Which model has an alias on a target: each of these names is one model's alone.

targets/TARGET/aliases.json    moved with `If-Match`
"""

from __future__ import annotations

import uuid
from collections.abc import Collection

from pydantic import Field

from infra.errors import UsageError
from tasks.store.cell import Cell
from tasks.store.names import Segment
from tasks.store.record import Record
from tasks.targets.target import Target


class Holder(Record):
    """The model that has an alias. `claim` is another one each time that it is asked for."""

    model: Segment
    claim: str


class Aliases(Record):
    """The holders by alias."""

    holders: dict[str, Holder] = Field(default_factory=dict[str, Holder])


def claim(target: Target, model: str, aliases: Collection[str]) -> None:
    """Have the model be the one with these aliases on the target.

    The wanted state must name a release of it that asks for them, as public or as a candidate: only then two that claim
    at once see each other. For the one who writes second the record has changed, so it looks again.

    Raises UsageError, code `alias-taken`, if another model has one and still asks for it.
    """
    if not aliases:
        return
    ours = {alias: Holder(model=model, claim=uuid.uuid4().hex) for alias in aliases}

    def change(known: Aliases) -> Aliases:
        require_free(target, model, aliases, known)
        return known.model_copy(update={"holders": {**known.holders, **ours}})

    _cell(target).move(change)


def require_free(target: Target, model: str, aliases: Collection[str], known: Aliases | None = None) -> None:
    """Raise as `claim` does, and claim nothing. `known` is what the record says, if it has been read."""
    if not aliases:
        return
    holders = (_cell(target).read()[0] if known is None else known).holders
    for alias in aliases:
        holder = holders.get(alias)
        if holder is not None and holder.model != model and _asks(target, holder.model, alias):
            raise UsageError(
                f"{model} asks for the alias '{alias}' on '{target.name}', which {holder.model} has",
                hint=f"take '{alias}' out of `serving.aliases` of one of the two, and rebuild that one first; "
                "or give it another target",
                code="alias-taken",
            )


def _asks(target: Target, model: str, alias: str) -> bool:
    """Whether a release of the model that is public, or may become so, asks for the alias."""
    current, _ = target.current(model)
    releases = {current.public, *current.candidates} - {None}
    return any(alias in target.intent(model, release).aliases for release in releases if release is not None)


def _cell(target: Target) -> Cell[Aliases]:
    return Cell(target.bucket, f"{target.prefix}aliases.json", Aliases())
