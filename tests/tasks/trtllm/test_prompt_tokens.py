"""What a prompt may have, by the limits of an engine."""

from __future__ import annotations

import json
from dataclasses import replace

from tasks.trtllm.limits import EngineLimits
from tests.standin.engine import LIMITS


def test_a_prompt_goes_through_one_pass_unless_it_is_cut_into_chunks() -> None:
    limits = replace(LIMITS, max_input_len=4096, max_num_tokens=1024)
    assert (limits.prompt_tokens(chunked=False), limits.prompt_tokens(chunked=True)) == (1024, 4096)
    assert replace(limits, max_num_tokens=8192).prompt_tokens(chunked=False) == 4096


def test_what_is_written_is_what_was_written_before() -> None:
    written = replace(LIMITS, max_num_tokens=1024).to_json()
    assert "max_num_tokens" not in json.loads(written) and EngineLimits.from_json(written) == LIMITS
    assert LIMITS.prompt_tokens(chunked=False) == LIMITS.max_input_len
