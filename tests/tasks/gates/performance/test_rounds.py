from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.gates.performance.rounds import rounds_of
from tasks.models.gate_specs.performance import PerformanceSpec
from tasks.models.gates import Gates


def asked(**fields: Any) -> PerformanceSpec:
    return PerformanceSpec(gate="performance", **fields)


def test_rounds_are_alike_and_their_order_turns_on_each_node() -> None:
    rounds = rounds_of(asked(requests=120, rounds=12), nodes=2)
    assert [each.node for each in rounds[:4]] == [0, 1, 0, 1]
    for node in (0, 1):
        assert [each.candidate_first for each in rounds if each.node == node] == [True, False] * 3
    strata = [Counter(item.stratum for item in each.items) for each in rounds]
    assert sum(map(len, strata)) >= 4 * 11  # each round has all four
    assert {len(each.items) for each in rounds} == {10}
    for name in {name for each in strata for name in each}:
        assert max(each[name] for each in strata) - min(each[name] for each in strata) <= 1
    assert len({item.prompt.text for each in rounds for item in each.items}) == 120


def test_rounds_repeat_with_the_seed() -> None:
    assert rounds_of(asked(), 1) == rounds_of(asked(), 1) != rounds_of(asked(seed=2), 1)


def test_equal_lengths_are_one_stratum() -> None:
    rounds = rounds_of(asked(prompt_tokens="20", answer_tokens="5"), 1)
    assert len({item.stratum for each in rounds for item in each.items}) == 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt_tokens": "few"}, "no distribution"),
        ({"requests": 40, "rounds": 30}, "60 requests"),
        ({"requests": 58, "time_to_first_token_ms": 100}, "59 requests"),
        ({"requests": 298, "time_to_first_token_ms": 100, "percentile": 99}, "299 requests"),
        ({"margin": 0}, "margin"),
        ({"rate": -1}, "rate"),
        ({"over": "openai"}, "over"),
        ({"marign": 0.2}, "performance.marign"),
    ],
)
def test_what_cannot_be_is_an_error_of_the_models_file(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as error:
        Gates.model_validate({"performance": fields})
    assert told in str(error.value)


def test_it_is_asked_for_by_one_line() -> None:
    assert [*Gates.model_validate({"performance": None}).asked.values()] == [asked()]
