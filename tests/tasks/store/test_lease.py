"""Leases against a real S3 server: one artifact is made once, whoever dies, sleeps or is not heard meanwhile."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import PreconditionFailed, SettingsError, StoreError, StoreUnavailable
from infra.s3.bucket import Bucket, StoredObject
from infra.settings import CHECKOUT
from tasks.garbage.collect import collect, survey
from tasks.garbage.keep import pin
from tasks.store.artifact import Artifact
from tasks.store.artifact_store import ArtifactStore
from tasks.store.lease import Watch, discard, held, holder_of
from tasks.store.verify import problems_in_store
from tests.tasks.store.artifact_maker import REF

LEASE_SECONDS = 2.0

Start = Callable[..., "Maker"]


class Maker:
    """A process of `artifact_maker` that stands ready."""

    def __init__(self, store: Bucket, folder: Path, work_seconds: float, *flags: str) -> None:
        uri = f"s3://{store.name}/{store.prefix}"
        arguments = [uri, str(folder), str(LEASE_SECONDS), str(work_seconds), *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.tasks.store.artifact_maker", *arguments],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._worked = folder.with_name(f"{folder.name}.worked")

    @property
    def worked(self) -> bool:
        return self._worked.exists()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_stopped(self) -> None:
        until = time.monotonic() + 30
        while psutil.Process(self.process.pid).status() != psutil.STATUS_STOPPED:
            assert self.process.poll() is None and time.monotonic() < until
            time.sleep(0.05)

    def result(self) -> dict[str, Any]:
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return json.loads(output.splitlines()[-1])


@pytest.fixture
def start(bucket: Bucket, tmp_path: Path) -> Iterator[Start]:
    """Starts makers, each with a folder of its own, and ends them with the test."""
    makers: list[Maker] = []

    def start_one(work_seconds: float, *flags: str) -> Maker:
        maker = Maker(bucket, tmp_path / f"maker-{len(makers)}", work_seconds, *flags)
        makers.append(maker)
        return maker

    yield start_one
    for maker in makers:
        maker.process.kill()
        maker.process.communicate()


def intact(bucket: Bucket) -> Artifact:
    """The artifact in the store, of which every byte was read."""
    artifact = ArtifactStore(bucket).need(REF)
    assert problems_in_store(bucket, artifact) == []
    return artifact


def attempts(bucket: Bucket) -> set[str]:
    names = {entry.key.removeprefix(REF.folder).split("/")[0] for entry in bucket.list(REF.folder)}
    return names - {"manifest.json", "signatures", "damaged"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_of_eight_three_are_killed_and_the_others_share_one_artifact(seed: int, start: Start, bucket: Bucket) -> None:
    chance = random.Random(seed)
    makers = [start(1.0) for _ in range(8)]
    for maker in makers:
        assert maker.line() == "ready"
    began = time.monotonic()
    for maker in makers:
        maker.go()
    victims = chance.sample(makers, 3)
    for moment, victim in zip(sorted(chance.uniform(0, 4) for _ in victims), victims, strict=True):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        victim.process.kill()
    results = [maker.result() for maker in makers if maker not in victims]
    artifact = intact(bucket)
    assert {result["attempt"] for result in results} == {artifact.manifest.attempt}
    completed = [result for result in results if not result["cached"]]
    # Whoever was killed at the end of its work, before it committed, had its work done once more.
    worked = [maker for maker in makers if maker.worked]
    assert len(completed) <= 1
    assert len([maker for maker in worked if maker not in victims]) == len(completed)
    print(
        f"seed {seed}: 8 asked, 3 killed, {len(results)} of 5 got it in {time.monotonic() - began:.1f} s; "
        f"work completed {len(worked)} times, committed once, torn 0"
    )


@pytest.mark.slow
@pytest.mark.parametrize("refresh", [False, True], ids=["first", "refresh"])
@pytest.mark.parametrize("wakes", [True, False], ids=["wakes", "dies"])
def test_a_stopped_holder_does_not_commit_over_its_successor(
    refresh: bool,
    wakes: bool,
    start: Start,
    bucket: Bucket,
) -> None:
    flags = ("refresh",) if refresh else ()
    if refresh:
        before = start(0.0)
        before.go()
        before.result()
    slow, successor = start(0.0, "stops", *flags), start(0.0, *flags)
    assert slow.line() == successor.line() == "ready"
    slow.go()
    slow.wait_stopped()
    stopped = time.monotonic()
    successor.go()
    theirs = successor.result()
    assert not theirs["cached"] and time.monotonic() - stopped >= LEASE_SECONDS / 2
    assert len(attempts(bucket)) == (3 if refresh else 2)  # of the slow one lie all files, and no manifest
    if wakes:
        slow.process.send_signal(signal.SIGCONT)
        assert slow.result()["attempt"] == theirs["attempt"]
    else:
        slow.process.kill()
    assert intact(bucket).manifest.attempt == theirs["attempt"]

    pin(bucket, REF)
    collect(bucket, survey(bucket, 0, running_seconds=0, expired_seconds=0), "test", 5)
    assert intact(bucket).manifest.attempt == theirs["attempt"]
    left = {entry.key.removeprefix(REF.folder).split("/")[0] for entry in bucket.list(REF.folder)}
    assert left == {"manifest.json", theirs["attempt"]}


class _LosesAnswers:
    """A bucket whose writes succeed and whose answers get lost. The client repeats the request, or its caller does."""

    def __init__(self, bucket: Bucket, *, sent_again: bool) -> None:
        self._bucket = bucket
        self._sent_again = sent_again
        self.lost = 0

    def impatient(self, seconds: float) -> _LosesAnswers:
        return self

    def get(self, key: str) -> StoredObject | None:
        return self._bucket.get(key)

    def swap(self, key: str, body: bytes, etag: str | None) -> str:
        return self.create(key, body) if etag is None else self.replace(key, body, etag)

    def create(self, key: str, body: bytes) -> str:
        return self._lose(self._bucket.create(key, body))

    def replace(self, key: str, body: bytes, etag: str) -> str:
        return self._lose(self._bucket.replace(key, body, etag))

    def _lose(self, etag: str) -> str:
        self.lost += 1
        if self._sent_again:
            raise PreconditionFailed("our own first write has changed the ETag")
        if self.lost % 2:
            raise StoreUnavailable("the answer was lost")
        return etag


def test_a_holder_knows_its_own_writes_when_answers_are_lost(bucket: Bucket) -> None:
    losing = _LosesAnswers(bucket, sent_again=True)
    watch = Watch(bucket, "x", 0.9)
    began = time.monotonic()
    with held(losing, "x", "alive", 0.9):  # pyright: ignore[reportArgumentType]
        assert time.monotonic() - began < 0.9  # its first write was its own
        while losing.lost < 5:
            assert watch.holder() == "alive"
            time.sleep(0.05)
    assert watch.holder() is None  # released at once


def test_a_renewal_that_may_or_may_not_have_come_through_is_followed_by_the_next(bucket: Bucket) -> None:
    losing = _LosesAnswers(bucket, sent_again=False)
    losing.lost = 1  # the first write is heard
    watch = Watch(bucket, "x", 0.9)
    with held(losing, "x", "alive", 0.9):  # pyright: ignore[reportArgumentType]
        while losing.lost < 6:
            assert watch.holder() == "alive"
            time.sleep(0.05)


def test_a_store_that_was_away_says_nothing_of_the_holder(bucket: Bucket) -> None:
    bucket.create("leases/x.json", b'{"schema": 1, "holder": "alive", "nonce": "1"}')
    watch = Watch(bucket, "x", 0.5)
    assert watch.holder() == "alive"
    watch.bucket = dataclasses.replace(bucket, endpoint="http://127.0.0.1:9")
    time.sleep(0.5)
    with pytest.raises(StoreUnavailable):
        watch.holder()
    watch.bucket = bucket
    assert watch.holder() == "alive"
    time.sleep(0.5)
    assert watch.holder() is None


def test_onlookers_go_by_the_length_that_the_lease_has(bucket: Bucket) -> None:
    hasty = Watch(bucket, "x", 0.2)
    with held(bucket, "x", "alive", 1.5):
        until = time.monotonic() + 1.5
        while time.monotonic() < until:  # it is renewed every 0.5 s
            assert hasty.holder() == "alive"
            time.sleep(0.1)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{}", b'{"seconds": "x"}'])
def test_a_lease_that_nobody_can_read_expires_as_others_do(bucket: Bucket, body: bytes) -> None:
    bucket.put("leases/x.json", body)
    began = time.monotonic()
    with held(bucket, "x", "next", 0.3):
        assert time.monotonic() - began >= 0.3
        assert Watch(bucket, "x", 0.3).holder() == "next"


def test_a_renewal_that_fails_in_any_way_is_followed_by_the_next(bucket: Bucket) -> None:
    class Fails(_LosesAnswers):
        def replace(self, key: str, body: bytes, etag: str) -> str:
            self.lost += 1
            if self.lost % 2:
                raise SettingsError("the credentials could not be renewed")
            return self._bucket.replace(key, body, etag)

    fails = Fails(bucket, sent_again=False)
    fails.lost = 1  # the first write is heard
    watch = Watch(bucket, "x", 0.9)
    with held(fails, "x", "alive", 0.9):  # pyright: ignore[reportArgumentType]
        while fails.lost < 6:
            assert watch.holder() == "alive"
            time.sleep(0.05)


def test_nobody_waits_for_ever_for_a_holder_that_renews(bucket: Bucket) -> None:
    with held(bucket, "x", "hangs", 0.6):
        began = time.monotonic()
        with pytest.raises(StoreError) as caught, held(bucket, "x", "waits", 0.6, wait_seconds=0.8):
            raise AssertionError
    assert caught.value.code == "lease-held" and "'hangs'" in caught.value.message and not caught.value.retryable
    assert 0.8 <= time.monotonic() - began < 10


def test_a_lease_is_discarded_only_while_it_is_what_was_seen(bucket: Bucket) -> None:
    first = bucket.create("leases/x.json", b'{"schema": 1, "holder": "dead", "nonce": "1"}')
    taken = bucket.replace("leases/x.json", b'{"schema": 1, "holder": "alive", "nonce": "2"}', first)
    assert not discard(bucket, "x", first, "collection", 5)
    lease = bucket.get("leases/x.json")
    assert lease is not None and lease.etag == taken
    assert discard(bucket, "x", taken, "collection", 5) and bucket.get("leases/x.json") is None
    assert not discard(bucket, "x", taken, "collection", 5)  # whoever was quicker deleted it


def test_nobody_takes_a_lease_that_is_being_discarded(bucket: Bucket) -> None:
    seen: list[str | None] = []

    class Slow(Bucket):
        def delete(self, key: str) -> None:
            seen.append(Watch(bucket, "x", 5).holder())
            super().delete(key)

    etag = bucket.create("leases/x.json", b'{"schema": 1, "holder": null, "nonce": "1"}')
    assert discard(Slow(bucket.name, bucket.prefix, bucket.endpoint), "x", etag, "collection", 5)
    assert seen == ["collection"]


def test_a_server_that_hangs_keeps_nobody_longer_than_the_lease(bucket: Bucket) -> None:
    class Hangs(_LosesAnswers):
        def replace(self, key: str, body: bytes, etag: str) -> str:
            hanging.set()
            gone_on.wait(30)
            return super().replace(key, body, etag)

    hanging, gone_on = threading.Event(), threading.Event()
    hangs = Hangs(bucket, sent_again=False)
    hangs.lost = 1  # the first write is heard
    began = time.monotonic()
    with held(hangs, "x", "alive", 0.6):  # pyright: ignore[reportArgumentType]
        assert hanging.wait(5)
    assert time.monotonic() - began < 5
    gone_on.set()
    while (lease := bucket.get("leases/x.json")) is None or holder_of(lease.body):  # released when the server goes on
        assert time.monotonic() - began < 20
        time.sleep(0.05)
