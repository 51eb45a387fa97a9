"""What a prompt may have, by the limits of an engine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from tasks.trtllm.limits import EngineLimits
from tests.standin.engine import LIMITS


def test_a_prompt_goes_through_one_pass_unless_it_is_cut_into_chunks() -> None:
    limits = replace(LIMITS, max_input_len=4096, max_num_tokens=1024)
    assert (limits.prompt_tokens(chunked=False), limits.prompt_tokens(chunked=True)) == (1024, 4096)
    assert replace(limits, max_num_tokens=8192).prompt_tokens(chunked=False) == 4096


def test_limits_of_before_are_read() -> None:
    old = {name: value for name, value in asdict(LIMITS).items() if name != "max_num_tokens"}
    assert EngineLimits.from_json(json.dumps(old)) == LIMITS
    assert LIMITS.prompt_tokens(chunked=False) == LIMITS.max_input_len
