"""Prefect's API as the checks ask it: over HTTP with the credential of this machine, and without importing Prefect."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from deployments.prefect_server.reach import PATIENCE_S, trouble
from infra.errors import SettingsError, UsageError

_T = TypeVar("_T")


@dataclass(frozen=True)
class PrefectApi:
    client: httpx2.Client

    def ask(self, form: TypeAdapter[_T], method: str, path: str, body: Mapping[str, object] | None = None) -> _T:
        """What the API answers. Raises SettingsError `prefect-denied` or `prefect-failed`."""
        try:
            answer = self.client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise _failed(f"did not answer {path}: {error}") from error
        if answer.status_code in (401, 403):
            raise SettingsError(
                f"the Prefect server at {self.client.base_url} lets nobody in with this credential",
                hint='eval "$(enginehouse env)" for the embedded stack; elsewhere export PREFECT_API_AUTH_STRING, or '
                "PREFECT_API_KEY for Prefect Cloud",
                code="prefect-denied",
            )
        if answer.status_code != 200:
            raise _failed(f"answers {answer.status_code} to {path}")
        try:
            return form.validate_json(answer.content)
        except ValidationError as error:
            raise _failed(f"answers {path} with something else than Prefect 3 does") from error


@contextmanager
def prefect_api() -> Generator[PrefectApi]:
    """The server that PREFECT_API_URL names. Raises UsageError `prefect-missing`, SettingsError `prefect-failed`."""
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        raise UsageError(
            "no Prefect server is known", hint="enginehouse up, or export PREFECT_API_URL", code="prefect-missing"
        )
    if found := trouble(url):
        raise _failed(f"does not answer: {found.why}")
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    key = os.environ.get("PREFECT_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key and not user else {}
    with httpx2.Client(
        base_url=url, timeout=PATIENCE_S, headers=headers, auth=(user, password) if user else None
    ) as client:
        yield PrefectApi(client)


def _failed(what: str) -> SettingsError:
    url = os.environ["PREFECT_API_URL"]
    return SettingsError(
        f"the Prefect server at {url} {what}",
        hint="enginehouse up starts the embedded one; elsewhere start it, or correct PREFECT_API_URL",
        code="prefect-failed",
    )
