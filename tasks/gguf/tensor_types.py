"""Which type each tensor of a converted or quantized GGUF gets.

The rules follow llama.cpp (`convert_hf_to_gguf.py`, `src/llama-quant.cpp`):

- Vectors, norms, tensors whose name does not end in `weight`, and the small or sensitive matrices named below stay
  float32.
- Integer and float64 tensors are tables, not weights, and are copied.
- With four and five bits the output matrix takes Q8_0, and so do the token embeddings of a model without an output
  matrix of its own. llama-quantize takes Q6_K for these, which `gguf` cannot write, and Q8_0 itself if Q6_K does not
  fit the row, as in SmolLM2. Token embeddings beside an output matrix are quantized like the rest. Enginehouse does not
  make the exceptions that llama-quantize makes with an importance matrix or for eight experts.
- Tensors whose rows are no multiple of the type's block become float16, with a warning in the log.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from tasks.gguf.file import Tensor

Type = GGMLQuantizationType


class TypeChoice(NamedTuple):
    """The type of most tensors, and the name that a file of it has in its metadata."""

    type: GGMLQuantizationType
    file_type: LlamaFileType


CHECKPOINT_TYPES = {
    "float16": TypeChoice(Type.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": TypeChoice(Type.BF16, LlamaFileType.MOSTLY_BF16),
}
QUANTIZATIONS = {
    "f16": TypeChoice(Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": TypeChoice(Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": TypeChoice(Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": TypeChoice(Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": TypeChoice(Type.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q5_0": TypeChoice(Type.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q5_1": TypeChoice(Type.Q5_1, LlamaFileType.MOSTLY_Q5_1),
}

TABLES = (Type.I8, Type.I16, Type.I32, Type.I64, Type.F64)
_FLOATS = (Type.F32, Type.F16, Type.BF16)
_FOUR_OR_FIVE_BITS = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
# The names that tensor_allows_quantization() of src/llama-quant.cpp refuses.
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_KEPT_PARTS = (
    *("_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
)

_log = logging.getLogger(__name__)


def checkpoint_type(tensor: Tensor, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type of a tensor in a checkpoint whose weights are of the type `wanted`."""
    if tensor.type in TABLES:
        return tensor.type
    return Type.F32 if _keeps_precision(tensor) else wanted


def engine_type(tensor: Tensor, wanted: GGMLQuantizationType, *, is_output: bool) -> GGMLQuantizationType:
    """The type of a checkpoint's tensor in an engine of the type `wanted`. `is_output`: it makes the logits."""
    if _keeps_precision(tensor):
        return tensor.type
    fitting = Type.Q8_0 if is_output and wanted in _FOUR_OR_FIVE_BITS else wanted
    block = GGML_QUANT_SIZES[fitting][0]
    if tensor.shape[0] % block == 0:
        return fitting
    _log.warning("%s becomes float16: its rows of %d are no multiple of %d", tensor.name, tensor.shape[0], block)
    return Type.F16


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a table or holds floating-point numbers that are not quantized."""
    return tensor.type in _FLOATS or tensor.type in TABLES


def _keeps_precision(tensor: Tensor) -> bool:
    name = tensor.name
    return (
        tensor.type in TABLES
        or tensor.dimensions < 2
        or not name.endswith("weight")
        or name in _KEPT_NAMES
        or any(part in name for part in _KEPT_PARTS)
    )
