"""Prefect's API by HTTP alone, for commands that only read: importing Prefect takes longer than all the rest."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import httpx2
from pydantic import ValidationError

from deployments.cli.prefect_calls import IS_IT_UP, prefect_failed
from infra.errors import SettingsError

_LET_IN = (401, 403)


def client(api_url: str, patience_s: float) -> httpx2.Client:
    """A client of the API at `api_url`, with the credential of this process. It waits `patience_s` for an answer."""
    login, key = os.environ.get("PREFECT_API_AUTH_STRING", ""), os.environ.get("PREFECT_API_KEY", "")
    user, _, password = login.partition(":")
    return httpx2.Client(
        base_url=api_url.rstrip("/"),
        timeout=patience_s,
        auth=(user, password) if login else None,
        headers={"Authorization": f"Bearer {key}"} if key and not login else {},
    )


@contextmanager
def as_our_errors() -> Generator[None]:
    """Raise what calls of the block end with as SettingsError `prefect-failed`."""
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise failure(error) from error
    except ValidationError as error:
        raise prefect_failed("answers as no Prefect 3 does", hint=IS_IT_UP) from error


def failure(error: httpx2.HTTPError | httpx2.InvalidURL) -> SettingsError:
    """The error `prefect-failed` for what a call has ended with; retryable unless the server does not let us in."""
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        if status in _LET_IN:
            return prefect_failed(
                f"does not let you in: it answers {status}",
                hint="set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY of Prefect Cloud; `enginehouse env` prints that "
                "of the embedded one",
            )
        return prefect_failed(f"answers {status}", hint=IS_IT_UP, retryable=status >= 500)
    why = str(error) or type(error).__name__
    return prefect_failed(f"does not answer: {why}", hint=IS_IT_UP, retryable=isinstance(error, httpx2.TransportError))
