"""The answers of a batch as output tensors."""

from __future__ import annotations

import numpy as np

from tasks.serving.answers import encode_answers
from tasks.serving.contract import CONTRACT, Answer, LogProb, outputs_of

LOG_PROBS = ("output_log_probs", "cum_log_probs")


def test_the_text_has_the_shape_that_published_clients_read() -> None:
    for contract, text in ((1, [["é".encode()], [b""]]), (2, ["é".encode(), b""])):
        tensors = encode_answers([Answer("é"), Answer("")], (), contract)
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"text_output": text}


def test_log_probabilities_are_filled_up() -> None:
    full = encode_answers([Answer("a", (-1.0, -0.5), -1.5), Answer("", (), 0.0)], LOG_PROBS, 1)
    assert full["cum_log_probs"].tolist() == [[-1.5], [0.0]]
    assert full["output_log_probs"].tolist() == [[[-1.0, -0.5]], [[0.0, 0.0]]]
    assert {full[name].dtype for name in LOG_PROBS} == {np.dtype(np.float32)}


def test_every_output_of_the_contract_can_be_made() -> None:
    told = LogProb(-1.0, b"a", ((b"a", -1.0), (b"\xc3", -2.0)))
    answers = [Answer("a", (told, LogProb(-2.0, b"b")), -3.0, 5, 1, "length"), Answer("b", (-2.0,), -2.0, 6, 2)]
    tensors = encode_answers(answers, [entry.name for entry in outputs_of(CONTRACT)], CONTRACT, 3)
    assert tensors.keys() == {entry.name for entry in outputs_of(CONTRACT)}
    assert {name: tensor.tolist() for name, tensor in tensors.items() if "log" not in name} == {
        "text_output": [b"a", b"b"],
        "output_tokens": [[[b"a", b"b"]], [[b"", b""]]],
        "top_tokens": [[[b"a", b"\xc3"], [b"", b""]], [[b"", b""], [b"", b""]]],
        "batch_index": [[3], [4]],
        "sequence_index": [[0], [0]],
        "num_input_tokens": [[5], [6]],
        "num_output_tokens": [[1], [2]],
        "finish_reason": [[b"length"], [b""]],
    }
    assert tensors["output_log_probs"].tolist() == [[[-1.0, -2.0]], [[-2.0, 0.0]]]
    assert tensors["top_log_probs"].tolist() == [[[-1.0, -2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert tensors["top_log_probs"].dtype == np.dtype(np.float32)
