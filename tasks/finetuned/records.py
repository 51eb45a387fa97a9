"""The weights that events brought: which were accepted, and which of them a rebuild takes.

finetuned/MODEL/REVISION.json    weights of an event; created once, which makes every later event of them a duplicate
finetuned/MODEL/current.json     which weights are accepted, and what became of them; moved with If-Match

REVISION is the identity of the weights' snapshot, so equal weights have one record by whatever name events call them.
Accepted weights are tried from the newest on, until some pass their gates: what is older than those never goes live.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from infra.errors import EventRefused
from infra.s3.bucket import Bucket
from tasks.finetuned.event import Event, changed_by, tuned
from tasks.models.overrides import override
from tasks.models.source_uri import floats, is_revision_of, parse_source
from tasks.models.spec import Model
from tasks.store.cell import Cell, WriteOnce
from tasks.store.record import Record

Standing = Literal["passed", "live", "refused"]
"""What became of weights: a release with them passed its gates, is public, or was refused by its gates."""

_REMEMBERED = 100
"""Weights that wait, and refusals. More do not come within the 7 days in which events are looked at again."""


class TunedWeights(Record):
    """Weights that an event brought, with the options that it set. They count until the model's file names others."""

    model: str
    revision: str
    asked: str
    """The source as the event named it."""
    source: str
    """The same, pinned if its scheme has revisions."""
    adapter: bool = False
    """Whether it is a LoRA adapter to the source of the model's file."""
    recipe: dict[str, str] = Field(default_factory=dict[str, str])
    file_source: str
    """The weights that the model's file named then. If it names others now, somebody chose them: the file counts."""
    event: str
    order: int = 0
    """Number of the event among those of its model; 0 if it came before there were numbers."""
    traceparent: str = ""
    """Where the event's sender is in a trace; empty if it has not said."""
    series: str = ""
    version: int = 0
    """Its number in the `series` that it belongs to, such as a registered model of MLflow."""
    accepted: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """By the clock of who decided. Weights without number are compared by it, as they were then."""

    @property
    def rank(self) -> tuple[int, int, float]:
        """The newer weights have the higher rank."""
        return (self.order, self.version, 0.0 if self.order else self.accepted.timestamp())


class CurrentWeights(Record):
    """What a rebuild takes in place of the file's weights: `followed`. A release with `proven` passed its gates."""

    followed: TunedWeights | None = None
    """The newest of the others, for people and for earlier versions of Enginehouse."""
    proven: TunedWeights | None = None
    waiting: tuple[TunedWeights, ...] = ()
    """Accepted weights that are neither live nor older than `proven`, nor refused by the gates; the newest is last."""
    refused: tuple[str, ...] = ()
    """Revisions that the gates have refused, so that an event that is taken again does not bring them back."""
    versions: dict[str, int] = Field(default_factory=dict[str, int])
    """The highest version of each series that was accepted."""

    @property
    def untried(self) -> tuple[TunedWeights, ...]:
        """`waiting`; in a record of an earlier version the weights that it follows, where they are the newest."""
        followed, proven = self.followed, self.proven
        if self.waiting or followed is None or (proven is not None and followed.rank <= proven.rank):
            return self.waiting
        return (followed,)

    @property
    def newest_first(self) -> tuple[TunedWeights, ...]:
        return (*reversed(self.untried), *(() if self.proven is None else (self.proven,)))

    def accepting(self, weights: TunedWeights) -> CurrentWeights:
        """The record with these weights; as it is, if it knows them or has newer ones that make them too late."""
        if self.knows(weights) or weights.version <= self.versions.get(weights.series, -1):
            return self
        # A higher version is newer than a lower one of its series that arrived after it.
        same = (each.order for each in self.newest_first if weights.series and each.series == weights.series)
        weights = weights.model_copy(update={"order": max(weights.order, *same, 0)})
        if self.proven is not None and weights.rank < self.proven.rank:
            return self
        versions = {**self.versions, weights.series: weights.version} if weights.series else self.versions
        return self._with(self.proven, (*self.untried, weights)).model_copy(update={"versions": versions})

    def settled(self, weights: TunedWeights, standing: Standing) -> CurrentWeights:
        """The record after a release with these weights came to this standing."""
        others = tuple(each for each in self.untried if each.revision != weights.revision)
        if standing == "refused":
            if others == self.untried:
                return self
            refused = (*self.refused, weights.revision)[-_REMEMBERED:]
            return self._with(self.proven, others).model_copy(update={"refused": refused})
        is_older = self.proven is not None and weights.rank < self.proven.rank
        return self._with(self.proven if is_older else weights, self.untried if standing == "passed" else others)

    def knows(self, weights: TunedWeights) -> bool:
        """Whether these weights were accepted, and no newer ones have passed since."""
        return weights.revision in (*self.refused, *(each.revision for each in self.newest_first))

    def _with(self, proven: TunedWeights | None, waiting: Iterable[TunedWeights]) -> CurrentWeights:
        newer = (each for each in waiting if proven is None or each.rank >= proven.rank)
        left = tuple(sorted(newer, key=lambda each: each.rank))[-_REMEMBERED:]
        return self.model_copy(update={"followed": left[-1] if left else proven, "proven": proven, "waiting": left})


def accept(bucket: Bucket, weights: TunedWeights) -> TunedWeights:
    """Accept the weights of an event, once. Returns the record that counts: that of the first event that brought them.

    Raises EventRefused `event-overtaken` if newer weights passed, or a higher version of their series was accepted.
    """
    if _floats(weights) and not current_weights(bucket, weights.model).read()[0].accepting(weights).knows(weights):
        raise _overtaken(weights)  # its branch's head is left to the event that comes with it
    key = f"finetuned/{weights.model}/{weights.revision}.json"
    first = WriteOnce(bucket, key, TunedWeights).create(weights)
    if first.event == weights.event:
        known = current_weights(bucket, weights.model).move(lambda known: known.accepting(first))
        if not known.knows(first):
            raise _overtaken(first)
    return first


def _floats(weights: TunedWeights) -> bool:
    """Whether the event named a branch, and left open which weights it brings."""
    return floats(parse_source(weights.asked))


def _overtaken(weights: TunedWeights) -> EventRefused:
    return EventRefused(f"{weights.model} has newer weights than {weights.source}", code="event-overtaken")


def settle(bucket: Bucket, weights: TunedWeights, standing: Standing) -> None:
    """Note what became of a release with these weights.

    After a refusal rebuilds take the newest weights that still wait, and if none do, those that are live.
    """
    current_weights(bucket, weights.model).move(lambda known: known.settled(weights, standing))


def with_newest(bucket: Bucket, model: Model) -> tuple[Model, TunedWeights | None]:
    """The model with the newest weights that an event brought, and their record; or the model of the file, and None."""
    return newest_of(_weights(bucket, model)[0], model)


def newest_of(known: CurrentWeights, model: Model) -> tuple[Model, TunedWeights | None]:
    """The same, of a record that was read."""
    for found in known.newest_first:
        if (changed := _changed(model, found)) is not None:
            return changed, found
    return model, None


def newer_ones(bucket: Bucket, model: Model, taken: TunedWeights | None) -> TunedWeights | None:
    """Weights that passed their gates and are newer than `taken`, or than those of the file if that is None."""
    proven = _weights(bucket, model)[0].proven
    if proven is None or _changed(model, proven) is None or (taken is not None and proven.rank <= taken.rank):
        return None
    return proven


def waiting(bucket: Bucket, model: Model) -> tuple[TunedWeights, str] | None:
    """The accepted weights that are to be rebuilt next, and the ETag of what is known of them; None if none wait."""
    known, etag = _weights(bucket, model)
    for found in reversed(known.untried):
        if etag is not None and _changed(model, found) is not None:
            return found, etag
    return None


def waiting_from(bucket: Bucket, model: Model, origin: str) -> list[TunedWeights]:
    """The accepted weights that wait, and with which a release comes from `origin`."""
    changed = ((found, _changed(model, found)) for found in _weights(bucket, model)[0].untried)
    return [found for found, made in changed if made is not None and made.origin == origin]


def _weights(bucket: Bucket, model: Model) -> tuple[CurrentWeights, str | None]:
    """What is known, and its ETag. A model that accepts no events needs no look at the store."""
    takes_events = model.accepts or is_revision_of(own := tuned(model), own)
    return current_weights(bucket, model.name).read() if takes_events else (CurrentWeights(), None)


def _changed(model: Model, found: TunedWeights) -> Model | None:
    """The model of the file with these weights. Returns None if the file names others now, or does not accept them."""
    if found.file_source != model.origin:
        return None
    event = Event(model=model.name, source=found.asked, recipe=dict(found.recipe))
    try:
        changed, _ = changed_by(event, {model.name: model})
    except EventRefused:  # the file has become narrower since
        return None
    if found.adapter:
        return override(changed, adapter=found.source).model
    return override(changed, source=found.source).model


def current_weights(bucket: Bucket, model: str) -> Cell[CurrentWeights]:
    """Which weights of a model are accepted, and what became of them."""
    return Cell(bucket, f"finetuned/{model}/current.json", CurrentWeights())
