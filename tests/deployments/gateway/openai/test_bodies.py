"""Bodies that are too much, or no JSON."""

from __future__ import annotations

import pytest

from deployments.gateway.openai.bodies import MOST_LEVELS, MOST_VALUES, parse_body
from deployments.gateway.openai.errors import ApiError


def test_a_body_is_an_object_within_limits() -> None:
    assert parse_body('{"a": [1, "\\ud83d\\ude42", "é"]}'.encode()) == {"a": [1, "🙂", "é"]}
    deepest = MOST_LEVELS - 1
    assert parse_body(b'{"a":' * deepest + b"1" + b"}" * deepest)
    assert parse_body(b'{"a": [' + b",".join([b"1"] * (MOST_VALUES - 3)) + b"]}")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": "\xff"}',
        b'{"a":' * MOST_LEVELS + b"1" + b"}" * MOST_LEVELS,
        b"[" * 200_000,
        b'{"a": [' + b",".join([b"1"] * MOST_VALUES) + b"]}",
    ],
    ids=lambda body: str(body[:20]),
)
def test_what_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(body)
    assert (caught.value.status, caught.value.param) == (400, None)
