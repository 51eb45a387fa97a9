"""The codes of errors, at the end of their texts."""

from __future__ import annotations

from typing import get_args

import pytest

from tasks.serving.failures import FailureCode, with_code, without_code


@pytest.mark.parametrize("code", get_args(FailureCode))
def test_an_error_says_its_code(code: FailureCode) -> None:
    assert without_code(with_code("the prompt is [long]", code)) == ("the prompt is [long]", code)


@pytest.mark.parametrize("text", ["unknown model", "it is [invalid] here", "it is [other]", "[invalid]", ""])
def test_an_error_without_one_stays_as_it_is(text: str) -> None:
    assert without_code(text) == (text, None)
