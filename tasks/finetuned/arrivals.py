"""Events as they arrive, and what was decided on them.

events/ID.json                   the payload, the decision and its reason; created once, then decided once
finetuned/MODEL/sequence.json    the number of the last event that arrived for the model; moved with If-Match

An event's number is its place in the order of arrival. It is drawn before the event's record is created, and no clock
has a part in it. An event that was never kept, because its run died in between, leaves a gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from infra.errors import EnginehouseError, EventRefused, FormatNewer
from infra.s3.bucket import Bucket
from tasks.finetuned.event import LARGEST_CHARACTERS
from tasks.finetuned.plain_json import require_plain
from tasks.models.spec import Name
from tasks.store.cell import Cell, WriteOnce, written
from tasks.store.record import Record, record_bytes

_EVENTS = "events/"
_KEPT_CHARACTERS = LARGEST_CHARACTERS // 4
_LOOKED_BACK_SECONDS = 7 * 86400
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class Arrival(Record):
    """An event and what was decided on it. Its state is `received` until then."""

    id: str
    said: dict[str, JsonValue]
    """The payload; of one that cannot be kept as it is, or is too large, its beginning as `text`."""
    order: int = 0
    """Its number among the events of its model, from 1; 0 if it names no model, or came before there were numbers."""
    received: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """By the clock of who received it, for people."""
    state: Literal["received", "accepted", "duplicate", "refused"] = "received"
    code: str = ""
    """Code of the error that refused it."""
    reason: str = ""
    pinned: str = ""
    """The address of the weights that it brings, as far as its scheme has revisions. Set with `revision`."""
    model: str = ""
    revision: str = ""
    """The weights that its source had when it was first looked at: it brings these, whatever the source has later."""
    flow_run: str = ""
    """The rebuild that it started."""


class Sequence(Record):
    """The last number that was drawn, and for which event: two events that draw at once must write different bytes."""

    last: int = 0
    event: str = ""


def arrive(bucket: Bucket, id: str, payload: Mapping[str, JsonValue]) -> Arrival:
    """Record an event before anything is decided on it. An event of this id that is known already stays as it is."""
    if (known := read_arrival(bucket, id)) is not None:
        return known
    arrival = Arrival(id=id, said=_kept(payload), order=_drawn(bucket, id, payload.get("model")))
    return _once(bucket, id).create(arrival)


def read_arrival(bucket: Bucket, id: str, say: Callable[[str], None] = lambda line: None) -> Arrival | None:
    """The record of an event; None if there is none.

    A record that cannot be read is set aside: `say` is told once, and from then on it reads as a refused event that
    says what was found. Raises FormatNewer.
    """
    stored = bucket.get(_key(id))
    if stored is None:
        return None
    try:
        return Arrival.model_validate_json(stored.body)
    except ValidationError:
        text = stored.body.decode(errors="replace")[:LARGEST_CHARACTERS]
        error = EventRefused("its record could not be read", code="event-unreadable")
        aside = refused(Arrival(id=id, said={"text": text}), error)
        if not written(bucket, _key(id), record_bytes(aside), stored.etag):
            return read_arrival(bucket, id, say)
        say(f"event {id} is set aside: {error.message}")
        return aside


def decide(bucket: Bucket, arrival: Arrival) -> Arrival:
    """Write what was decided, unless somebody has decided before; returns the decision that counts."""

    def change(known: Arrival) -> Arrival:
        pinned = {"pinned": known.pinned, "revision": known.revision or arrival.revision}
        return arrival.model_copy(update=pinned) if known.state == "received" else known

    return _record(bucket, arrival).move(change)


def pin(bucket: Bucket, arrival: Arrival, source: str, revision: str) -> Arrival:
    """Note which weights an event brings, once; returns the record that counts."""

    def change(known: Arrival) -> Arrival:
        if known.state != "received" or known.revision:
            return known
        return known.model_copy(update={"pinned": source, "revision": revision})

    return _record(bucket, arrival).move(change)


def refused(arrival: Arrival, error: EnginehouseError) -> Arrival:
    """The record of an event that was refused with `error`."""
    return arrival.model_copy(update={"state": "refused", "code": error.code, "reason": error.message})


def undecided(
    bucket: Bucket, older_than_seconds: float, say: Callable[[str], None] = lambda line: None
) -> Iterator[Arrival]:
    """Events without a decision that came so long ago, by the store's clock, in the order in which they arrived.

    Reads every event of the last 7 days. `say` is told of those that cannot be read; they stop no other.
    """
    found: list[Arrival] = []
    for entry in bucket.list(_EVENTS):
        if not older_than_seconds <= entry.age <= _LOOKED_BACK_SECONDS:
            continue
        id = entry.key.removeprefix(_EVENTS).removesuffix(".json")
        try:
            arrival = read_arrival(bucket, id, say)
        except FormatNewer as error:  # whoever wrote it will decide on it
            say(f"event {id} is left alone: {error}")
            continue
        if arrival is not None and arrival.state == "received":
            found.append(arrival)
    yield from sorted(found, key=lambda arrival: (arrival.order, arrival.received))


def _kept(payload: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The payload as its record holds it. One that will be refused anyway is kept as text."""
    try:
        require_plain(payload)
        if len(text := json.dumps(payload)) <= LARGEST_CHARACTERS:
            return dict(payload)
    except EventRefused as error:
        try:
            text = json.dumps(payload)
        except (RecursionError, ValueError):
            text = error.message
    return {"text": text[:_KEPT_CHARACTERS]}


def _drawn(bucket: Bucket, id: str, model: object) -> int:
    """The number of an event. Only names of models get one: what names none will be refused."""
    try:
        name = _NAME.validate_python(model)
    except ValidationError:
        return 0

    def change(known: Sequence) -> Sequence:
        return known if known.event == id else Sequence(last=known.last + 1, event=id)

    return sequence(bucket, name).move(change).last


def sequence(bucket: Bucket, model: str) -> Cell[Sequence]:
    """The numbers of the events of a model."""
    return Cell(bucket, f"finetuned/{model}/sequence.json", Sequence())


def _once(bucket: Bucket, id: str) -> WriteOnce[Arrival]:
    return WriteOnce(bucket, _key(id), Arrival)


def _record(bucket: Bucket, arrival: Arrival) -> Cell[Arrival]:
    return Cell(bucket, _key(arrival.id), arrival)


def _key(id: str) -> str:
    return f"{_EVENTS}{id}.json"
