"""The answers of a batch as the output tensors of a contract, in the shapes that the published clients read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .contract import Answer, LogProb, Tensor

_BY_NAME: Mapping[str, Callable[[Sequence[Answer]], Tensor]] = {
    "output_log_probs": lambda answers: _numbers([[list(answer.log_probs)] for answer in answers]),
    "cum_log_probs": lambda answers: np.array([[answer.cum_log_prob] for answer in answers], dtype=np.float32),
    "output_tokens": lambda answers: _filled([[[each.token for each in _told(answer)]] for answer in answers], b""),
    "top_tokens": lambda answers: _filled(
        [[[token for token, _ in each.top] for each in _told(answer)] for answer in answers], b""
    ),
    "top_log_probs": lambda answers: _numbers(
        [[[value for _, value in each.top] for each in _told(answer)] for answer in answers]
    ),
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
    `[batch, 1]`, log probabilities and tokens `[batch, 1, n]`, the likeliest `[batch, n, k]`. Rows shorter than the
    longest are filled up with 0, or with tokens of no bytes.
    """
    texts = np.array([answer.text.encode() for answer in answers], dtype=np.object_)
    tensors: dict[str, Tensor] = {"text_output": texts.reshape(-1, 1) if contract == 1 else texts}
    tensors |= {name: encode(answers) for name, encode in _BY_NAME.items() if name in wanted}
    if "batch_index" in wanted:
        tensors["batch_index"] = np.arange(first_row, first_row + len(answers), dtype=np.int32).reshape(-1, 1)
    return tensors


def _told(answer: Answer) -> list[LogProb]:
    """The log probabilities that say of which token they are."""
    return [each for each in answer.log_probs if isinstance(each, LogProb)]


def _numbers(rows: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    return _filled(rows, 0.0).astype(np.float32)


def _filled(rows: Sequence[Sequence[Sequence[object]]], filling: object) -> Tensor:
    """Three levels of lists as an array as large as the longest lists."""
    inner = [len(values) for row in rows for values in row]
    filled = np.full((len(rows), max(map(len, rows)), max(inner, default=0)), filling, dtype=np.object_)
    for index, row in enumerate(rows):
        for position, values in enumerate(row):
            filled[index, position, : len(values)] = values
    return filled
