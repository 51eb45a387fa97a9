"""The bytes of weights that a recipe will have made, before a tool has made them."""

from __future__ import annotations

import math

from tasks.trtllm.recipe import AWQ, TensorRtLlmFields, TrtEngineFields
from tasks.weights.facts import WeightsFacts

_BITS = {"fp8": 8.0, "fp8_rowwise": 8.0, "int8_sq": 8.0, "int8_wo": 8.0, "int4_wo": 4.0}
_SCALE_BITS = 16
"""Of the scale that a block of AWQ weights shares."""


def quantized_bits(recipe: TensorRtLlmFields) -> float | None:
    """Bits of one weight in the linear layers, with its part of a scale; None if the recipe does not quantize."""
    if recipe.quantization == "none":
        return None
    if recipe.quantization in AWQ:
        return 4 + _SCALE_BITS / recipe.awq_block_size
    if recipe.quantization == "nvfp4":
        return 4 + 8 / 16  # a scale of 8 bits for 16 weights
    return _BITS[recipe.quantization]


def planned_weight_bytes(recipe: TensorRtLlmFields, facts: WeightsFacts) -> int | None:
    """Bytes of the weights on all GPUs together. None where the sizes of their files are not known.

    Quantization changes the linear layers of the blocks: embeddings and the last layer keep 16 bits, in all formats
    that Enginehouse asks ModelOpt and the converters for. Scales of whole rows are not counted: they are less than a
    thousandth. Weights that are quantized already stay as they are.
    """
    if facts.bytes is None or facts.quantization is not None:
        return facts.bytes
    weights = facts.bytes // (4 if facts.dtype == "float32" else 2)
    bits = quantized_bits(recipe)
    if bits is None:
        # A converter writes the dtype of the recipe, and the LLM API's checkpoint is the source's own files.
        return weights * 2 if isinstance(recipe, TrtEngineFields) else facts.bytes
    tables = 1 if facts.tied_embeddings else 2
    embeddings = min(weights, tables * (facts.vocabulary or 0) * (facts.hidden_size or 0))
    return embeddings * 2 + math.ceil((weights - embeddings) * bits / 8)
