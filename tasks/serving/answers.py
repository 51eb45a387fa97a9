"""The answers of a batch as the output tensors of a contract, in the shapes that the published clients read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .contract import Answer, Tensor

_BY_NAME: Mapping[str, Callable[[Sequence[Answer]], Tensor]] = {
    "output_log_probs": lambda answers: _log_probs(answers),
    "cum_log_probs": lambda answers: np.array([[answer.cum_log_prob] for answer in answers], dtype=np.float32),
    "sequence_index": lambda answers: np.zeros((len(answers), 1), dtype=np.int32),
    "num_input_tokens": lambda answers: np.array([[answer.input_tokens] for answer in answers], dtype=np.int32),
    "num_output_tokens": lambda answers: np.array([[answer.output_tokens] for answer in answers], dtype=np.int32),
    "finish_reason": lambda answers: np.array(
        [[(answer.finish_reason or "").encode()] for answer in answers], dtype=np.object_
    ),
}


def encode_answers(
    answers: Sequence[Answer], wanted: Collection[str], contract: int, first_row: int = 0
) -> dict[str, Tensor]:
    """The output tensors of these answers, the first of which is that of `first_row`: the text, and what is `wanted`.

    The text is `[batch]`, as the published postprocessing has it, in the first contract `[batch, 1]`; all others are
    `[batch, 1]`, log probabilities `[batch, 1, tokens]`. Rows shorter than the longest are filled up with 0.
    """
    texts = np.array([answer.text.encode() for answer in answers], dtype=np.object_)
    tensors: dict[str, Tensor] = {"text_output": texts.reshape(-1, 1) if contract == 1 else texts}
    tensors |= {name: encode(answers) for name, encode in _BY_NAME.items() if name in wanted}
    if "batch_index" in wanted:
        tensors["batch_index"] = np.arange(first_row, first_row + len(answers), dtype=np.int32).reshape(-1, 1)
    return tensors


def _log_probs(answers: Sequence[Answer]) -> Tensor:
    tokens = max(len(answer.log_probs) for answer in answers)
    filled = np.zeros((len(answers), 1, tokens), dtype=np.float32)
    for row, answer in zip(filled, answers, strict=True):
        row[0, : len(answer.log_probs)] = answer.log_probs
    return filled
