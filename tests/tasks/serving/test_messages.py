"""Messages as chat templates of models know them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tasks.serving.messages import for_template


def asked(arguments: object) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("sent", "rendered"),
    [
        ('{"city": "Oslo"}', {"city": "Oslo"}),
        ("{}", {}),
        # What the model itself got wrong, and what is no object.
        ('{"city": ', '{"city": '),
        ("[1]", "[1]"),
        ({"city": "Oslo"}, {"city": "Oslo"}),
    ],
)
def test_arguments_are_objects(sent: object, rendered: object) -> None:
    user = {"role": "user", "content": "?"}
    message = asked(sent)
    before = copy.deepcopy(message)
    assert for_template([user, message]) == [user, asked(rendered)]
    assert message == before


@pytest.mark.parametrize("calls", [None, "x", [1], [{"function": 1}], [{}]])
def test_what_has_no_calls_stays_as_it_is(calls: object) -> None:
    message = {"role": "assistant", "content": "a", "tool_calls": calls}
    assert for_template([message]) == [message]
