"""Runs requests on any engine: each on threads of its own, so the engine batches them as it likes.

Every request is answered exactly once: by its last row, its first failure, its deadline, its client's cancellation
or the end of the server, whichever comes first. What comes later is dropped.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Literal, Protocol

from .contract import Answer, GenerationRequest, RequestRefused
from .engine import MAX_RUNNING, Engine, EngineFailed, EngineUnavailable, Generation

WATCH_INTERVAL_S = 0.05
"""How late a deadline or a cancellation may be noticed."""

GOING_DOWN = "the server is going down"

FailureCode = Literal["invalid", "unavailable", "cancelled", "internal"]


class Reply(Protocol):
    """The way back to one client."""

    def send(self, answers: Sequence[Answer], *, final: bool) -> None:
        """One response, an answer a row."""
        ...

    def finish(self) -> None:
        """The end after streamed pieces."""
        ...

    def fail(self, code: FailureCode, message: str) -> None:
        """An error, which is also the end."""
        ...

    def is_cancelled(self) -> bool: ...


class Runner:
    """All requests of one model. `timeout_s` is the time from arrival to the end of the answer, waiting included."""

    def __init__(self, engine: Engine, timeout_s: float) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    def submit(self, requests: Sequence[GenerationRequest], reply: Reply) -> None:
        """Start a request of one or several rows and return at once; `reply` hears the rest."""
        job = Job(requests, reply, self._timeout_s)
        with self._lock:
            running = len(self._threads)
            if self._closed.is_set():
                refusal = GOING_DOWN
            elif running + len(requests) > MAX_RUNNING:
                refusal = f"{running} requests are running or waiting; at most {MAX_RUNNING} may"
            else:
                self._jobs.add(job)
                for row in range(len(requests)):
                    thread = threading.Thread(target=self._run, args=(job, row), daemon=True)
                    self._threads.add(thread)
                    thread.start()
                return
        job.fail("unavailable", refusal)

    def close(self) -> None:
        """Fail what still runs, wait for its threads, then free the engine."""
        with self._lock:
            self._closed.set()
            jobs, threads = set(self._jobs), set(self._threads)
        for job in jobs:
            job.fail("unavailable", GOING_DOWN)
        for thread in (*threads, self._watcher):
            thread.join()
        self._engine.close()

    def _run(self, job: Job, row: int) -> None:
        try:
            job.run_row(row, self._engine)
        except RequestRefused as error:
            job.fail("invalid", str(error))
        except EngineUnavailable as error:
            job.fail("unavailable", f"{error}; ask again")
        except EngineFailed as error:
            job.fail("internal", str(error))
        except Exception as error:
            # A fault of this code must not leave a client waiting; its trace goes to the server's log.
            job.fail("internal", f"{type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                if job.done:
                    self._jobs.discard(job)

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_INTERVAL_S):
            self._check_all()

    def _check_all(self) -> None:
        # A function of its own, so that no variable keeps the last job: a reply that is still referred to keeps
        # Triton from unloading the model.
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.check()


class Job:
    """One client's request. Its lock keeps the responses in order and lets only one of them be the last."""

    def __init__(self, requests: Sequence[GenerationRequest], reply: Reply, timeout_s: float) -> None:
        self.done = False
        self._requests = requests
        self._reply = reply
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._lock = threading.RLock()
        self._generations: list[Generation] = []
        self._rows: dict[int, Answer] = {}

    def run_row(self, row: int, engine: Engine) -> None:
        """Generate one row to its end: stream its pieces, or keep them for the one answer of all rows."""
        request = self._requests[row]
        generation = engine.start(request)
        with self._lock:
            self._generations.append(generation)
            if self.done:
                generation.cancel()
        answers = _answers(request, generation)
        if request.stream:
            for answer in answers:
                self._send(answer)
            self._end(self._reply.finish)
        else:
            self._row_done(row, list(answers))

    def check(self) -> None:
        """Fail a request whose client is gone or whose time is up."""
        with self._lock:
            if self.done:
                return
            if self._reply.is_cancelled():
                self.fail("cancelled", "the client cancelled the request")
            elif time.monotonic() > self._deadline:
                self.fail("unavailable", f"not answered within the deadline of {self._timeout_s:g} s")

    def fail(self, code: FailureCode, message: str) -> None:
        self._end(lambda: self._reply.fail(code, message))

    def _send(self, piece: Answer) -> None:
        with self._lock:
            if not self.done:
                self._reply.send([piece], final=False)

    def _row_done(self, row: int, pieces: Sequence[Answer]) -> None:
        text = "".join(piece.text for piece in pieces)
        log_probs = tuple(chain.from_iterable(piece.log_probs for piece in pieces))
        with self._lock:
            self._rows[row] = Answer(text, log_probs, pieces[-1].cum_log_prob)
            if len(self._rows) == len(self._requests):
                answers = [self._rows[index] for index in range(len(self._requests))]
                self._end(lambda: self._reply.send(answers, final=True))

    def _end(self, last: Callable[[], None]) -> None:
        with self._lock:
            if self.done:
                return
            self.done = True
            try:
                last()
            finally:
                for generation in self._generations:
                    generation.cancel()


def _answers(request: GenerationRequest, generation: Generation) -> Iterator[Answer]:
    """What the client gets of one row: at least one piece, the first with the prompt where it is wanted."""
    before = "" if request.exclude_input_in_output else request.text_input
    cum_log_prob, empty = 0.0, True
    for piece in generation:
        if piece.text:
            cum_log_prob += math.fsum(piece.log_probs)
            yield Answer(before + piece.text, piece.log_probs, cum_log_prob)
            before, empty = "", False
    if empty:
        yield Answer(before)
