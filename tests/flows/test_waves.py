"""A rollout to several targets: order, soak, refusals, and what a run that died leaves to the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flows import rebuild as rebuild_flow
from infra.errors import GateRefused
from tasks.explain.history import history
from tasks.steps.waves import unfinished
from tasks.targets.waves import Moved, Waves
from tests.flows.house_of_targets import RUN, House, furnish, model
from tests.flows.interleaved import drive

THREE = [{"targets": ["a"], "soak": "1h"}, {"targets": ["b", "c"], "soak": "30m"}, {"targets": ["d"]}]
ALL_BACK = {"waves": THREE, "on_refusal": "all_back"}

Furnished = Callable[..., House]


@pytest.fixture
def furnished(monkeypatch: pytest.MonkeyPatch) -> Furnished:
    """A house whose targets have release 1 of the first weights, and where the second ones are to be rolled out."""

    def make(rollout: dict[str, Any], targets: str = "abcd", **sections: Any) -> House:
        house = House(model(targets, {}))
        furnish(house, monkeypatch)
        house.rebuild()
        assert house.moved() == [(target, 1) for target in targets]
        house.moves.clear()
        house.model, house.weights = model(targets, rollout, **sections), "s3://weights/2"
        return house

    return make


def test_waves_come_in_order_and_each_soaks_before_the_next(furnished: Furnished) -> None:
    house = furnished({"waves": THREE})
    house.rebuild()
    assert house.moved() == [("a", 2), ("b", 2), ("c", 2), ("d", 2)]
    minutes = [minute for minute, _, _ in house.moves]
    assert minutes[1] - minutes[0] >= 60 and minutes[3] - minutes[2] >= 30 > minutes[2] - minutes[1]
    outcomes = [house.outcome(target, 2) for target in "abcd"]
    assert [(each.wave, each.of, each.state) for each in outcomes if each] == [
        (1, 3, "passed"),
        (2, 3, "passed"),
        (2, 3, "passed"),
        (3, 3, "passed"),
    ]
    assert house.last.state == "passed" and house.last.passed == 3
    assert house.last.moved[0] == Moved(target="a", release=2, previous=1)
    told = [(event.what, event.reason) for event in history(house.target("b"), "tiny").events]
    assert ("passed", "wave 2 of 3 (b, c)") in told
    written = dict(house.bucket.objects)
    house.rebuild()  # nothing is left to do, so nothing is written, and nothing soaks
    assert house.bucket.objects == written and len(house.moves) == 4


def test_the_first_that_refuses_stops_it_and_later_waves_are_untouched(furnished: Furnished) -> None:
    house = furnished({"waves": THREE})
    house.refusing = {"b"}
    error = house.refused()
    assert (error.code, error.exit_code) == ("wave-refused", 3)
    assert "wave 2 of 3" in error.message and "it stays on a" in error.hint and "not brought to c, d" in error.hint
    assert house.moved() == [("a", 2)]
    assert [house.target(name).releases("tiny") for name in "abcd"] == [[1, 2], [1, 2], [1], [1]]
    refused = house.outcome("b", 2)
    assert refused is not None and refused.state == "refused" and "refused" in refused.reason
    assert house.last.state == "refused"
    house.refusing = set()
    house.rebuild()  # it goes on behind what has its release
    assert house.moved() == [("a", 2), ("b", 3), ("c", 2), ("d", 2)]


def test_all_back_gives_the_previous_release_back_the_last_one_first(furnished: Furnished) -> None:
    house = furnished(ALL_BACK)
    house.refusing = {"d"}
    error = house.refused()
    assert (error.code, error.exit_code) == ("wave-returned", 3)
    assert house.moved() == [("a", 2), ("b", 2), ("c", 2), ("c", 1), ("b", 1), ("a", 1)]
    assert house.last.state == "returned"
    newest = history(house.target("a"), "tiny").events[0]
    assert (newest.what, newest.instead_of) == ("rolled back", 2) and newest.reason.startswith("all back: ")


def test_what_the_rollout_has_not_moved_does_not_go_back(furnished: Furnished) -> None:
    house = furnished(ALL_BACK)
    house.rebuild("ab")  # two of the targets have the release by an earlier rollout, in the order of the waves
    assert house.moved() == [("a", 2), ("b", 2)]
    house.refusing = {"d"}
    assert house.refused().code == "wave-returned"
    assert house.moved()[2:] == [("c", 2), ("c", 1)]


def test_somebody_who_moves_the_name_meanwhile_is_right(furnished: Furnished) -> None:
    house = furnished(ALL_BACK)
    house.refusing = {"b"}
    house.gating = lambda target: house.roll_back("a") if target == "b" else None
    assert house.refused().code == "wave-returned"
    assert house.moved() == [("a", 2), ("a", 1)]


def test_a_first_release_has_nothing_to_go_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(model("ab", {"waves": [{"targets": ["a"]}, {"targets": ["b"]}], "on_refusal": "all_back"}))
    furnish(house, monkeypatch)
    house.refusing = {"b"}
    error = house.refused()
    assert "release 1 on 'a' stays" in error.hint and house.public("a") == 1


@pytest.mark.parametrize("rollout", [{}, {"waves": THREE}], ids=["each by itself", "waves"])
def test_newer_ones_that_went_live_elsewhere_are_not_followed_by_older_ones(
    furnished: Furnished, rollout: dict[str, Any]
) -> None:
    house = furnished(rollout)

    def newer(target: str) -> None:
        if target == "b":
            house.gating = lambda target: None
            house.weights = "s3://weights/3"
            house.model = model("abcd", {})
            house.rebuild("a")

    house.gating = newer
    error = house.refused()
    assert error.code == "rollout-overtaken" and "release 3 is public on 'a'" in error.message
    assert house.moved() == [("a", 2), ("a", 3)]
    assert house.target("b").current("tiny")[0].candidates == ()
    if rollout:
        assert house.last.state == "overtaken"


def test_a_rollback_while_a_wave_soaks_ends_the_rollout(furnished: Furnished) -> None:
    house = furnished({"waves": THREE})
    house.sleeping = lambda: house.roll_back("a") if house.public("a") == 2 else None
    assert house.refused().code == "rollout-overtaken"
    assert house.moved() == [("a", 2), ("a", 1)] and house.last.state == "overtaken"
    assert not [*unfinished(house.bucket)]


@pytest.mark.slow
def test_a_run_that_dies_at_any_write_is_completed_by_the_same_command(furnished: Furnished) -> None:
    start = furnished({"waves": THREE})
    left = dict(start.bucket.objects)
    deaths = 0
    for dies in (sign * write for write in range(1, 100) for sign in (-1, 1)):
        killed = start.dies(left, dies)
        if dies < 0 and not killed:  # all its writes were died at; of one that the store refuses nobody dies
            break
        deaths += killed
        start.rebuild()
        assert start.moved() == [("a", 2), ("b", 2), ("c", 2), ("d", 2)]
        minutes = [minute for minute, _, _ in start.moves]
        assert minutes[1] - minutes[0] >= 60 and minutes[3] - minutes[2] >= 30
        assert all(start.target(name).releases("tiny") == [1, 2] for name in "abcd")
        assert start.last.state == "passed" and [each.previous for each in start.last.moved] == [1] * 4
    assert deaths > 60, deaths


@pytest.mark.slow
def test_a_return_that_dies_at_any_write_is_completed_by_reconcile(furnished: Furnished) -> None:
    start = furnished(ALL_BACK)
    left = dict(start.bucket.objects)
    start.refusing = {"d"}
    mended = 0
    for dies in (sign * write for write in range(1, 100) for sign in (-1, 1)):
        killed = start.dies(left, dies)
        if dies < 0 and not killed:
            break
        if start.last_or_none is None or start.last_or_none.state != "returning":
            continue
        start.reconcile()
        mended += 1
        assert [start.public(name) for name in "abcd"] == [1] * 4 and start.last.state == "returned"
        assert start.target("d").releases("tiny") == [1, 2]
    assert mended > 10, mended


def test_a_watch_that_gives_one_back_has_the_others_of_its_wave_given_back_too(furnished: Furnished) -> None:
    house = furnished(ALL_BACK, watch={"for": 600})

    def returned() -> None:
        house.roll_back("b")
        raise GateRefused("clients of b fare worse", code="watch-returned")

    house.watches = {"b": returned}
    with pytest.raises(GateRefused) as caught:
        asyncio.run(rebuild_flow.rebuild.fn(model="tiny"))
    assert caught.value.code == "wave-returned" and "clients of b fare worse" in caught.value.message
    assert house.moved() == [("a", 2), ("b", 2), ("c", 2), ("b", 1), ("c", 1), ("a", 1)]


def test_reconcile_goes_on_with_a_run_that_crashed_once_from_each_wave(furnished: Furnished) -> None:
    house = furnished({"waves": THREE})

    def dies_in_the_soak() -> None:
        raise KeyboardInterrupt

    house.sleeping = dies_in_the_soak
    with pytest.raises(KeyboardInterrupt):
        house.rebuild()
    house.sleeping = lambda: None
    for _ in range(2):
        house.reconcile()
    (key,) = house.started
    assert key.endswith(":1") and house.started[key] == {"model": "tiny", "refresh": "nothing"}
    assert house.last.flow_run == RUN
    house.rebuild()
    house.reconcile()
    assert len(house.started) == 1 and house.moved()[-1] == ("d", 2)


def test_later_waves_wait_while_a_person_decides(furnished: Furnished) -> None:
    house = furnished({"waves": THREE}, approval={"when": "always"})
    house.waiting = {"b"}
    state = drive(rebuild_flow.rebuild.fn(model="tiny"))
    assert state.name == "Waiting"  # type: ignore[union-attr]
    assert house.moved() == [("a", 2), ("c", 2)] and house.target("d").releases("tiny") == [1]
    house.waiting = set()
    house.rebuild()
    assert house.moved() == [("a", 2), ("c", 2), ("b", 2), ("d", 2)]


def test_where_it_has_moved_the_name_twice_it_goes_back_before_both() -> None:
    waves = Waves(repository="r", waves=(("a",),))
    once = waves.with_moved(Moved(target="a", release=2, previous=1))
    assert once.with_moved(Moved(target="a", release=2, previous=2)) == once
    twice = once.with_moved(Moved(target="a", release=3, previous=2))
    assert twice.moved == (Moved(target="a", release=3, previous=1),)
    other = once.with_moved(Moved(target="a", release=5, previous=4))
    assert other.moved == (Moved(target="a", release=5, previous=4),)
