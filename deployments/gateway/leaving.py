"""Calls to a node that nobody waits for any more, as Triton can bear it.

If a call is cancelled while Triton 2.51 writes its last response, it waits for ever for a response that has been, and
never unloads the model (`HandleCancellation` in its `src/grpc/infer_handler.h`). So a request is ended by its id.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable
from typing import Any, cast

from deployments.gateway.messages import EMPTY_FINAL, StreamResponse, infer_request
from infra.errors import TritonError
from tasks.serving.cancellation import CANCELLATION_ID

aio: Any = importlib.import_module("grpc.aio")

_SECONDS = 10.0
"""How long a model gets to end a request that is cancelled by its id. Then its call is cancelled."""
_AGAIN_SECONDS = 0.1


class Reader:
    """Reads a call's messages. Who stops waiting for one cancels nothing; `read` of the call itself would."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._reading: asyncio.Future[Any] | None = None

    async def read(self, until: float | None = None) -> StreamResponse | None:
        """The next message, None after the last one. Raises AioRpcError, and TritonError, code `deadline`."""
        if (reading := self._reading) is None:
            reading = self._reading = asyncio.ensure_future(self.call.read())
            reading.add_done_callback(_hear)
        await asyncio.wait((reading,), timeout=None if until is None else until - time.monotonic())
        if not reading.done():
            raise TritonError("the answer did not come in time", code="deadline")
        self._reading = None
        message = reading.result()
        return None if message is aio.EOF else cast(StreamResponse, message)

    async def drain(self) -> None:
        """Let the call end by itself."""
        try:
            while await self.read() is not None:
                pass
        except aio.AioRpcError:
            pass
        except asyncio.CancelledError:
            if not self.call.cancelled():
                raise  # not the call is, but who waits for its end


def _hear(reading: asyncio.Future[Any]) -> None:
    """Of the failure of what nobody waits for any more asyncio would write a line into the log."""
    if not reading.cancelled():
        reading.exception()


async def cancel(infer: Callable[..., Any], model: str, id: str, reader: Reader) -> None:
    """Have the model end the request of that id, which `reader` reads. `infer` begins a call to its node.

    It is asked again until it has: of several processes of a model each hears of some requests alone.
    """
    request = infer_request()
    request.model_name = model
    request.inputs.add(name=CANCELLATION_ID, datatype="BYTES", shape=(1, 1))
    request.raw_input_contents.append(len(id).to_bytes(4, "little") + id.encode())
    request.parameters[EMPTY_FINAL].bool_param = True
    draining = asyncio.ensure_future(reader.drain())
    until = time.monotonic() + _SECONDS
    try:
        while not draining.done() and time.monotonic() < until:
            await Reader(infer(request, timeout=_SECONDS)).drain()
            await asyncio.wait((draining,), timeout=_AGAIN_SECONDS)
    finally:
        reader.call.cancel()
        await draining
