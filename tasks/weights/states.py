"""What layers without attention keep of a request: a state of one size, however long the request is.

Source: `MambaCacheManager` of TensorRT-LLM's `_torch/pyexecutor/mamba_cache_manager.py`, of 2025 and of 2026.
"""

from __future__ import annotations

from tasks.weights.fields import Fields

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# The fields of each family: heads, numbers of a head, numbers of a state, groups, width of the convolution.
_MAMBA = ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel")
_DELTA = (
    *("linear_num_value_heads", "linear_value_head_dim", "linear_key_head_dim", "linear_num_key_heads"),
    "linear_conv_kernel_dim",
)
_NAMES = {"nemotron_h": _MAMBA, "qwen3_next": _DELTA, "qwen3_5_text": _DELTA, "qwen3_5_moe_text": _DELTA}


def state_bytes(model_type: str, fields: Fields, layers: int) -> int:
    """Bytes of one request in all the `layers` that keep a state. 0 for a type that keeps none."""
    if model_type not in _NAMES or not layers:
        return 0
    heads, size, state, groups, width = (fields.needed(name) for name in _NAMES[model_type])
    kept_as = _DTYPE_BYTES.get(fields.text("mamba_ssm_cache_dtype"), 2)
    convolved = heads * size + 2 * groups * state
    return layers * (heads * size * state * kept_as + convolved * (width - 1) * 2)
