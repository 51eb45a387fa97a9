"""Compare-and-swap of one record, against a real S3 server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from pydantic import Field

from infra.errors import ArtifactDamaged, PreconditionFailed, StoreContended
from infra.s3.bucket import Bucket
from tasks.store.cell import Cell, WriteOnce
from tasks.store.record import Record

KEY = "counts.json"


class Counts(Record):
    """How often each writer counted. Later versions may add fields."""

    newest: ClassVar[int] = 2
    by: dict[str, int] = Field(default_factory=dict[str, int])
    note: str = ""


def counted(name: str, number: int) -> Callable[[Counts], Counts]:
    """A change that records the `number`-th count of `name`, once, however often it is applied."""
    return lambda old: old.model_copy(update={"by": {**old.by, name: max(number, old.by.get(name, 0))}})


class Contended(Bucket):
    """A bucket in which another writer is quicker, every time."""

    writes: ClassVar[list[str]] = []

    def swap(self, key: str, body: bytes, etag: str | None) -> str:
        self.writes.append(key)
        self.put(key, b'{"note": "of write %d"}' % len(self.writes))
        return super().swap(key, body, etag)


class Refusing(Bucket):
    """A bucket that refuses every conditional write, with or without an object: S3's answer 409."""

    def create(self, key: str, body: bytes) -> str:
        raise PreconditionFailed("409")


class LosesAnswers(Bucket):
    """A bucket whose client repeats each conditional write, as it does where the first answer was lost."""

    def create(self, key: str, body: bytes) -> str:
        super().create(key, body)
        return super().create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> str:
        super().replace(key, body, etag)
        return super().replace(key, body, etag)


def as_a(kind: type[Bucket], bucket: Bucket) -> Bucket:
    return kind(bucket.name, bucket.prefix, bucket.endpoint)


def test_without_an_object_a_cell_has_its_default(bucket: Bucket) -> None:
    cell = Cell(bucket, KEY, Counts(note="default"))
    assert cell.read() == (Counts(note="default"), None)
    assert cell.move(lambda old: old) == Counts(note="default")
    assert bucket.get(KEY) is None  # nothing changed, and nothing was written
    assert cell.move(counted("a", 1)) == Counts(by={"a": 1}, note="default")
    stored = bucket.get(KEY)
    assert stored is not None and cell.read() == (Counts(by={"a": 1}, note="default"), stored.etag)


def test_writers_beside_each_other_lose_no_update(bucket: Bucket) -> None:
    def count(name: str) -> None:
        for number in range(1, 11):
            Cell(bucket, KEY, Counts()).move(counted(name, number))

    threads = [threading.Thread(target=count, args=(name,)) for name in ("a", "b")]
    seen: list[dict[str, int]] = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(Cell(bucket, KEY, Counts()).read()[0].by)
    assert Cell(bucket, KEY, Counts()).read()[0].by == {"a": 10, "b": 10}
    # No reader ever saw a count that was lower than one seen before.
    for name in ("a", "b"):
        numbers = [by.get(name, 0) for by in seen]
        assert numbers == sorted(numbers)


def test_contention_that_does_not_end_is_an_error(bucket: Bucket) -> None:
    contended = as_a(Contended, bucket)
    Contended.writes.clear()
    with pytest.raises(StoreContended) as caught:
        Cell(contended, KEY, Counts()).move(counted("a", 1), tries=3)
    assert caught.value.code == "store-contended" and caught.value.retryable
    assert Contended.writes == [KEY] * 3
    assert Cell(bucket, KEY, Counts()).read()[0] == Counts(note="of write 3")
    with pytest.raises(StoreContended):
        WriteOnce(as_a(Refusing, bucket), "other.json", Counts).create(Counts(), tries=3)


def test_a_write_whose_answer_was_lost_is_done(bucket: Bucket) -> None:
    losing, calls = as_a(LosesAnswers, bucket), list[Counts]()

    def change(old: Counts) -> Counts:
        calls.append(old)
        return old.model_copy(update={"note": f"after {len(calls)} calls"})

    cell = Cell(losing, KEY, Counts())
    assert cell.move(change).note == "after 1 calls"  # created
    assert cell.move(change).note == "after 2 calls"  # replaced
    assert cell.read()[0].note == "after 2 calls" and len(calls) == 2
    first = Counts(note="first")
    assert WriteOnce(losing, "once.json", Counts).create(first) == first


def test_the_first_record_counts(bucket: Bucket) -> None:
    once = WriteOnce(bucket, "once.json", Counts)
    assert once.read() is None
    records = [Counts(note=f"of {number}") for number in range(4)]
    with ThreadPoolExecutor(len(records)) as pool:
        results = list(pool.map(once.create, records))
    first = once.read()
    assert first in records and results == [first] * 4


def test_what_is_no_such_record_is_an_error_that_names_its_key(bucket: Bucket) -> None:
    bucket.put(KEY, b'{"by": {"a": "twice"}}')
    cell = Cell(bucket, KEY, Counts())
    for read in (cell.read, cell.aged, WriteOnce(bucket, KEY, Counts).read, lambda: cell.move(counted("a", 1))):
        with pytest.raises(ArtifactDamaged) as caught:
            read()
        assert caught.value.code == "record-invalid" and KEY in caught.value.message and "by.a" in caught.value.message
        assert "twice" not in caught.value.message and caught.value.hint and not caught.value.retryable


def test_the_age_of_a_record_is_that_of_its_last_change(bucket: Bucket) -> None:
    cell = Cell(bucket, KEY, Counts(note="default"))
    assert cell.aged() == (Counts(note="default"), 0.0)
    cell.move(counted("a", 1))
    record, age = cell.aged()
    assert record.by == {"a": 1} and 0 <= age < 60
