"""Runs requests on any engine, all on one event loop beside Triton's own thread: the engine batches as it likes.

Every request is answered exactly once: by its last row, its first failure, its deadline, its client's cancellation
or the end of the server, whichever comes first.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol

from .contract import Answer, GenerationRequest, PromptTooLong, RequestRefused
from .engine import MAX_RUNNING, Engine, EngineFailed, EngineUnavailable
from .failures import FailureCode
from .figures import Figures, Row
from .pace import Pace

WATCH_INTERVAL_S = 0.5
WATCH_SHARE = 0.04
_LOOK_S = 0.0004
"""How late it may be noticed that a client has left: a look at every request that runs, for about so many seconds each,
may take that share of the loop's time. Up to fifty requests are looked at twice a second, 256 every 2.6 s."""

GOING_DOWN = "the server is going down"


class Reply(Protocol):
    """The way back to one client."""

    def send(self, answers: Sequence[Answer], *, final: bool) -> None:
        """One response, an answer a row."""
        ...

    def fail(self, code: FailureCode, message: str) -> None:
        """An error, which is also the end."""
        ...

    def is_cancelled(self) -> bool: ...


@dataclass
class _Job:
    """A request that runs; without a `key` nobody cancels it by one. `why` is what its client hears if it is."""

    reply: Reply
    key: str | None
    why: tuple[FailureCode, str] = ("cancelled", "the client cancelled the request")


class Runner:
    """All requests of one model. `timeout_s` is the time from arrival to the end of the answer, waiting included."""

    def __init__(self, engine: Engine, timeout_s: float) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._jobs: dict[asyncio.Task[None], _Job] = {}
        self._pace = Pace()
        self._rows = 0
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="runner", daemon=True)
        self._thread.start()
        self._watcher = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def submit(
        self,
        requests: Sequence[GenerationRequest],
        reply: Reply,
        figures: Figures | None = None,
        key: str | None = None,
    ) -> None:
        """Start a request of one or several rows, from any thread, and return at once; `reply` hears the rest.

        `figures` are those that count it, always the same ones, or none. By its `key` it can be cancelled.
        """
        counted = figures or Figures()
        try:
            self._loop.call_soon_threadsafe(self.start, requests, reply, counted, key, time.monotonic())
        except RuntimeError:  # the loop is closed
            self._refuse(requests, reply, counted, GOING_DOWN)

    def call(self, work: Callable[..., object], *arguments: object) -> None:
        """Do something on the event loop, from any thread; nothing once it is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work, *arguments)

    def wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something on the event loop, from another thread, until it is done."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def cancel(self, key: str) -> None:
        """End the request of that key, on the event loop, where it still runs: its client has left."""
        self._cancel(lambda job: job.key == key)

    def fail(self, key: str | None, code: FailureCode, message: str) -> None:
        """End it by an error; without a key all that run."""
        for job in self._jobs.values():
            if key is None or job.key == key:
                job.why = code, message
        self._cancel(lambda job: key is None or job.key == key)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Fail what still runs, then free the engine, and do what is the `last`. Again it does nothing."""
        if self._loop.is_closed():
            return
        self.wait_for(self._close())
        if last is not None:
            self.wait_for(last())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(
        self,
        requests: Sequence[GenerationRequest],
        reply: Reply,
        figures: Figures,
        key: str | None,
        arrived: float | None = None,
    ) -> None:
        """What `submit` does, on the event loop. `arrived` is when the request did, by the monotonic clock: now."""
        if self._closed:
            self._refuse(requests, reply, figures, GOING_DOWN)
        elif self._rows + len(requests) > MAX_RUNNING:
            message = f"{self._rows} requests are running or waiting; at most {MAX_RUNNING} may"
            self._refuse(requests, reply, figures, message)
        else:
            self._rows += len(requests)
            rows = [figures.row(arrived or time.monotonic()) for _ in requests]
            job = _Job(reply, key)
            task = self._loop.create_task(self._run(requests, job, rows))
            self._jobs[task] = job
            task.add_done_callback(partial(self._ended, rows))

    def _refuse(self, requests: Sequence[GenerationRequest], reply: Reply, figures: Figures, message: str) -> None:
        for _ in requests:
            figures.refused("unavailable")
        reply.fail("unavailable", message)

    def _ended(self, rows: Sequence[Row], task: asyncio.Task[None]) -> None:
        job = self._jobs.pop(task)
        self._rows -= len(rows)
        if task.cancelled():  # before it ran, so it never did
            self._fail(rows, job.reply, *self._why_cancelled(job))

    async def _run(self, requests: Sequence[GenerationRequest], job: _Job, rows: Sequence[Row]) -> None:
        fail = partial(self._fail, rows, job.reply)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._answer(requests, job.reply, rows)
        except PromptTooLong as error:
            fail("context-length", str(error))
        except RequestRefused as error:
            fail("invalid", str(error))
        except EngineUnavailable as error:
            fail("unavailable", f"{error}; ask again")
        except EngineFailed as error:
            fail("internal", str(error))
        except TimeoutError:
            fail("deadline", f"not answered within the deadline of {self._timeout_s:g} s")
        except asyncio.CancelledError:
            fail(*self._why_cancelled(job))
        except Exception as error:
            # A fault of this code must not leave a client waiting; its trace goes to the server's log.
            fail("internal", f"{type(error).__name__}: {error}")
            traceback.print_exc()

    def _fail(self, rows: Sequence[Row], reply: Reply, code: FailureCode, message: str) -> None:
        for row in rows:
            row.end(code)
        reply.fail(code, message)

    def _why_cancelled(self, job: _Job) -> tuple[FailureCode, str]:
        return ("unavailable", GOING_DOWN) if self._closed else job.why

    async def _answer(self, requests: Sequence[GenerationRequest], reply: Reply, rows: Sequence[Row]) -> None:
        if requests[0].stream:
            async with aclosing(self._answers(requests[0], rows[0])) as answers:
                with self._pace.stream() as stream:
                    async for answer in answers:
                        final = answer.finish_reason is not None
                        with stream.response():
                            reply.send([answer], final=final)
                        if not final:
                            await stream.rest()
        else:
            whole = [self._whole(request, row) for request, row in zip(requests, rows, strict=True)]
            reply.send(await _together(whole), final=True)

    async def _whole(self, request: GenerationRequest, row: Row) -> Answer:
        async with aclosing(self._answers(request, row)) as answers:
            pieces = [piece async for piece in answers]
        before = "" if request.exclude_input_in_output else request.text_input
        return Answer(
            before + "".join(piece.text for piece in pieces),
            tuple(chain.from_iterable(piece.log_probs for piece in pieces)),
            pieces[-1].cum_log_prob,
            pieces[-1].input_tokens,
            sum(piece.output_tokens for piece in pieces),
            pieces[-1].finish_reason,
        )

    async def _answers(self, request: GenerationRequest, row: Row) -> AsyncGenerator[Answer]:
        cum_log_prob = 0.0
        async with aclosing(self._engine.generate(request)) as pieces:
            async for piece in pieces:
                row.came(piece, streams=request.stream)
                cum_log_prob += math.fsum(piece.log_probs)
                yield Answer(
                    piece.text,
                    piece.log_probs,
                    cum_log_prob,
                    piece.input_tokens,
                    piece.output_tokens,
                    piece.finish_reason,
                )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(max(WATCH_INTERVAL_S, len(self._jobs) * _LOOK_S / WATCH_SHARE))
            self._cancel(lambda job: job.reply.is_cancelled())

    def _cancel(self, is_meant: Callable[[_Job], bool]) -> None:
        """Each once: a second time would end what frees the engine."""
        for task in [task for task, job in self._jobs.items() if is_meant(job)]:
            if not task.cancelling():
                task.cancel()

    async def _close(self) -> None:
        self._closed = True
        self._watcher.cancel()
        running = list(self._jobs)
        self._cancel(lambda job: True)
        await asyncio.gather(*running, return_exceptions=True)
        await self._engine.close()


async def _together(rows: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """The answers of all rows, or the first failure, once all the others have ended too."""
    tasks = [asyncio.ensure_future(row) for row in rows]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
