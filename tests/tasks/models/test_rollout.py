"""The section `rollout` of a model's file: steps, hours, and what cannot be."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from infra.errors import EnginehouseError
from tasks.models.catalogue import json_schema, load_model
from tasks.models.rollout import Rollout, Schedule
from tasks.models.spec import Model
from tasks.steps.opening import require_open

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
STEPS = [{"share": 0.05, "soak": "10m"}, {"share": 0.5, "soak": "1.5 h"}, {"share": 1, "soak": 30}]


def model(rollout: Any) -> Model:
    known = yaml.safe_load((CATALOGUE / "smollm2-135m.yaml").read_text())
    return Model.model_validate({**known, "rollout": rollout})


def test_a_file_that_says_nothing_moves_at_once_and_at_any_time() -> None:
    known = load_model(CATALOGUE / "smollm2-135m.yaml")
    assert known.rollout == Rollout() and known.rollout.strategy == "blue_green" and not known.rollout.shifts
    assert known.rollout.closed(datetime.now(UTC)) is None


def test_steps_have_shares_and_times_as_people_write_them() -> None:
    asked = model({"strategy": "canary", "steps": STEPS, "sticky": False})
    assert [(step.share, step.soak) for step in asked.rollout.steps] == [(0.05, 600), (0.5, 5400), (1, 30)]
    assert Model.model_validate_json(asked.model_dump_json(by_alias=True)) == asked
    hash(asked)
    assert {"strategy", "steps", "schedule"} <= json_schema()["$defs"]["Rollout"]["properties"].keys()  # type: ignore


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"strategy": "canary"}, "needs steps"),
        ({"steps": STEPS}, "has no steps"),
        ({"strategy": "recreate", "sticky": False}, "sticky means nothing"),
        ({"strategy": "shadow", "steps": STEPS[::-1]}, "grow"),
        ({"strategy": "canary", "steps": [STEPS[0], STEPS[0]]}, "grow"),
        ({"strategy": "canary", "steps": [{"share": 0, "soak": 1}]}, "greater than 0"),
        ({"strategy": "canary", "steps": [{"share": 0.1, "soak": "soon"}]}, "no time such as"),
        ({"strategy": "canary", "steps": [{"share": 0.1, "soak": "200h"}]}, "less than or equal"),
        ({"strategy": "blue"}, "'blue_green', 'canary', 'shadow' or 'recreate'"),
        ({"schedule": {"timezone": "Berlin"}}, "no time zone"),
        ({"schedule": {"timezone": "../etc/passwd"}}, "no time zone"),
        ({"schedule": {"timezone": "UTC", "hours": "9-17"}}, "no hours such as"),
        ({"schedule": {"timezone": "UTC", "hours": "09:00-25:00"}}, "no hours of a day"),
        ({"schedule": {"timezone": "UTC", "hours": "09:00-09:00"}}, "no minute"),
        ({"schedule": {"timezone": "UTC", "days": []}}, "never opens"),
        ({"schedule": {"timezone": "UTC", "days": ["monday"]}}, "'mon'"),
        ({"freeze": "christmas"}, "the moment until which"),
        ({"freeze": "2027-01-04T08:00:00"}, "no time zone"),
        ({"freeze": 1}, "the moment until which"),
    ],
)
def test_mistakes_are_said(rollout: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(rollout)
    assert words in str(caught.value)


NO_TARGETS: dict[str, Any] = {"targets": []}
WAVES = [{"targets": ["a"], "soak": "1h"}, {"targets": ["b", "c"]}]


def in_waves(waves: Any, targets: str = "abc", **more: Any) -> Model:
    known = yaml.safe_load((CATALOGUE / "smollm2-135m.yaml").read_text())
    return Model.model_validate({**known, "targets": [*targets], "rollout": {"waves": waves, **more}})


def test_waves_have_each_target_once_and_keep_their_order() -> None:
    asked = in_waves(WAVES, on_refusal="all_back").rollout
    assert [(wave.targets, wave.soak) for wave in asked.waves] == [(("a",), 3600), (("b", "c"), 0)]
    assert [wave.targets for wave in asked.waves_of(("c", "x", "a"))] == [("a",), ("c",), ("x",)]
    assert [wave.targets for wave in Rollout().waves_of(("b", "a", "b"))] == [("b",), ("a",)]
    assert Rollout().waves_of(()) == ()


@pytest.mark.parametrize(
    ("waves", "more", "words"),
    [
        ([{"targets": ["a"]}, {"targets": ["b"]}], {}, "no wave has c"),
        ([{"targets": ["a", "b", "c", "d"]}], {}, "name d, which is not among"),
        ([{"targets": ["a", "b", "a", "c"]}], {}, "name a twice"),
        ([{"targets": ["a", "b"]}, {"targets": ["b", "c"]}], {}, "name b twice"),
        ([{"targets": ["a", "b", "c"]}, NO_TARGETS], {}, "at least 1 item"),
        ([{"targets": ["a"]}, {"targets": ["b", "c"], "soak": "1h"}], {}, "the last wave has a soak"),
        ([{"targets": ["a"], "soak": "200h"}, {"targets": ["b", "c"]}], {}, "less than or equal"),
        ([], {"on_refusal": "all_back"}, "needs waves"),
        (WAVES, {"on_refusal": "back"}, "'stop' or 'all_back'"),
    ],
)
def test_mistakes_in_waves_are_said(waves: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        in_waves(waves, **more)
    assert words in str(caught.value)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("days", "hours", "now", "opens"),
    [
        # 30 November 2026 is a Monday.
        (["mon"], "09:00-16:00", "2026-11-30T07:59:00+00:00", "2026-11-30T09:00:00+01:00"),
        (["mon"], "09:00-16:00", "2026-11-30T08:00:00+00:00", None),
        (["mon"], "09:00-16:00", "2026-11-30T15:00:00+00:00", "2026-12-07T09:00:00+01:00"),
        (["mon", "tue"], "09:00-16:00", "2026-11-30T15:00:00+00:00", "2026-12-01T09:00:00+01:00"),
        # Of a night, the day on which it begins counts.
        (["mon"], "22:00-06:00", "2026-12-01T04:59:00+00:00", None),
        (["mon"], "22:00-06:00", "2026-12-01T05:00:00+00:00", "2026-12-07T22:00:00+01:00"),
        (["mon"], "00:00-24:00", "2026-11-30T22:59:59+00:00", None),
        # The clocks go back on 25 October 2026 at 03:00 and forward on 28 March 2027 at 02:00.
        (["sat"], "22:00-03:00", "2026-10-25T01:30:00+00:00", None),
        (["sat"], "22:00-03:00", "2026-10-25T02:00:00+00:00", "2026-10-31T22:00:00+01:00"),
        (["sun"], "09:00-16:00", "2027-03-28T06:30:00+00:00", "2027-03-28T09:00:00+02:00"),
    ],
)
def test_hours_are_those_of_the_time_zone(days: list[str], hours: str, now: str, opens: str | None) -> None:
    schedule = Schedule.model_validate({"timezone": "Europe/Berlin", "days": days, "hours": hours})
    assert schedule.next_opening(at(now)) == (None if opens is None else at(opens))


def test_who_may_not_begin_is_told_until_when() -> None:
    until = "2026-12-01T00:00:00+00:00"
    hours = {"timezone": "UTC", "hours": "09:00-16:00"}
    for rollout, now, code, words in (
        ({"freeze": True}, until, "frozen", "`rollout`)"),
        ({"freeze": until}, "2026-11-30T12:00:00+00:00", "frozen", "until 2026-12-01T00:00+00:00"),
        ({"freeze": until, "schedule": hours}, "2026-11-30T12:00:00+00:00", "frozen", "until 2026-12-01T09:00+00:00"),
        ({"freeze": until, "schedule": hours}, "2026-12-01T08:00:00+00:00", "outside-hours", "until 2026-12-01T09:00"),
    ):
        with pytest.raises(EnginehouseError) as refused:
            require_open(model(rollout), "local", at(now))
        assert (refused.value.code == code and refused.value.message.endswith(words)) or words in refused.value.message
    require_open(model({"freeze": until, "schedule": hours}), "local", at("2026-12-01T09:00:00+00:00"))
