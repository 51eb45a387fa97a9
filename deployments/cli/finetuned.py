"""`enginehouse finetuned`: announce new weights, by the same event that anybody may send to Prefect's API."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx
from prefect.exceptions import PrefectHTTPStatusError

from deployments.prefect_server.announce import send
from infra.errors import SettingsError
from infra.settings import Settings
from tasks.finetuned.event import changed_by, read_event
from tasks.models.catalogue import load_catalogue


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
