"""What a fine-tuning event may name, and what it makes of a model.

Events come from outside: from training scripts, webhooks and people. An event names a model of the catalogue, its new
weights and fields of its recipe, and no more. New weights are another revision of the model's own hub repository, or a
source that its file lists under `accepts`. They are never a file or a package of the machine that rebuilds. The file's
`trust` was granted after reading its own revision, so it does not extend to new weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from infra.errors import EventRefused, SourceError, SpecError
from infra.frozen import Spec, problems
from infra.traces.propagation import is_traceparent
from tasks.finetuned.plain_json import require_plain
from tasks.models.overrides import override
from tasks.models.source_uri import HubUri, ModelsUri, NgcUri, SourceUri, is_revision_of, parse_source, revised
from tasks.models.spec import Model, Name, Text
from tasks.sources.accepts import accepted

EVENT = "enginehouse.finetuned"
"""Name of the event in Prefect. Its resource is `enginehouse.model.NAME`, its payload an `Event`."""

LARGEST_CHARACTERS = 16 * 1024
"""Of a payload as JSON. A real one has a few hundred."""

_COMMIT = re.compile(r"(?P<repository>hf://[^@]+)@(?P<commit>[0-9a-f]{40})")


def _traceparent(text: str) -> str:
    if not is_traceparent(text):
        raise ValueError("a traceparent is 00-TRACE-SPAN-FLAGS, in hexadecimal")
    return text


class Event(Spec):
    """New weights of one model: `source`, or a `revision` of the model's own repository."""

    model: Name
    source: Text | None = None
    revision: Text | None = None
    recipe: dict[str, str | int] = Field(default_factory=dict[str, "str | int"], max_length=32)
    """Fields of the recipe to override, as with `enginehouse rebuild --recipe`."""
    branch: Text | None = None
    """The branch that the commit in `source` was pushed to. Once it is not the branch's head, the event is too late."""
    alias: Text | None = None
    """The alias that the version in `source` was given. Once another version has it, the event is too late."""
    series: Text | None = None
    """What numbers its weights by itself, such as a registered model of MLflow; with `version`."""
    version: int | None = Field(default=None, ge=1, le=2**53)
    """The number of these weights. They never take the place of a higher one of the same series."""
    sender: str = Field(default="", max_length=40, pattern=r"^[a-z]*$")
    """Who sent the event, for people: `command`, `huggingface`, …"""
    traceparent: Annotated[str, AfterValidator(_traceparent)] | None = None
    """Where the sender is in a trace, as W3C writes that. The rebuild goes on with it."""

    @model_validator(mode="after")
    def _names_weights(self) -> Self:
        if (self.source is None) == (self.revision is None):
            raise ValueError("name the new weights by one of source and revision")
        if (self.series is None) != (self.version is None):
            raise ValueError("series and version belong together")
        if self.branch is not None and self._commit is None:
            raise ValueError("branch belongs to a source hf://org/repo@COMMIT")
        if self.alias is not None and self._version is None:
            raise ValueError("alias belongs to a source models:/NAME/VERSION")
        return self

    @property
    def _commit(self) -> re.Match[str] | None:
        return _COMMIT.fullmatch(self.source or "")

    @property
    def _version(self) -> ModelsUri | None:
        try:
            uri = parse_source(self.source or "")
        except SourceError:
            return None
        return uri if isinstance(uri, ModelsUri) and uri.version else None

    @property
    def moved(self) -> str | None:
        """The address of the branch or alias that `source` was put under; None for an event that says of none.

        An earlier receiver passed only pushes to `main` on, and did not name the branch.
        """
        if self.alias is not None and self._version is not None:
            return str(replace(self._version, version="", alias=self.alias))
        branch = self.branch or ("main" if self.sender == "huggingface" else None)
        if branch is None or self._commit is None:
            return None
        return f"{self._commit['repository']}@{branch}"

    @property
    def options(self) -> dict[str, str]:
        """The fields of the recipe as text, which `override` takes."""
        return {name: str(value) for name, value in self.recipe.items()}


def read_event(payload: Mapping[str, JsonValue]) -> Event:
    """The event of a payload. Raises EventRefused `event-malformed`, which names every wrong field."""
    require_plain(payload)
    if len(json.dumps(payload)) > LARGEST_CHARACTERS:
        raise EventRefused(f"an event has at most {LARGEST_CHARACTERS} characters", hint=_FORM)
    try:
        return Event.model_validate(payload)
    except ValidationError as error:
        raise EventRefused(f"not a fine-tuning event: {problems(error)}", hint=_FORM) from error


def changed_by(event: Event, models: Mapping[str, Model]) -> tuple[Model, str]:
    """The model of the catalogue with the event's options, and the address of its new weights.

    Raises EventRefused: `event-model` if the catalogue has no such model, `event-source` if the model does not take
    these weights, `event-recipe` if its recipe does not take these options.
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
    """The address of a source with its pin: a branch of the hub may move, its commit does not."""
    match parse_source(uri):
        case HubUri() as parsed:
            revision = "/".join(str(pin[part]) for part in ("commit", "folder") if part in pin)
            return str(replace(parsed, revision=revision))
        case NgcUri() as parsed:
            return str(replace(parsed, version=str(pin["version"])))
        case ModelsUri():
            return str(pin["address"])
        case _:
            return uri


def _source(event: Event, model: Model) -> str:
    own = tuned(model)
    try:
        wanted = revised(own, event.revision or "") if event.source is None else parse_source(event.source)
        if wanted is None:
            raise EventRefused(
                f"the weights of {model.name} come from {own.scheme}://, which has no revisions",
                hint="name a `source` that the model's file accepts",
                code="event-source",
            )
    except SourceError as error:
        raise EventRefused(error.message, hint=error.hint, code="event-source") from error
    if is_revision_of(wanted, own):
        return str(wanted)
    if not accepted(model, str(wanted)):
        raise EventRefused(
            f"{model.name} does not accept weights from {wanted}",
            hint=f"its file lists what it accepts under `accepts:` ({', '.join(model.accepts) or 'nothing yet'})",
            code="event-source",
        )
    return str(wanted)


def tuned(model: Model) -> SourceUri:
    """The part of a model's weights that fine-tuning changes: its adapter, or its source if it has no adapter."""
    return parse_source(model.adapter or model.source.uri)


_FORM = (
    'An event is {"model": NAME, "source": "hf://org/repo@revision" or "s3://bucket/prefix"}, '
    'or {"model": NAME, "revision": …}; both may have "recipe": {"FIELD": "VALUE"}.'
)
