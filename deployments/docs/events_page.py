"""Reference of the events: the one that brings new weights, and what the Prefect server does by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from pydantic import JsonValue

from deployments.docs.markdown import code, in_table, table
from deployments.docs.texts import below_fields
from deployments.prefect_server.desired import Ended, Received, Silent, Troubled, desired
from infra.settings import Settings
from tasks.finetuned.event import EVENT, LARGEST_CHARACTERS, Event

_HEAD = f"""\
# Events

`{EVENT}` says that a model has new weights ([New weights](../how-to/new-weights.md)). Its resource is
`enginehouse.model.NAME`, its payload an object of at most {LARGEST_CHARACTERS:,} characters. `enginehouse finetuned`
and the receiver of webhooks send it; `POST /generic` of the receiver takes the payload as its body.
"""


def events_page() -> Iterator[str]:
    """The lines of the page."""
    yield from _HEAD.splitlines()
    yield ""
    yield from table(("field", "needed", "meaning"), _fields())
    wanted = desired(replace(Settings(), notify="TYPE/NAME"), ())
    yield from ("## What the server does by itself", "", "`enginehouse deploy` makes these automations.", "")
    rows = [(code(each.name), in_table(_when(each.when)), in_table(each.description)) for each in wanted.automations]
    yield from table(("automation", "when", "what"), rows)
    yield from ("## What runs by a schedule", "", "Times are UTC; a [setting](settings.md) changes each.", "")
    timed = [(code(each.full_name), code(each.schedule)) for each in wanted.deployments if each.schedule]
    yield from table(("deployment", "cron"), timed)


def _fields() -> Iterator[tuple[str, str, str]]:
    required = cast("list[JsonValue]", Event.model_json_schema().get("required", []))
    words = {"model": "The model's name in the catalogue.", "source": "Where the new weights are."} | {
        "revision": "In place of `source`: another revision of the model's own repository."
    }
    words |= below_fields(Event)
    for name in Event.model_fields:
        yield code(name), "yes" if name in required else "", in_table(words[name])


def _when(trigger: Ended | Received | Silent | Troubled) -> str:
    match trigger:
        case Ended(of, states, tag):
            return f"a run of `{of}` is {' or '.join(states)}" + (f", with the tag `{tag}`" if tag else "")
        case Received(event):
            return f"the event `{event}` comes"
        case Silent(_, seconds):
            return f"a run has sent no heartbeat for {seconds} s"
        case Troubled():
            return "a run has failed, crashed or was refused, or has left a release to a person"
