"""Three events, in any order and at once, late, again, beside `reconcile`, with deaths between any two writes.

`ENGINEHOUSE_TEST_SEED=N` plays those from seed N on. A failure names its seed.
"""

from __future__ import annotations

import os

import pytest

from flows import finetuned
from flows import rebuild as rebuild_flow
from infra.errors import EventRefused
from tasks.steps.retire import retire
from tasks.targets.target import Target
from tests.flows.house_of_records import House, Kind, Sent, furnish
from tests.flows.interleaved import drive
from tests.flows.newest import Newest


def play(seed: int) -> House:
    """One interleaving, from a model that is live to the time when nothing happens any more."""
    with pytest.MonkeyPatch.context() as patch:
        house = House(seed)
        furnish(house, patch)
        drive(rebuild_flow.rebuild.fn(model="tiny"))
        for number in (1, 2, 3):
            kind: Kind = house.random.choice(("prefix", "push", "version"))
            house.after(house.random.randint(0, 100), lambda kind=kind, number=number: house.send(kind, number))
        for _ in range(house.random.randint(0, 3)):
            house.after(house.random.randint(0, 300), house.reconcile)
        for number in range(house.random.randint(0, 2)):  # of people, or of the release watch
            key = f"asked-{number}"
            house.after(house.random.randint(0, 300), lambda key=key: drive(house.start_rebuild("tiny", key)))
        house.run()
        house.calm = True
        for _ in range(12):
            before = dict(house.bucket.objects), set(house.runs)
            house.reconcile(0)
            house.run()
            if before == (house.bucket.objects, house.runs):
                break
        else:
            raise AssertionError("it never comes to rest")
        try:
            Newest(house).check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        return house


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_the_newest_accepted_weights_are_live_at_the_end(count: int) -> None:
    first = int(os.environ.get("ENGINEHOUSE_TEST_SEED", 0))
    houses = [play(seed) for seed in range(first, first + count)]
    # It was not all peace.
    assert sum(len(house.public) for house in houses) > count
    assert sum(len(house.refused) for house in houses) > count // 4


def test_an_older_commit_that_is_delivered_late_or_again_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(0, calm=True)
    furnish(house, monkeypatch)
    drive(rebuild_flow.rebuild.fn(model="tiny"))
    older, newer = (Sent("push", f"hf://org/base@{number:040x}", number) for number in (1, 2))
    house.branch += [sent.uri.partition("@")[2] for sent in (older, newer)]
    for id, sent in (("b", newer), ("a", older), ("a-again", older), ("b-again", newer)):
        house.sent[id] = sent
        house.begun[id] = house.stage.minute
        house.start("finetuned", lambda id=id, sent=sent: house.take(id, sent.payload))
        house.run()
        house.reconcile(0)
        house.run()
        assert house.public[-1][1] == newer.revision
    assert [house.state(id) for id in house.sent] == ["accepted", "refused", "refused", "duplicate"]


def test_nothing_but_a_person_brings_a_retired_model_back(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(0, calm=True)
    furnish(house, monkeypatch)
    drive(rebuild_flow.rebuild.fn(model="tiny"))
    retire(house.bucket, "tiny", ["test"])
    house.branch.append(f"{1:040x}")
    house.reconcile(0)
    house.run()
    assert not house.runs
    with pytest.raises(EventRefused) as caught:
        drive(finetuned.take("a", Sent("prefix", "s3://weights/prefix-1", 1).payload))
    assert caught.value.code == "model-retired" and house.state("a") == "refused"
    assert Target(house.bucket, "test").current("tiny")[0].public is None
    drive(rebuild_flow.rebuild.fn(model="tiny"))
    assert Target(house.bucket, "test").current("tiny")[0].public == 2
    house.branch.append(f"{2:040x}")
    house.reconcile(0)
    house.run()
    assert house.runs


@pytest.mark.parametrize("write", range(1, 11))
def test_a_rebuild_that_dies_at_any_write_is_completed_by_the_next(write: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused after that goes back to what is live, not to what was live before it."""
    for dies in (write, -write):
        with monkeypatch.context() as patch:
            house = House(0, calm=True)
            furnish(house, patch)
            first, second, refused = (Sent("prefix", f"s3://weights/{number}", number) for number in (1, 2, 3))
            house.refused.add(refused.revision)
            drive(rebuild_flow.rebuild.fn(model="tiny"))
            house.take("a", first.payload)
            drive(rebuild_flow.rebuild.fn(model="tiny"))
            house.take("b", second.payload)
            house.stage.start("rebuild", lambda: drive(rebuild_flow.rebuild.fn(model="tiny")), dies)
            house.run()
            house.take("c", refused.payload)
            for _ in range(3):
                house.reconcile(0)
                house.run()
            assert house.public[-1][1] == second.revision
