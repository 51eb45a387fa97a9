"""Bodies of requests over HTTP: bounded in size, in time, and all together in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from infra.errors import GatewayError

BODY_SECONDS = 30.0
MEMORY_BYTES = 512 << 20
"""Of all bodies that are being read or answered. Each takes about three times its size until it is sent on."""


class Bodies:
    """Reads bodies of at most `largest` bytes, and holds at most `memory` bytes of them."""

    def __init__(self, largest: int, *, memory: int = MEMORY_BYTES, patience_s: float = BODY_SECONDS) -> None:
        self._largest = largest
        self._left = max(memory, largest)
        self._patience_s = patience_s

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncGenerator[bytes]:
        """The body, which counts as held until the block ends.

        Raises GatewayError, code `body-large`, `body-slow`, `body-encoded`, `bodies-limit` or `client-left`.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise GatewayError("the body is compressed", hint="send it as it is", code="body-encoded")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._largest:
            raise self._large()
        held = 0
        try:
            body = bytearray()
            try:
                async with asyncio.timeout(self._patience_s):
                    async for chunk in request.stream():
                        held += len(chunk)
                        self._left -= len(chunk)
                        if held > self._largest:
                            raise self._large()
                        if self._left < 0:
                            raise GatewayError(
                                "too many large requests are here", code="bodies-limit", retryable=True, retry_after_s=1
                            )
                        body += chunk
            except TimeoutError as error:
                raise GatewayError(f"the body did not come within {self._patience_s:g} s", code="body-slow") from error
            except ClientDisconnect as error:
                raise GatewayError("the client left", code="client-left") from error
            yield bytes(body)
        finally:
            self._left += held

    def _large(self) -> GatewayError:
        return GatewayError(
            f"the body has more than {self._largest} bytes", hint="ENGINEHOUSE_GATEWAY_BODY_BYTES", code="body-large"
        )
