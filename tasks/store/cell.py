"""One JSON record at a key of the store. A `Cell` changes by compare-and-swap, a `WriteOnce` never does.

What lies there and is no such record is an error that names the key: ArtifactDamaged, code `record-invalid`. Both are
bounded: under contention that does not end they raise StoreContended, which is retryable.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from infra.errors import ArtifactDamaged, PreconditionFailed, StoreContended
from infra.frozen import problems
from infra.s3.bucket import Bucket
from tasks.store.record import Record, record_bytes

TRIES = 16
"""Conditional writes before giving up. Of any number of writers one succeeds each time; with the pauses between them,
sixteen losses in a row mean a server that refuses every write, or a loop somewhere."""
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.5

RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True)
class Cell(Generic[RecordT]):
    """A record that several writers change. `default` is its value while the key has no object."""

    bucket: Bucket
    key: str
    default: RecordT

    def read(self) -> tuple[RecordT, str | None]:
        """The record and its ETag; the default and None if the key has no object."""
        stored = self.bucket.get(self.key)
        return (self.default, None) if stored is None else (self._parsed(stored.body), stored.etag)

    def aged(self) -> tuple[RecordT, float]:
        """The record, and for how many seconds it has been as it is, by the store's clock: 0 for the default."""
        stored = self.bucket.get(self.key)
        return (self.default, 0.0) if stored is None else (self._parsed(stored.body), stored.age)

    def _parsed(self, body: bytes) -> RecordT:
        return _parsed(type(self.default), self.key, body)

    def move(self, change: Callable[[RecordT], RecordT], *, tries: int = TRIES) -> RecordT:
        """Apply `change` until no other writer came between our read and our write; returns the record as it is then.

        `change` may be called several times, so it only computes. Given a record that already has the change, it must
        return it as it is: the answer to our write may get lost, and another writer may have written on top of it.
        Raises StoreContended after `tries` writes that lost their race.
        """
        for _ in attempts(tries):
            old, etag = self.read()
            new = change(old)
            if new == old or written(self.bucket, self.key, record_bytes(new), etag):
                return new
        raise contended(self.key)


@dataclass(frozen=True)
class WriteOnce(Generic[RecordT]):
    """A record that is created once; the first one counts, whoever writes it."""

    bucket: Bucket
    key: str
    type: type[RecordT]

    def read(self) -> RecordT | None:
        """The record; None if the key has no object."""
        stored = self.bucket.get(self.key)
        return None if stored is None else _parsed(self.type, self.key, stored.body)

    def create(self, record: RecordT, *, tries: int = TRIES) -> RecordT:
        """Write `record` unless there is one; returns the one that counts. It equals `record` if that was written.

        Raises StoreContended where the server refuses every write and has no record either.
        """
        for _ in attempts(tries):
            try:
                self.bucket.create(self.key, record_bytes(record))
                return record
            except PreconditionFailed:
                # S3 also answers 409 while another request deletes or writes the key: then there may be none yet.
                if (first := self.read()) is not None:
                    return first
        raise contended(self.key)


def _parsed(kind: type[RecordT], key: str, body: bytes) -> RecordT:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise ArtifactDamaged(
            f"'{key}' is no such record as Enginehouse writes there: {problems(error)}",
            hint="find out who wrote it; `enginehouse schema` prints what the records of the store look like",
            code="record-invalid",
        ) from error


def written(bucket: Bucket, key: str, body: bytes, etag: str | None) -> bool:
    """Write `body` if the key still has `etag`, or has no object (None). Returns False if somebody else was quicker.

    The client repeats a request whose answer was lost, and the server refuses the second one. So a refused write is
    compared with what the key has now: if that is `body`, ours was written.
    """
    try:
        bucket.swap(key, body, etag)
    except PreconditionFailed:
        stored = bucket.get(key)
        return stored is not None and stored.body == body
    return True


def attempts(count: int = TRIES) -> Iterator[int]:
    """Count from 0 to `count`, with a pause before each but the first: random, so that rivals part."""
    for number in range(count):
        if number:
            time.sleep(random.uniform(0, min(_FIRST_PAUSE_SECONDS * 2**number, _LONGEST_PAUSE_SECONDS)))
        yield number


def contended(key: str) -> StoreContended:
    """The error to raise once all `attempts` have lost."""
    return StoreContended(
        f"every write of '{key}' lost its race against another writer",
        hint="try again; if it goes on, find out who writes this key all the time",
    )
