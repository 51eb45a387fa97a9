"""What a fine-tuning event may say, and what it makes of a model.

Events come from outside: from training scripts, webhooks and people. One names a model of the catalogue, its new
weights and options of its recipe, and no more. New weights are another revision of the model's own hub repository, or
a source that its file lists under `accepts`; never a file or a package of the machine that rebuilds. What the file
trusts was read in its own revision, and does not reach to another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from infra.errors import EventRefused, SourceError, SpecError
from infra.frozen import Spec, problems
from tasks.models.overrides import override
from tasks.models.source_uri import HubUri, SourceUri, parse_source
from tasks.models.spec import Model, Name, Text
from tasks.sources.trust import accepted

EVENT = "enginehouse.finetuned"
"""Name of the event in Prefect. Its resource is `enginehouse.model.NAME`, its payload an `Event`."""

_LARGEST = 16 * 1024  # characters as JSON; a real one has a few hundred


class Event(Spec):
    """New weights of one model: `source`, or a `revision` of the model's own repository."""

    model: Name
    source: Text | None = None
    revision: Text | None = None
    recipe: dict[str, str | int] = Field(default_factory=dict[str, "str | int"], max_length=32)
    """Fields of the recipe to override, as with `enginehouse rebuild --recipe`."""
    sender: str = Field(default="", max_length=40, pattern=r"^[a-z]*$")
    """Who says so, for people: `command`, `huggingface`, …"""

    @model_validator(mode="after")
    def _names_weights(self) -> Self:
        if (self.source is None) == (self.revision is None):
            raise ValueError("name the new weights by one of source and revision")
        return self

    @property
    def options(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.recipe.items()}


def read_event(said: Mapping[str, JsonValue]) -> Event:
    """The event in a payload. Raises EventRefused `event-malformed` that names every field that is wrong."""
    if len(json.dumps(said)) > _LARGEST:
        raise EventRefused(f"an event has at most {_LARGEST} characters", hint=_FORM)
    try:
        return Event.model_validate(said)
    except ValidationError as error:
        raise EventRefused(f"not a fine-tuning event: {problems(error)}", hint=_FORM) from error


def changed_by(event: Event, models: Mapping[str, Model]) -> tuple[Model, str]:
    """The model of the catalogue with the event's options, and the address of its new weights.

    Raises EventRefused: `event-model` where there is none, `event-source` for weights that it does not take,
    `event-recipe` for options that it does not have.
    """
    model = models.get(event.model)
    if model is None:
        raise EventRefused(f"there is no model '{event.model}' in the catalogue", code="event-model")
    uri = _source(event, model)
    try:
        if "kind" in event.options:
            raise SpecError("an event changes no model's kind", hint="write the recipe into the model's file")
        chosen = override(model, recipe=event.options).model
    except SpecError as error:
        raise EventRefused(error.message, hint=error.hint, code="event-recipe") from error
    return chosen, uri


def pinned_source(uri: str, pin: Mapping[str, JsonValue]) -> str:
    """The address of what was resolved: a hub's branch may move, its commit does not."""
    parsed = parse_source(uri)
    return str(HubUri(parsed.repository, str(pin["commit"]))) if isinstance(parsed, HubUri) else uri


def _source(event: Event, model: Model) -> str:
    own = tuned(model)
    try:
        if event.source is not None:
            wanted = parse_source(event.source)
        elif isinstance(own, HubUri):
            wanted = parse_source(f"hf://{own.repository}@{event.revision}")
        else:
            raise EventRefused(
                f"{model.name} comes from {own.scheme}://, which has no revisions",
                hint="name a `source` that the model's file accepts",
                code="event-source",
            )
    except SourceError as error:
        raise EventRefused(error.message, hint=error.hint, code="event-source") from error
    if isinstance(wanted, HubUri) and isinstance(own, HubUri) and wanted.repository == own.repository:
        return str(wanted)
    if not accepted(model, str(wanted)):
        raise EventRefused(
            f"{model.name} takes no weights from {wanted}",
            hint=f"its file lists others under `accepts:` ({', '.join(model.accepts) or 'none'})",
            code="event-source",
        )
    return str(wanted)


def tuned(model: Model) -> SourceUri:
    """Of the weights in the model's file those that fine-tuning brings anew: the adapter of a model that has one."""
    return parse_source(model.adapter or model.source.uri)


_FORM = (
    'An event is {"model": NAME, "source": "hf://org/repo@revision" or "s3://bucket/prefix"}, '
    'or {"model": NAME, "revision": …}; both may have "recipe": {"FIELD": "VALUE"}.'
)
