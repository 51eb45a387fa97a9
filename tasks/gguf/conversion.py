"""Convert and build of the kind `llamacpp`: one GGUF in, one GGUF with other tensor types out."""

from __future__ import annotations

from pathlib import Path

from infra.errors import StepFailed
from infra.progress import Progress
from tasks.gguf.file import unsupported
from tasks.gguf.reader import read_gguf
from tasks.gguf.rewrite import CHUNK_ELEMENTS, require_decodable, rewrite
from tasks.gguf.tensor_types import CHECKPOINT_TYPES, QUANTIZATIONS, TypeChoice, checkpoint_type, engine_type, is_plain


def dequantize(
    source: Path, destination: Path, dtype: str, progress: Progress, *, chunk_elements: int = CHUNK_ELEMENTS
) -> None:
    """Write the GGUF `source`, of any type that `gguf` can decode, as a checkpoint of `dtype`.

    `dtype` is `float16` or `bfloat16`. `progress` gets bytes written and bytes in all, of the tensors.
    `destination` appears when it is complete and on disk; until then its bytes are in `DESTINATION.partial`.
    Raises StepFailed `gguf-malformed`, `gguf-unsupported` or `gguf-unreadable` as `read_gguf` does,
    `weights-out-of-range` for weights that are not finite or too large for `dtype`, `disk-full` and `write-failed`.
    """
    choice = _chosen(CHECKPOINT_TYPES, dtype, "dtype")
    model = read_gguf(source)
    for tensor in model.tensors:
        require_decodable(model, tensor)
    types = [checkpoint_type(tensor, choice.type) for tensor in model.tensors]
    rewrite(model, destination, types, choice.file_type, progress, chunk_elements)


def quantize(
    source: Path, destination: Path, quantization: str, progress: Progress, *, chunk_elements: int = CHUNK_ELEMENTS
) -> None:
    """Write the 16-bit checkpoint `source` as an engine of `quantization`, a key of QUANTIZATIONS.

    `progress`, `destination` and errors are as in `dequantize`. Raises `gguf-unsupported` too if `source` holds tensors
    that are already quantized.
    """
    choice = _chosen(QUANTIZATIONS, quantization, "quantization")
    model = read_gguf(source)
    for tensor in model.tensors:
        if not is_plain(tensor):
            raise unsupported(
                source,
                f"{tensor.name} is already {tensor.type.name}",
                "convert it to a 16-bit checkpoint first",
            )
    names = {tensor.name for tensor in model.tensors}
    output = "output.weight" if "output.weight" in names else "token_embd.weight"
    types = [engine_type(tensor, choice.type, is_output=tensor.name == output) for tensor in model.tensors]
    rewrite(model, destination, types, choice.file_type, progress, chunk_elements)


def _chosen(choices: dict[str, TypeChoice], name: str, what: str) -> TypeChoice:
    if name not in choices:
        raise StepFailed(
            f"unknown {what} {name!r}", code="gguf-unsupported", hint=f"choose one of {', '.join(choices)}"
        )
    return choices[name]
