"""An engine in this process, asked on one event loop, as a runner asks it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from typing import TypeVar

from tasks.serving.contract import GenerationRequest
from tasks.serving.engine import Engine, Piece

ResultT = TypeVar("ResultT")


class Asked:
    """One running request: its pieces as they come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine, request: GenerationRequest) -> None:
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._loop = loop
        self._task: Future[None] = asyncio.run_coroutine_threadsafe(self._read(engine.generate(request)), loop)

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._pieces.get(timeout=60)) is not None:
            yield piece
        if not self._task.cancelled():
            self._task.result(60)

    def cancel(self) -> None:
        self._task.cancel()

    async def _read(self, pieces: AsyncGenerator[Piece]) -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self._pieces.put(piece)
        finally:
            self._pieces.put(None)


class Loop:
    """An event loop on a thread of its own, and engines on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def ask(self, engine: Engine, request: GenerationRequest) -> Asked:
        return Asked(self._loop, engine, request)

    def call(self, work: Callable[[], ResultT]) -> ResultT:
        """Its result, from the thread of the loop."""

        async def called() -> ResultT:
            return work()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(60)

    def close(self, *engines: Engine) -> None:
        for engine in engines:
            asyncio.run_coroutine_threadsafe(engine.close(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
