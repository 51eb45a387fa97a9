"""A target read once, against a real S3 server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest

from infra.errors import UsageError
from infra.s3.bucket import Bucket, StoredObject
from tasks.targets.current import Current
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target

MODEL = "tiny"


class Counting(Bucket):
    """A bucket that counts how often each object is read."""

    reads: ClassVar[Counter[str]] = Counter()

    def get(self, key: str) -> StoredObject | None:
        self.reads[key] += 1
        return super().get(key)


REPOSITORY = f"repository/{'0' * 64}"


def intent(number: int, repository: str = REPOSITORY, digest: str = "d") -> Intent:
    return Intent(model=MODEL, release=number, repository=repository, digest=digest, recipe={}, source="s", flow_run="")


@pytest.fixture
def target(bucket: Bucket) -> Target:
    """Releases 1 (old), 2 (public), 3 (refused), 4 (passed), 5 (no result), 6 (of other bytes); 3 to 6 are loaded."""
    made = Target(bucket, "test")
    for number in range(1, 7):
        made.reserve(MODEL, lambda number: intent(number, digest="other" if number == 6 else "d"))
    for number in (1, 2, 4):
        made.conclude(MODEL, Result(release=number, state="passed"))
    made.conclude(MODEL, Result(release=3, state="refused"))
    made.move(MODEL, lambda _: Current(public=2, previous=1, candidates=(3, 4, 5, 6)))
    made.report(
        NodeReport(
            node="one", target="test", http="", grpc="", triton_pid=1, memory_total_bytes=1, memory_available_bytes=1
        )
    )
    return made


def test_each_record_is_read_once(target: Target) -> None:
    Counting.reads.clear()
    view = replace(target, bucket=Counting(target.bucket.name, target.bucket.prefix, target.bucket.endpoint)).view(
        MODEL
    )
    assert set(Counting.reads.values()) == {1}
    assert {key for key in Counting.reads if key.endswith("intent.json")} == {
        f"targets/test/{MODEL}/{number}/intent.json" for number in (2, 3, 4, 5, 6)
    }
    assert (view.current, view.etag) == target.current(MODEL)
    assert list(view.ages) == [1, 2, 3, 4, 5, 6] and all(0 <= age < 300 for age in view.ages.values())
    assert view.intents == {number: target.intent(MODEL, number) for number in (2, 3, 4, 5, 6)}
    assert {number: result.state for number, result in view.results.items()} == {
        2: "passed",
        3: "refused",
        4: "passed",
    }
    assert view.live == target.live(MODEL) == target.intent(MODEL, 2)
    assert list(view.nodes) == target.nodes() != []
    assert replace(target, node_lifetime_s=-1.0).view(MODEL).nodes == ()


def test_what_another_run_began_and_what_nobody_works_on(target: Target) -> None:
    view = target.view(MODEL)
    assert view.unfinished(REPOSITORY, "d") == 5
    target.conclude(MODEL, Result(release=5, state="refused"))
    assert target.view(MODEL).unfinished(REPOSITORY, "d") == 4  # passed, and its run died before the promotion
    target.move(MODEL, lambda current: current.promoted(4))
    assert target.view(MODEL).unfinished(REPOSITORY, "d") is None
    assert target.view(MODEL).unfinished(REPOSITORY, "other") == 6
    assert view.unfinished(REPOSITORY, "d") == 5  # a view stays as it was read

    assert view.without_result == (5, 6)
    assert target.view(MODEL).without_result == (6,)


def test_a_model_that_was_never_released(bucket: Bucket) -> None:
    view = Target(bucket, "test").view(MODEL)
    assert (view.current, view.etag, view.live) == (Current(), None, None)
    assert (view.ages, view.intents, view.results, view.nodes) == ({}, {}, {}, ())
    assert view.unfinished(REPOSITORY, "d") is None and view.without_result == ()


def test_a_public_release_without_a_record_is_an_error(bucket: Bucket) -> None:
    target = Target(bucket, "test")
    target.move(MODEL, lambda _: Current(public=7))
    with pytest.raises(UsageError) as caught:
        target.view(MODEL)
    assert caught.value.code == "release-missing"
