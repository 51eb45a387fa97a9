"""What the store keeps of fine-tuning events.

events/ID.json                   the payload, the decision and its reason; created once, then decided once
finetuned/MODEL/REVISION.json    accepted weights; created once, which makes every later event of them a duplicate
finetuned/MODEL/current.json     which of them a rebuild takes; moved with If-Match

REVISION is the identity of the weights' snapshot, so equal weights have one record by whatever name events call them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, JsonValue

from infra.errors import EnginehouseError, EventRefused
from infra.s3.bucket import Bucket
from tasks.finetuned.event import LARGEST_CHARACTERS, Event, changed_by, tuned
from tasks.models.overrides import override
from tasks.models.source_uri import HubUri
from tasks.models.spec import Model
from tasks.store.cell import Cell, WriteOnce
from tasks.store.record import Record, record_bytes

_EVENTS = "events/"
_KEPT_CHARACTERS = LARGEST_CHARACTERS // 4
_LOOKED_BACK_SECONDS = 7 * 86400


def _now() -> datetime:
    return datetime.now(UTC)


class Arrival(Record):
    """An event and what was decided on it. Its state is `received` until then."""

    id: str
    said: dict[str, JsonValue]
    """The payload; of one that is too large its beginning, as `text`."""
    received: datetime = Field(default_factory=_now)
    state: Literal["received", "accepted", "duplicate", "refused"] = "received"
    code: str = ""
    """Code of the error that refused it."""
    reason: str = ""
    model: str = ""
    revision: str = ""
    flow_run: str = ""
    """The rebuild that it started."""


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
    accepted: datetime = Field(default_factory=_now)


class CurrentWeights(Record):
    """What a rebuild takes in place of the file's weights: `followed`. A release was promoted with `proven`."""

    followed: TunedWeights | None = None
    proven: TunedWeights | None = None


def arrive(bucket: Bucket, id: str, payload: Mapping[str, JsonValue]) -> Arrival:
    """Record an event before anything is decided on it. An event of this id that is known already stays as it is."""
    arrival = Arrival(id=id, said=dict(payload))
    if len(text := json.dumps(payload)) > LARGEST_CHARACTERS:  # it will be refused
        arrival = Arrival(id=id, said={"text": text[:_KEPT_CHARACTERS]})
    return _arrival(bucket, id).create(arrival)


def read_arrival(bucket: Bucket, id: str) -> Arrival | None:
    return _arrival(bucket, id).read()


def _arrival(bucket: Bucket, id: str) -> WriteOnce[Arrival]:
    return WriteOnce(bucket, _event_key(id), Arrival)


def decide(bucket: Bucket, arrival: Arrival) -> Arrival:
    """Write what was decided."""
    bucket.put(_event_key(arrival.id), record_bytes(arrival))
    return arrival


def refused(arrival: Arrival, error: EnginehouseError) -> Arrival:
    """The record of an event that was refused with `error`."""
    return arrival.model_copy(update={"state": "refused", "code": error.code, "reason": error.message})


def undecided(bucket: Bucket, older_than_seconds: float) -> Iterator[Arrival]:
    """Events without a decision that came so long ago, by the store's clock. Reads every event of the last 7 days."""
    for entry in bucket.list(_EVENTS):
        if older_than_seconds <= entry.age <= _LOOKED_BACK_SECONDS:
            arrival = read_arrival(bucket, entry.key.removeprefix(_EVENTS).removesuffix(".json"))
            if arrival is not None and arrival.state == "received":
                yield arrival


def claim(bucket: Bucket, weights: TunedWeights) -> TunedWeights:
    """Accept weights, once. Returns the record that counts: the first of this model and revision."""
    key = f"finetuned/{weights.model}/{weights.revision}.json"
    return WriteOnce(bucket, key, TunedWeights).create(weights)


def follow(bucket: Bucket, weights: TunedWeights) -> None:
    """From now on rebuilds of the model take these weights."""
    _current(bucket, weights.model).move(lambda known: known.model_copy(update={"followed": weights}))


def settle(bucket: Bucket, weights: TunedWeights, *, passed: bool) -> None:
    """Note that a release with these weights was promoted, or that its gates refused it.

    After a refusal rebuilds take the proven weights again, unless newer ones have come meanwhile.
    """

    def change(known: CurrentWeights) -> CurrentWeights:
        if passed:
            older = known.proven is None or known.proven.accepted < weights.accepted
            return known.model_copy(update={"proven": weights}) if older else known
        ours = known.followed is not None and known.followed.revision == weights.revision
        return known.model_copy(update={"followed": known.proven}) if ours else known

    _current(bucket, weights.model).move(change)


def with_newest(bucket: Bucket, model: Model) -> tuple[Model, TunedWeights | None]:
    """The model with the newest weights that an event brought, and their record; or the model of the file, and None."""
    found = _weights(bucket, model).followed
    changed = None if found is None else _changed(model, found)
    return (model, None) if changed is None else (changed, found)


def newer_ones(bucket: Bucket, model: Model, taken: TunedWeights | None) -> TunedWeights | None:
    """Weights that went live and are newer than `taken`, or than those of the file if that is None."""
    proven = _weights(bucket, model).proven
    if proven is None or _changed(model, proven) is None or (taken and proven.accepted <= taken.accepted):
        return None
    return proven


def _weights(bucket: Bucket, model: Model) -> CurrentWeights:
    """What a rebuild takes. A model that accepts no events needs no look at the store."""
    takes_events = model.accepts or isinstance(tuned(model), HubUri)
    return _current(bucket, model.name).read()[0] if takes_events else CurrentWeights()


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


def _current(bucket: Bucket, model: str) -> Cell[CurrentWeights]:
    return Cell(bucket, f"finetuned/{model}/current.json", CurrentWeights())


def _event_key(id: str) -> str:
    return f"{_EVENTS}{id}.json"
