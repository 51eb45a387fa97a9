"""Actors that share a store in memory, one request at a time, in an order that a seed decides.

An actor is a function in a thread of its own. Before each request to the store it waits for its turn, so only one runs
at a time, and a seed gives the same order again. At a write it may be killed, before or after the write is done.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from infra.errors import PreconditionFailed
from infra.s3.bucket import Bucket, Entry, StoredObject

T = TypeVar("T")


class Killed(BaseException):
    """The process of an actor is gone. No `except Exception` holds it."""


@dataclass(eq=False)
class Actor:
    """One process. `dies` is the number of the write at which it is killed, negative: just before it is done."""

    name: str
    work: Callable[[], object]
    dies: int | None
    ended: Callable[[Actor], None]
    killed: bool = False
    error: BaseException | None = None
    writes: int = 0
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    thread: threading.Thread | None = None


class Stage:
    """Runs actors. `minute` is the time of the store's clock, which nobody's else agrees with."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.actors: list[Actor] = []
        self.minute = 0
        self._yielded = threading.Semaphore(0)
        self._local = threading.local()

    @property
    def actor(self) -> Actor | None:
        """Who is asking."""
        return getattr(self._local, "actor", None)

    def start(
        self,
        name: str,
        work: Callable[[], object],
        dies: int | None = None,
        ended: Callable[[Actor], None] = lambda actor: None,
    ) -> None:
        actor = Actor(name, work, dies, ended)
        self.actors.append(actor)

        def live() -> None:
            actor.turn.acquire()
            self._local.actor = actor
            try:
                actor.work()
            except Killed:
                actor.killed = True
            except Exception as error:
                actor.error = error
            finally:
                self.actors.remove(actor)
                self._yielded.release()

        actor.thread = threading.Thread(target=live, daemon=True)
        actor.thread.start()

    def step(self) -> None:
        """Let one actor, whichever, go on to its next request."""
        actor = self.random.choice(self.actors)
        self.minute += 1
        actor.turn.release()
        self._yielded.acquire()
        if actor not in self.actors:
            assert actor.thread is not None
            actor.thread.join()
            if actor.error is not None:
                raise actor.error
            actor.ended(actor)

    def wait(self) -> None:
        """Wait for a turn, before a request."""
        if (actor := self.actor) is not None:
            self._yielded.release()
            actor.turn.acquire()

    def write(self, do: Callable[[], T]) -> T:
        """Do a write, or die of it."""
        self.wait()
        if (actor := self.actor) is not None:
            actor.writes += 1
            if actor.dies == -actor.writes:
                raise Killed
        done = do()
        if actor is not None and actor.dies == actor.writes:
            raise Killed
        return done


@dataclass(frozen=True)
class MemoryBucket(Bucket):
    """A store whose requests are the turns of a stage. `noticed` is told of each write that was done."""

    stage: Stage = field(default_factory=lambda: Stage(0))
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict[str, tuple[bytes, int]])
    noticed: Callable[[str, bytes], None] = lambda key, body: None

    def get(self, key: str) -> StoredObject | None:
        self.stage.wait()
        return self._now(key)

    def _now(self, key: str) -> StoredObject | None:
        if key not in self.objects:
            return None
        body, minute = self.objects[key]
        return StoredObject(body, hashlib.md5(body).hexdigest(), 60.0 * (self.stage.minute - minute))

    def put(self, key: str, body: bytes) -> str:
        return self.stage.write(lambda: self._put(key, body))

    def create(self, key: str, body: bytes) -> str:
        return self.stage.write(lambda: self._put_if(key, body, None))

    def replace(self, key: str, body: bytes, etag: str) -> str:
        return self.stage.write(lambda: self._put_if(key, body, etag))

    def _put_if(self, key: str, body: bytes, etag: str | None) -> str:
        stored = self._now(key)
        if (None if stored is None else stored.etag) != etag:
            raise PreconditionFailed(key)
        return self._put(key, body)

    def _put(self, key: str, body: bytes) -> str:
        self.objects[key] = (body, self.stage.minute)
        self.noticed(key, body)
        return hashlib.md5(body).hexdigest()

    def list(self, prefix: str) -> Iterator[Entry]:
        self.stage.wait()
        for key in sorted(self.objects):
            if key.startswith(prefix) and (stored := self._now(key)) is not None:
                yield Entry(key, len(stored.body), stored.etag, stored.age)

    def folders(self, prefix: str) -> list[str]:
        names = (key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))
        return sorted({name.partition("/")[0] for name in names if "/" in name})


def drive(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing but its own calls: no event loop is needed."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("the coroutine waits for something")
