"""Writing a GGUF again with other tensor types, chunk by chunk.

The source is read through a memory mapping and the destination is appended to, so memory stays flat for a model of any
size. Blocks of every GGUF type are encoded one by one, so chunks change no byte: the result equals `gguf.quants` on
whole tensors, and the same input gives the same bytes.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, LlamaFileType

# gguf is typed, but with bare ndarrays.
from gguf.quants import dequantize as decode_blocks  # pyright: ignore[reportUnknownVariableType]
from gguf.quants import quantize as encode_blocks  # pyright: ignore[reportUnknownVariableType]
from numpy.typing import NDArray

from infra.errors import StepFailed
from infra.progress import ByteCounter, Progress
from tasks.gguf.file import GGUFFile, Tensor, unsupported
from tasks.gguf.tensor_types import TABLES
from tasks.gguf.writer import rewritten_header

Type = GGMLQuantizationType
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CHUNK_ELEMENTS = 1 << 18
"""1 MiB of float32, which stays in a core's cache. Measured: 64 Ki to 1 Mi elements are equally fast within a quarter.

A chunk must be a multiple of every block size, which is at most 256 elements."""

# numpy releases the interpreter for most of this work: two threads take half the time of one.
_THREADS = min(8, len(os.sched_getaffinity(0)))
# A larger number is infinite as float16, and so is the float16 scale of a block.
_LARGEST_FLOAT16 = 65504.0
_LARGEST_BFLOAT16 = 3.3895e38


def rewrite(
    model: GGUFFile,
    destination: Path,
    types: Sequence[GGMLQuantizationType],
    file_type: LlamaFileType,
    progress: Progress,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> None:
    """Write `model` to `destination` with a type for each of its tensors. `file_type` goes into the metadata.

    Raises StepFailed `gguf-unsupported` (no tensors), `weights-out-of-range`, `disk-full` or `write-failed`.
    """
    if not model.tensors:
        raise unsupported(model.path, "it holds no tensor", "use the file with the model's weights")
    metadata = {
        "general.file_type": int(file_type),
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    header, targets = rewritten_header(model, metadata, types)
    last = targets[-1]
    length = last.offset + last.size
    length += -length % model.alignment
    partial = destination.with_name(destination.name + ".partial")
    try:
        with partial.open("wb") as stream:
            # Reserved at once: a full disk is found before the work, not after most of it.
            os.posix_fallocate(stream.fileno(), 0, length)
            stream.write(header)
            _write_tensors(model, targets, stream, progress, chunk_elements)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(destination)
        _flush_folder(destination.parent)
    except OSError as error:
        raise _write_error(error, destination, length) from error
    finally:
        partial.unlink(missing_ok=True)


def require_decodable(model: GGUFFile, tensor: Tensor) -> None:
    """Raise StepFailed `gguf-unsupported` unless `gguf` can decode the tensor, or it is a table that is copied."""
    if tensor.type in TABLES:
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


def _write_error(error: OSError, destination: Path, length: int) -> StepFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StepFailed(
            f"no room for {destination.name}: {length / 2**20:.0f} MiB are needed",
            code="disk-full",
            hint=f"free space in {destination.parent}",
        )
    return StepFailed(
        f"cannot write {destination}: {error.strerror}",
        code="write-failed",
        hint="check the folder and its owner",
    )


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_tensors(
    model: GGUFFile, targets: Sequence[Tensor], stream: BinaryIO, progress: Progress, chunk_elements: int
) -> None:
    written = ByteCounter(progress, sum(target.size for target in targets))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="gguf") as pool:
        for origin, target in zip(model.tensors, targets, strict=True):
            stream.seek(target.offset)
            for chunk in _encoded_chunks(pool, model, origin, target.type, chunk_elements):
                stream.write(chunk.data)
                written(chunk.nbytes)
            # What was read is in the page cache; mapped, it would count as this process's memory.
            model.data_of(origin).madvise(mmap.MADV_DONTNEED)


def _encoded_chunks(
    pool: ThreadPoolExecutor, model: GGUFFile, origin: Tensor, kind: GGMLQuantizationType, chunk_elements: int
) -> Iterator[Bytes]:
    """The bytes of a tensor as `kind` in order, a chunk at a time. At most two chunks a thread are in memory."""
    waiting: deque[Future[Bytes]] = deque()
    for first in range(0, origin.elements, chunk_elements):
        count = min(chunk_elements, origin.elements - first)
        waiting.append(pool.submit(_encode, model, origin, kind, first, count))
        if len(waiting) > 2 * _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _encode(model: GGUFFile, origin: Tensor, kind: GGMLQuantizationType, first: int, count: int) -> Bytes:
    """The bytes of `count` elements from the `first` on, as `kind`."""
    block, block_bytes = GGML_QUANT_SIZES[origin.type]
    raw = np.frombuffer(
        model.data_of(origin),
        np.uint8,
        count=count // block * block_bytes,
        offset=origin.offset + first // block * block_bytes,
    )
    if origin.type == kind:
        return raw
    # One row a chunk: gguf works on groups of rows, and a chunk is already as small as a group should be.
    # Bits that are no sound number (a scale that is NaN) must not become numpy warnings but the error below.
    with np.errstate(all="ignore"):
        values = cast(Floats, decode_blocks(raw.reshape(1, -1), origin.type))
        largest = float(np.abs(values).max())
        limit = _LARGEST_BFLOAT16 if kind in (Type.BF16, Type.F32) else _LARGEST_FLOAT16
        # Written so that NaN, which compares false with everything, fails too.
        if not largest <= limit:
            raise StepFailed(
                f"{origin.name} of {model.path.name} holds {largest:g}, which {kind.name} cannot",
                code="weights-out-of-range",
                hint="use bfloat16 for weights beyond 65504; NaN or infinity mean a damaged source",
            )
        return np.ascontiguousarray(cast(NDArray[np.generic], encode_blocks(values, kind))).view(np.uint8)
