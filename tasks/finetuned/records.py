"""What the store keeps of fine-tuning events.

events/ID.json                   what came, from whom, what was decided and why; created once, then decided once
finetuned/MODEL/REVISION.json    weights that were accepted; created once, so that duplicates and replays die here
finetuned/MODEL/current.json     which of them a rebuild takes; moved with If-Match

REVISION is the identity of the weights' snapshot: whatever an event calls them, the same weights are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, JsonValue

from infra.errors import EnginehouseError, EventRefused
from infra.s3.bucket import Bucket
from tasks.finetuned.event import Event, changed_by, tuned
from tasks.models.overrides import override
from tasks.models.source_uri import HubUri
from tasks.models.spec import Model
from tasks.store.cell import Cell, WriteOnce
from tasks.store.record import Record, record_bytes

_EVENTS = "events/"
_KEPT_CHARACTERS = 4096


def _now() -> datetime:
    return datetime.now(UTC)


class Arrival(Record):
    """An event as it came. `received` until something was decided."""

    id: str
    said: dict[str, JsonValue]
    """Its payload; of one that is not an event its beginning, as `text`."""
    received: datetime = Field(default_factory=_now)
    state: Literal["received", "accepted", "duplicate", "refused"] = "received"
    code: str = ""
    """Of the error, where it was refused."""
    reason: str = ""
    model: str = ""
    revision: str = ""
    flow_run: str = ""
    """The rebuild that it started."""


class TunedWeights(Record):
    """Weights that an event brought, with the options that it set. They count while the model's file stays."""

    model: str
    revision: str
    asked: str
    """The source as the event named it."""
    source: str
    """The same, pinned where its kind of source can be."""
    adapter: bool = False
    """Whether it is a LoRA adapter to the source of the model's file."""
    recipe: dict[str, str] = Field(default_factory=dict[str, str])
    file_source: str
    """The weights in the model's file then. Once that is another, somebody has decided anew, and the file counts."""
    event: str
    accepted: datetime = Field(default_factory=_now)


class CurrentWeights(Record):
    """What a rebuild takes in place of the file's source: `followed`. A release was promoted with `proven`."""

    followed: TunedWeights | None = None
    proven: TunedWeights | None = None


def arrive(bucket: Bucket, id: str, said: Mapping[str, JsonValue]) -> Arrival:
    """Note an event before anything is decided; one of this id that is known already stays as it is."""
    arrival = Arrival(id=id, said=dict(said))
    if len(text := json.dumps(said)) > 4 * _KEPT_CHARACTERS:  # it will be refused
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
    """The record of an event that `error` keeps from going on."""
    return arrival.model_copy(update={"state": "refused", "code": error.code, "reason": error.message})


def undecided(bucket: Bucket, older_than_seconds: float) -> Iterator[Arrival]:
    """Events on which nothing was decided since they came, by the store's clock. Reads every event of the last days."""
    for entry in bucket.list(_EVENTS):
        if older_than_seconds <= entry.age <= 7 * 86400:
            arrival = read_arrival(bucket, entry.key.removeprefix(_EVENTS).removesuffix(".json"))
            if arrival is not None and arrival.state == "received":
                yield arrival


def claim(bucket: Bucket, weights: TunedWeights) -> TunedWeights:
    """Accept weights, once: returns the record that counts, which is the first of this model and revision."""
    key = f"finetuned/{weights.model}/{weights.revision}.json"
    return WriteOnce(bucket, key, TunedWeights).create(weights)


def follow(bucket: Bucket, weights: TunedWeights) -> None:
    """From now on rebuilds of the model take these weights."""
    _current(bucket, weights.model).move(lambda known: known.model_copy(update={"followed": weights}))


def settle(bucket: Bucket, weights: TunedWeights, *, passed: bool) -> None:
    """A release with these weights was promoted, or its gates refused it: then the proven ones are taken again.

    Newer ones may have come meanwhile, and then stay.
    """

    def change(known: CurrentWeights) -> CurrentWeights:
        if passed:
            older = known.proven is None or known.proven.accepted < weights.accepted
            return known.model_copy(update={"proven": weights}) if older else known
        ours = known.followed is not None and known.followed.revision == weights.revision
        return known.model_copy(update={"followed": known.proven}) if ours else known

    _current(bucket, weights.model).move(change)


def with_newest(bucket: Bucket, model: Model) -> tuple[Model, TunedWeights | None]:
    """The model with the newest weights that an event brought, and their record; or as its file says, and None."""
    found = _weights(bucket, model).followed
    changed = None if found is None else _changed(model, found)
    return (model, None) if changed is None else (changed, found)


def newer_ones(bucket: Bucket, model: Model, taken: TunedWeights | None) -> TunedWeights | None:
    """The weights of an event that a release was promoted with since a rebuild took `taken`, or those of the file."""
    proven = _weights(bucket, model).proven
    if proven is None or _changed(model, proven) is None or (taken and proven.accepted <= taken.accepted):
        return None
    return proven


def _weights(bucket: Bucket, model: Model) -> CurrentWeights:
    """A model that takes no events needs no look at the store."""
    takes_events = model.accepts or isinstance(tuned(model), HubUri)
    return _current(bucket, model.name).read()[0] if takes_events else CurrentWeights()


def _changed(model: Model, found: TunedWeights) -> Model | None:
    """The model of the file with these weights; None where the file has been changed, and they count no more."""
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
