"""Convert and build of the kind `llamacpp`: one GGUF in, one GGUF of other tensor types out.

Both read the source through a memory mapping, chunk by chunk, and append to the destination, so memory stays
flat whatever the model's size. Blocks of every GGUF type are encoded one by one, so chunks change no byte:
the result equals `gguf.quants` on whole tensors, and the same input gives the same bytes.

Which tensors keep their precision follows llama.cpp (`convert_hf_to_gguf.py`, `src/llama-quant.cpp`):

- Vectors, norms, whatever is no `.weight`, and the small or sensitive matrices named below stay float32.
- Integer and float64 tensors are tables, not weights, and are copied.
- With four and five bits the output matrix takes Q8_0, and so do the token embeddings of a model that has no
  output matrix of its own. llama-quantize takes Q6_K there, which `gguf` cannot write, and Q8_0 itself
  where Q6_K does not fit the row, as in SmolLM2. Token embeddings beside an output matrix are quantized like
  the rest. The exceptions llama-quantize makes with an importance matrix or for eight experts are not made.
- Rows that are no multiple of the type's block stay float16, with a warning in the log.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, LlamaFileType

# gguf is typed, but with bare ndarrays.
from gguf.quants import dequantize as decode_blocks  # pyright: ignore[reportUnknownVariableType]
from gguf.quants import quantize as encode_blocks  # pyright: ignore[reportUnknownVariableType]
from numpy.typing import NDArray

from infra.errors import StepFailed
from infra.progress import Progress
from tasks.gguf.file import GGUFFile, Tensor, read_gguf, rewritten_header, unsupported

Type = GGMLQuantizationType

CHECKPOINT_TYPES = {
    "float16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
}
QUANTIZATIONS = {
    "f16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (Type.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q5_0": (Type.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q5_1": (Type.Q5_1, LlamaFileType.MOSTLY_Q5_1),
}

# Elements a chunk: 1 MiB of float32, which stays in a core's cache (measured: 64 Ki to 1 Mi elements are
# equally fast within a quarter), and a multiple of every block size (at most 256).
CHUNK_ELEMENTS = 1 << 18
# numpy releases the interpreter for most of this work: two threads take half the time of one.
THREADS = min(8, len(os.sched_getaffinity(0)))

_FLOATS = (Type.F32, Type.F16, Type.BF16)
_TABLES = (Type.I8, Type.I16, Type.I32, Type.I64, Type.F64)
_FOUR_OR_FIVE_BITS = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
# Beyond this a float16 is infinite, and so is the float16 scale of a block.
_LARGEST_FLOAT16 = 65504.0
_LARGEST_BFLOAT16 = 3.3895e38
# The names tensor_allows_quantization() of src/llama-quant.cpp refuses.
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_KEPT_PARTS = (
    *("_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused")),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
)

_log = logging.getLogger(__name__)


def dequantize(source: Path, destination: Path, dtype: str, progress: Progress) -> None:
    """Write the GGUF `source`, of any type `gguf` can decode, as a checkpoint of `dtype`.

    `dtype`: `float16` or `bfloat16`. `progress` gets bytes written and bytes in all, of the tensors.
    `destination` appears when it is complete and on disk; until then the bytes are in `DESTINATION.partial`.
    Raises StepFailed: `gguf-malformed`, `gguf-unsupported`, `gguf-unreadable` (see `read_gguf`),
    `weights-out-of-range` (not finite, or too large for `dtype`), `disk-full`, `write-failed`.
    """
    kind, file_type = _choice(CHECKPOINT_TYPES, dtype, "dtype")
    model = read_gguf(source)
    for tensor in model.tensors:
        _require_decodable(model, tensor)
    types = [
        tensor.type if tensor.type in _TABLES else Type.F32 if _keeps_precision(tensor) else kind
        for tensor in model.tensors
    ]
    _rewrite(model, destination, types, file_type, progress)


def quantize(source: Path, destination: Path, quantization: str, progress: Progress) -> None:
    """Write the 16-bit checkpoint `source` as an engine of `quantization`.

    `quantization`: a key of QUANTIZATIONS. `progress`, `destination` and errors as in `dequantize`;
    `gguf-unsupported` also where `source` holds tensors that are already quantized.
    """
    kind, file_type = _choice(QUANTIZATIONS, quantization, "quantization")
    model = read_gguf(source)
    names = {tensor.name for tensor in model.tensors}
    output = "output.weight" if "output.weight" in names else "token_embd.weight"
    types: list[Type] = []
    for tensor in model.tensors:
        if tensor.type not in _FLOATS and tensor.type not in _TABLES:
            raise unsupported(
                source,
                f"{tensor.name} is already {tensor.type.name}",
                "convert it to a 16-bit checkpoint first",
            )
        wanted = Type.Q8_0 if tensor.name == output and kind in _FOUR_OR_FIVE_BITS else kind
        types.append(tensor.type if _keeps_precision(tensor) else _fitting(tensor, wanted))
    _rewrite(model, destination, types, file_type, progress)


def _choice(choices: dict[str, tuple[Type, LlamaFileType]], name: str, what: str) -> tuple[Type, LlamaFileType]:
    if name not in choices:
        raise StepFailed(
            f"unknown {what} {name!r}", code="gguf-unsupported", hint=f"choose one of {', '.join(choices)}"
        )
    return choices[name]


def _require_decodable(model: GGUFFile, tensor: Tensor) -> None:
    if tensor.type in _TABLES:
        return
    block = np.zeros((1, GGML_QUANT_SIZES[tensor.type][1]), np.uint8)
    try:
        decode_blocks(block, tensor.type)
    except NotImplementedError as error:
        raise unsupported(
            model.path,
            f"{tensor.name} has type {tensor.type.name}, which gguf cannot decode",
            "use another file",
        ) from error


def _keeps_precision(tensor: Tensor) -> bool:
    name = tensor.name
    return (
        tensor.type in _TABLES
        or tensor.dimensions < 2
        or not name.endswith("weight")
        or name in _KEPT_NAMES
        or any(part in name for part in _KEPT_PARTS)
    )


def _fitting(tensor: Tensor, wanted: Type) -> Type:
    block = GGML_QUANT_SIZES[wanted][0]
    if tensor.shape[0] % block == 0:
        return wanted
    _log.warning("%s stays float16: its rows of %d are no multiple of %d", tensor.name, tensor.shape[0], block)
    return Type.F16


def _rewrite(
    model: GGUFFile, destination: Path, types: Sequence[Type], file_type: LlamaFileType, progress: Progress
) -> None:
    if not model.tensors:
        raise unsupported(model.path, "it holds no tensor", "use the file with the model's weights")
    settings = {
        "general.file_type": int(file_type),
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    header, targets = rewritten_header(model, settings, types)
    last = targets[-1]
    length = last.offset + last.size
    length += -length % model.alignment
    partial = destination.with_name(destination.name + ".partial")
    try:
        with partial.open("wb") as stream:
            # Reserved at once: a full disk is found before the work, not after most of it.
            os.posix_fallocate(stream.fileno(), 0, length)
            stream.write(header)
            _write_tensors(model, targets, stream, progress)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(destination)
        _flush_folder(destination.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StepFailed(
                f"no room for {destination.name}: {length / 2**20:.0f} MiB are needed",
                code="disk-full",
                hint=f"free space in {destination.parent}",
            ) from error
        raise StepFailed(
            f"cannot write {destination}: {error.strerror}",
            code="write-failed",
            hint="check the folder and its owner",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_tensors(model: GGUFFile, targets: Sequence[Tensor], stream: BinaryIO, progress: Progress) -> None:
    total = sum(target.size for target in targets)
    done = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="gguf") as pool:
        for origin, target in zip(model.tensors, targets, strict=True):
            stream.seek(target.offset)
            for chunk in _encoded_chunks(pool, model, origin, target):
                stream.write(chunk.data)
                done += chunk.nbytes
                progress(done, total)
            # What was read is in the page cache; mapped, it would count as this process's memory.
            model.data.madvise(mmap.MADV_DONTNEED)


def _encoded_chunks(
    pool: ThreadPoolExecutor, model: GGUFFile, origin: Tensor, target: Tensor
) -> Iterator[NDArray[Any]]:
    """The bytes of `target` in order, a chunk at a time, with no more than two chunks a thread in the air."""
    waiting: deque[Future[NDArray[Any]]] = deque()
    for first in range(0, origin.elements, CHUNK_ELEMENTS):
        waiting.append(pool.submit(_encode, model, origin, target.type, first))
        if len(waiting) > 2 * THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _encode(model: GGUFFile, origin: Tensor, kind: Type, first: int) -> NDArray[Any]:
    block, block_bytes = GGML_QUANT_SIZES[origin.type]
    count = min(CHUNK_ELEMENTS, origin.elements - first)
    raw = np.frombuffer(
        model.data,
        np.uint8,
        count=count // block * block_bytes,
        offset=origin.offset + first // block * block_bytes,
    )
    if origin.type == kind:
        return raw
    # One row a chunk: gguf works on groups of rows, and a chunk is already as small as a group should be.
    # Bits that are no sound number (a scale that is NaN) must not become numpy warnings but the error below.
    with np.errstate(all="ignore"):
        values = cast(NDArray[np.float32], decode_blocks(raw.reshape(1, -1), origin.type))
        largest = float(np.abs(values).max())
        limit = _LARGEST_BFLOAT16 if kind in (Type.BF16, Type.F32) else _LARGEST_FLOAT16
        # Written so that NaN, which compares false with everything, fails too.
        if not largest <= limit:
            raise StepFailed(
                f"{origin.name} of {model.path.name} holds {largest:g}, which {kind.name} cannot",
                code="weights-out-of-range",
                hint="use bfloat16 for weights beyond 65504; NaN or infinity mean a damaged source",
            )
        return cast(NDArray[Any], encode_blocks(values, kind))
