"""What is said of nodes that are waited for."""

from __future__ import annotations

import pytest

from infra.errors import TritonError
from tasks.steps.nodes import wait_until_public
from tests.fleet import Fleet
from tests.tasks.targets.test_aliases import answering, public


def test_who_is_waited_for_is_told_once(fleet: Fleet) -> None:
    told: list[str] = []
    first, second = public(fleet, "tiny"), public(fleet, "tiny")
    answering(fleet, tiny=first)
    with pytest.raises(TritonError) as late:
        wait_until_public(fleet.target, "tiny", second, 0.2, told.append)
    assert late.value.code == "node-behind" and told == ["one: still on another release"]
    assert told[0] in late.value.message
    answering(fleet, tiny=second)
    wait_until_public(fleet.target, "tiny", second, 0.2, told.append)
    assert len(told) == 1
