"""Asking a Prefect server without its client, which would bring the caller's profile and settings."""

from __future__ import annotations

import time
from typing import Any

import httpx


def ask(api_url: str, method: str, path: str, body: object = None) -> Any:
    """What the API answers, as JSON. Raises httpx.HTTPStatusError."""
    until = time.monotonic() + 30
    while True:
        answer = httpx.request(method, api_url + path, json=body, timeout=30)
        # SQLite is locked for a moment now and then; Prefect's own clients ask again too.
        if answer.status_code != 503 or time.monotonic() > until:
            answer.raise_for_status()
            return answer.json() if answer.content else None
        time.sleep(0.2)
