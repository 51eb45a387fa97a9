"""Calls of Prefect's API and runs of flows, whose failures are errors of our own tree: two lines and a hint."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from deployments.cli.command import run
from infra.errors import SettingsError

_T = TypeVar("_T")

_FROM_PREFECT = ("Failed to reach API", "Found incompatible versions")
"""How the RuntimeErrors begin with which Prefect's client ends a flow before its first line."""


def require_prefect(*, busy: bool = True) -> None:
    """Raise SettingsError `prefect-failed` if no server answers within seconds. Imports no Prefect.

    A flow asks again and again before it gives up, and fails with a hundred lines. That is right for a server that is
    `busy`, unless somebody cannot wait.
    """
    from deployments.prefect_server.reach import trouble

    url = os.environ.get("PREFECT_API_URL", "")
    if url and (found := trouble(url)) and not (busy and found.busy):
        raise prefect_failed(f"does not answer: {found.why}", hint=IS_IT_UP)


IS_IT_UP = (
    "is it up, and is PREFECT_API_URL right? `enginehouse up` starts the embedded one; `enginehouse doctor` looks"
)


def prefect_failed(what: str, *, hint: str, retryable: bool = False) -> SettingsError:
    return SettingsError(
        f"the Prefect server at {os.environ['PREFECT_API_URL']} {what}",
        hint=hint,
        code="prefect-failed",
        retryable=retryable,
    )


def ask_prefect(call: Coroutine[Any, Any, _T], failed: str, *, hint: str) -> _T:
    """Run a call of Prefect's API. Raises SettingsError `prefect-failed` if the server does not answer or refuses."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        return run(call)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise prefect_failed(f"{failed}: {error}", hint=hint) from error


def run_flow(flow: Coroutine[Any, Any, _T]) -> _T:
    """Run a flow in this process. Raises SettingsError `prefect-failed` if the server does not keep its run."""
    try:
        return ask_prefect(
            flow, "did not keep the run", hint="is it up, and does it let you in (PREFECT_API_AUTH_STRING)?"
        )
    except RuntimeError as error:
        if not str(error).startswith(_FROM_PREFECT):
            raise
        why = str(error.__cause__ or error).partition("\n")[0]
        raise prefect_failed(f"did not begin the run: {why}", hint=IS_IT_UP) from error
