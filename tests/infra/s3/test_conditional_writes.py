"""Servers that take a condition and write all the same: found out, refused, or written to by one machine alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import PreconditionFailed, SettingsError, StoreError, StoreUnavailable
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from tasks.targets.target import Target
from tests.unconditional_server import unconditional

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Without = Callable[..., Bucket]


@pytest.fixture
def without(bucket: Bucket, s3: S3Client) -> Iterator[Without]:
    """The bucket behind a server that ignores some headers, or answers each of them with `status`."""
    with ExitStack() as stack:

        def start(*headers: str, status: int = 200, quoted: bool = False) -> Bucket:
            url = stack.enter_context(unconditional(bucket.endpoint, s3, *headers, status=status, quoted=quoted))
            return dataclasses.replace(bucket, endpoint=url)

        yield start


def test_a_server_that_honours_them_is_taken_and_one_object_stays(bucket: Bucket) -> None:
    for _ in range(2):
        require_conditional_writes(bucket)
        require_conditional_writes.cache_clear()
    assert [entry.size for entry in bucket.list("")] == [1]


@pytest.mark.parametrize("status", [200, 501], ids=["ignored", "unknown"])
@pytest.mark.parametrize(
    "headers",
    [("If-None-Match",), ("If-Match",), ("If-None-Match", "If-Match")],
    ids=["create", "replace", "both"],
)
def test_a_server_that_does_not_is_refused_by_name(without: Without, headers: tuple[str, ...], status: int) -> None:
    with pytest.raises(StoreError) as refused:
        require_conditional_writes(without(*headers, status=status))
    assert refused.value.code == "store-unconditional" and not refused.value.retryable
    for header in ("If-None-Match", "If-Match"):
        assert (header in refused.value.message) == (header in headers)
    assert "ENGINEHOUSE_STORE_ONE_WRITER" in refused.value.hint


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_server_that_refuses_a_condition_that_holds_is_refused_by_name(without: Without, header: str) -> None:
    with pytest.raises(StoreError) as refused:
        require_conditional_writes(without(header, status=412))
    assert refused.value.code == "store-unconditional" and not refused.value.retryable
    assert header in refused.value.message


def test_a_server_that_wants_bare_etags_gets_them(without: Without) -> None:
    """Ceph 16, DigitalOcean's Spaces."""
    bucket = without("If-Match", status=412, quoted=True)
    require_conditional_writes(bucket)
    first = bucket.create("key", b"1")
    second = bucket.replace("key", b"2", first)
    for key in ("key", "missing"):
        with pytest.raises(PreconditionFailed):
            bucket.replace(key, b"3", first)
    stored = bucket.get("key")
    assert stored is not None and (stored.body, stored.etag) == (b"2", second)


def test_an_object_that_is_gone_has_no_etag(bucket: Bucket, without: Without) -> None:
    for server in (bucket, without("If-Match", status=404)):  # Amazon answers 404
        with pytest.raises(PreconditionFailed):
            server.replace("missing", b"1", "0" * 32)


def test_a_move_behind_a_server_that_refuses_every_if_match_ends_by_name(without: Without) -> None:
    target = Target(without("If-Match", status=412), "test")
    target.move("tiny", lambda current: current.with_candidate(1))  # no object yet
    with pytest.raises(StoreError) as refused:
        target.move("tiny", lambda current: current.promoted(1))
    assert refused.value.code == "store-unconditional"


def test_who_may_only_write_what_is_tried_is_no_fault_of_the_server(bucket: Bucket) -> None:
    class WriteOnly(Bucket):
        def get(self, key: str) -> None:
            raise StoreError("403", code="store-denied")

    for _ in range(2):
        require_conditional_writes(WriteOnly(bucket.name, bucket.prefix, bucket.endpoint))
        require_conditional_writes.cache_clear()


def test_a_store_that_is_away_is_not_taken_for_one(bucket: Bucket) -> None:
    with pytest.raises(StoreUnavailable):
        require_conditional_writes(dataclasses.replace(bucket, endpoint="http://127.0.0.1:9"))


def test_the_writers_of_one_machine_look_before_they_write(without: Without, tmp_path: Path) -> None:
    server = without("If-None-Match", "If-Match")
    bucket = dataclasses.replace(server, one_writer=str(tmp_path / "home" / "store.lock"))
    require_conditional_writes(bucket)
    outcomes: list[str] = []

    def race(write: Callable[[bytes], str], number: int) -> None:
        try:
            outcomes.append(write(b"%d" % number))
        except PreconditionFailed:
            outcomes.append("")

    def winners(write: Callable[[bytes], str]) -> list[str]:
        outcomes.clear()
        threads = [threading.Thread(target=race, args=(write, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 6
        return [etag for etag in outcomes if etag]

    (first,) = winners(lambda body: bucket.create("key", b"created by " + body))
    (second,) = winners(lambda body: bucket.replace("key", b"replaced by " + body, first))
    record = bucket.get("key")
    assert record is not None and record.etag == second
    with pytest.raises(PreconditionFailed):
        bucket.replace("nothing", b"", first)


def test_the_lock_has_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_STORE_ONE_WRITER", "/var/lock/store")
    assert Bucket.at("s3://b").one_writer == "/var/lock/store"
    monkeypatch.setenv("ENGINEHOUSE_STORE_ONE_WRITER", "store.lock")
    with pytest.raises(SettingsError) as caught:
        Bucket.at("s3://b")
    assert caught.value.code == "settings" and "ENGINEHOUSE_STORE_ONE_WRITER" in caught.value.message
