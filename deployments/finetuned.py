"""`enginehouse finetuned`: announce new weights, by the same event that anybody may send to Prefect's API."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from infra.errors import SettingsError
from infra.settings import Settings
from tasks.catalogue import load_catalogue
from tasks.events import EVENT, Event, changed_by, read_event


def run_finetuned(
    here: Settings, model: str, source: str | None, revision: str | None, recipe: Mapping[str, str], *, as_json: bool
) -> int:
    """Check and send. Returns the exit code. Raises EventRefused for what the model's file does not accept."""
    said: dict[str, Any] = {
        "model": model,
        "source": source,
        "revision": revision,
        "recipe": dict(recipe),
        "sender": "command",
    }
    event = read_event({name: value for name, value in said.items() if value is not None})
    _, uri = changed_by(event, load_catalogue(here.catalogue))
    id = uuid4()
    try:
        asyncio.run(send(id, event))
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise SettingsError(
            f"the Prefect server at {os.environ['PREFECT_API_URL']} did not take the event: {error}",
            hint="is it up, and does it let you in (PREFECT_API_AUTH_STRING)?",
            code="prefect-failed",
        ) from error
    if as_json:
        print(json.dumps({"event": str(id), "model": model, "source": uri}))
    else:
        print(f"{model}: new weights from {uri}, announced as event {id}")
        print("what becomes of it: the run `finetuned` in the Prefect UI", file=sys.stderr)
    return 0


async def send(id: UUID, event: Event) -> None:
    """Give an event to Prefect, whose automation starts the flow `finetuned`. Raises the client's own errors."""
    async with get_client() as client:
        await client.request("POST", "/events", json=[document(id, event)])


def document(id: UUID, event: Event) -> dict[str, Any]:
    """An event as `POST /api/events` takes it."""
    return {
        "id": str(id),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"enginehouse.model.{event.model}"},
        "payload": event.model_dump(mode="json", exclude_none=True),
    }
