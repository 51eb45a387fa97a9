"""Answering while a client is there and takes what is sent to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from infra.errors import GatewayError

SEND_SECONDS = 30.0
"""How long a client may take nothing of an answer that is there; then it counts as gone."""
_LOOKS = 4
"""How often that is looked at in this time."""


class Sending:
    """What is being sent to one client. A timer for each message would take a seventh of the gateway's CPU."""

    def __init__(self) -> None:
        self._since: float | None = None

    def begin(self) -> None:
        self._since = time.monotonic()

    def end(self) -> None:
        self._since = None

    async def watch(self, answer: Coroutine[Any, Any, None], *leaving: asyncio.Future[None]) -> None:
        """Answer; end as soon as one of `leaving` is done, or the client takes nothing.

        Raises GatewayError, code `client-left`, then, and what the answer raises.
        """
        answering = asyncio.ensure_future(answer)
        try:
            while not answering.done():
                waited = (answering, *leaving)
                await asyncio.wait(waited, timeout=SEND_SECONDS / _LOOKS, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    break
                if any(each.done() for each in leaving):
                    raise GatewayError("the client left", code="client-left")
                if self._since is not None and time.monotonic() - self._since >= SEND_SECONDS:
                    raise GatewayError("the client takes nothing", code="client-left")
            answering.result()
        finally:
            for task in (answering, *leaving):
                task.cancel()
            await asyncio.gather(answering, *leaving, return_exceptions=True)
