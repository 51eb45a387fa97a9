"""What goes to candidates: a record that counts as long as its release is a candidate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from infra.errors import FormatNewer, UsageError
from tasks.targets.current import Current
from tasks.targets.traffic import (
    NO_TRAFFIC,
    Canary,
    Shadow,
    Traffic,
    copy_to_shadow,
    send_to_canary,
    traffic,
    withdraw_traffic,
)

if TYPE_CHECKING:
    from tests.fleet import Fleet

BOTH = Traffic(canary=Canary(release=2, share=0.1), shadow=Shadow(release=3, share=0.5))


def test_it_counts_for_candidates_beside_a_public_release_and_for_no_other() -> None:
    assert BOTH.within(Current(public=1, candidates=(2, 3))) == BOTH
    assert BOTH.within(Current(public=1, candidates=(3,))) == Traffic(shadow=BOTH.shadow)
    for current in (
        Current(public=1),
        Current(public=2, previous=1, candidates=(4,)),  # promoted
        Current(candidates=(2, 3)),  # nothing is public that could be spared
        Current(public=1, candidates=(2, 3), alone=True),
    ):
        assert BOTH.within(current) == NO_TRAFFIC


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan, math.inf, "much", None])
def test_a_share_is_above_nothing_and_at_most_all(share: object) -> None:
    with pytest.raises(ValidationError):
        Canary.model_validate({"release": 2, "share": share})


def test_a_later_version_is_refused() -> None:
    with pytest.raises(FormatNewer):
        Traffic.model_validate({"schema_version": 2})


def test_the_record_moves_and_takes_candidates_alone(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    second, third = (fleet.release(made, public=False) for _ in range(2))
    target = fleet.target
    with pytest.raises(UsageError) as refused:
        send_to_canary(target, "tiny", Canary(release=second, share=0.1))
    assert refused.value.code == "release-not-candidate"
    assert withdraw_traffic(target, "tiny", second) == NO_TRAFFIC
    assert target.listed().traffic == {}, "nothing was written"

    target.move("tiny", lambda current: current.with_candidate(second).with_candidate(third))
    send_to_canary(target, "tiny", Canary(release=second, share=0.1))
    first = target.listed().traffic["tiny"].etag
    copy_to_shadow(target, "tiny", Shadow(release=third, share=0.5))
    assert traffic(target, "tiny").read()[0] == BOTH
    assert target.listed().traffic["tiny"].etag != first and set(target.wanted()) == {"tiny"}
    assert withdraw_traffic(target, "tiny", second) == Traffic(shadow=BOTH.shadow)
