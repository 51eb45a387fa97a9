"""Requests that one process hands on to another."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.serving.contract import CONTRACT, RequestRefused
from tasks.serving.packing import pack, unpack
from tasks.serving.parsing import parse_request


def test_a_request_is_the_same_after_it_was_handed_on() -> None:
    tensors = {
        "text_input": np.array([["naïve \x00\ud83c".encode("utf-8", "surrogatepass")], [b"\xff\xfe"]], dtype=object),
        "max_tokens": np.array([[7], [8]], dtype=np.int32),
        "temperature": np.array([[0.1], [1e-30]], dtype=np.float32),
        "seed": np.array([[2**64 - 1], [0]], dtype=np.uint64),
        "return_log_probs": np.array([[True], [False]]),
        "stop_words": np.array([[b"a", b""], [b"b", b"c"]], dtype=object),
    }
    found, parameters = unpack(pack(tensors, {"odd": 1}))
    assert parameters == {"odd": 1} and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and np.array_equal(found[name], tensor), name
    del tensors["text_input"]
    asked = {**tensors, "text_input": np.array([[b"a"], ["é".encode()]], dtype=object)}
    assert parse_request(unpack(pack(asked, {}))[0], {}, CONTRACT) == parse_request(asked, {}, CONTRACT)


@pytest.mark.parametrize(
    "packed",
    [
        *(b"", b"5", b"[1, 2]", b"[{}]", b"\xff", b"[" * 100_000, b'[{"a": ["V8", [1], [0]]}, {}]'),
        *(b'[{"a": ["<i4", [3], [0]]}, {}]', b'[{"a": ["O", [1], [5]]}, {}]', b'[{"a": ["<i4", [1], ["x"]]}, {}]'),
        *(b'[{"a": ["<i4", [2, 2], [1]]}, {}]', b'[{"a": ["O", [1], ["\\u4e2d"]]}, {}]', b'[{"a": [1]}, []]'),
    ],
)
def test_what_was_not_packed_is_refused(packed: bytes) -> None:
    with pytest.raises(RequestRefused):
        unpack(packed)
