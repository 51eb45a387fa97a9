"""A request as one text, in which one process of `llm` hands it on to another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .contract import RequestRefused, Tensor
from .tickets import HANDED_ON

_KINDS = "biufO"
"""Of numpy's types: booleans, numbers, and bytes as objects."""


def pack(tensors: Mapping[str, Tensor], parameters: Mapping[str, object]) -> bytes:
    """A request as the text that `unpack` reads."""
    inputs = {
        name: [
            tensor.dtype.str if tensor.dtype.kind != "O" else "O",
            tensor.shape,
            [_text(value) for value in tensor.ravel().tolist()],
        ]
        for name, tensor in tensors.items()
    }
    return json.dumps([inputs, parameters]).encode()


def unpack(packed: bytes) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors and parameters. Raises RequestRefused for what `pack` has not made: whoever reaches `llm` may send it."""
    try:
        inputs, parameters = json.loads(packed)
        return {name: _tensor(*packed_one) for name, packed_one in inputs.items()}, dict(parameters)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RequestRefused(f"'{HANDED_ON}' holds no request") from error


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _tensor(data_type: str, shape: list[int], values: list[Any]) -> Tensor:
    kind = np.dtype(data_type)
    if kind.kind not in _KINDS:
        raise ValueError(data_type)
    flat = np.empty(len(values), dtype=kind)
    flat[:] = [value.encode("latin-1") for value in values] if kind.kind == "O" else values
    return flat.reshape(shape)
