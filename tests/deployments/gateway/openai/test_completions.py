"""What the body of a completion becomes, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from deployments.gateway.openai.completions import parse_completion
from deployments.gateway.openai.errors import ApiError
from deployments.gateway.openai.generation import Generation


def test_prompts_and_choices() -> None:
    request = parse_completion({"model": "m", "prompt": "Once", "max_tokens": 5, "stream": True})
    assert request.generations == (Generation(text_input="Once", max_tokens=5, stream=True),)
    assert (request.choices_per_prompt, request.log_probs, request.stream) == (1, False, True)
    request = parse_completion({"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 5})
    assert [(each.text_input, each.seed) for each in request.generations] == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    assert request.choices_per_prompt == 2


def test_log_probs_are_asked_for_with_0() -> None:
    request = parse_completion({"model": "m", "prompt": "a", "logprobs": 0})
    assert request.log_probs and request.generations[0].return_log_probs


def test_guides_and_neutral_fields_are_those_of_a_chat() -> None:
    neutral: dict[str, Any] = {
        "echo": False,
        "suffix": None,
        "best_of": 1,
        "logit_bias": {},
        "user": "u",
        "add_special_tokens": True,
    }
    request = parse_completion({"model": "m", "prompt": "a", "guided_regex": "x", **neutral})
    assert request.generations == (
        Generation(text_input="a", guided_decoding_guide_type="regex", guided_decoding_guide="x"),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", 1.5]}, "prompt[1]"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 33, "n": 2}, "n"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a", "tools": []}, "tools"),
    ],
)
def test_fields_are_refused_by_name(fields: Mapping[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion({"model": "m", **fields})
    assert (caught.value.status, caught.value.param) == (400, param)
