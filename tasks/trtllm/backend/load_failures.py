"""Why a model did not load: one named error, with a hint, for each known failure of Triton and TensorRT-LLM.

Some failures are in Triton's answer to the load. What the engine's workers print is in the server's log alone.
Source of the texts: the C++ backend and TensorRT-LLM from 0.8 on, and the logs in their issues.
"""

from __future__ import annotations

import re

from infra.errors import TritonError
from tasks.trtllm.known_failures import Failure, first_known

_REBUILD = "rebuild the model for what this node has: recipe.runtime of its file, or a node with the engine's own image"

# The first match counts, so the particular comes before the general. Codes are those of `tools.failures` where the
# reason is the same.
LOAD_FAILURES = (
    Failure(
        "version-mismatch",
        r"(The engine plan file is not compatible with this version of TensorRT[^\n]*"
        r"|Serialization assertion stdVersionRead == [^\n]*|Version tag does not match[^\n]*)",
        "the engine is of another TensorRT: {0}",
        _REBUILD,
    ),
    Failure(
        "architecture-wrong",
        r"(The engine plan file is generated on an incompatible device[^\n]*|no kernel image is available[^\n]*)",
        "the engine is for GPUs of another architecture: {0}",
        _REBUILD,
    ),
    Failure(
        "library-mix",
        r"(undefined symbol: [^\n]*|[^\n]*cannot open shared object file[^\n]*"
        r"|CUDA driver version is insufficient[^\n]*)",
        "libraries on this node do not fit each other: {0}",
        "the backend, TensorRT-LLM, TensorRT and the driver must be those of one image; see what LD_LIBRARY_PATH finds "
        "before the image's own",
    ),
    Failure(
        "mpi-spawn",
        r"(MPI_ERR_SPAWN[^\n]*|There are not enough slots available in the system[^\n]*"
        r"|mpirun was unable to find[^\n]*)",
        "MPI did not start the engine's workers: {0}",
        "look at OPAL_PREFIX and PATH of the node, and at the cores that its container has",
    ),
    Failure(
        "world-size",
        r"(Assertion failed: mpiSize == tp \* pp[^\n]*|MPI size \d+ != TP size[^\n]*"
        r"|With communicationMode kLEADER, MPI worldSize is expected[^\n]*|Number of GPUs per node \d+ must be[^\n]*"
        r"|Detect \d+ GPUs, the GPU number is incompatible[^\n]*"
        r"|Cannot instantiate Generator for engine built for[^\n]*)",
        "the engine wants another number of GPUs or processes: {0}",
        "an engine of several GPUs needs a node with that many; `enginehouse plan` says how it is served",
    ),
    Failure(
        "kv-cache-small",
        r"(maxTokensInPagedKvCache (?:\(\d+\) )?must be large enough[^\n]*|Impossibl?e to fit in any sequence[^\n]*)",
        "the KV cache holds not even one sequence: {0}",
        "raise serving.tensorrt_llm.kv_cache_tokens, or lower the recipe's max_seq_len",
    ),
    Failure(
        "gpu-memory",
        r"([^\n]*[Oo]ut of memory[^\n]*|[^\n]*OutOfMemory[^\n]*|[^\n]*insufficient GPU memory[^\n]*"
        r"|Requested amount of GPU memory[^\n]*)",
        "the GPU has too little memory: {0}",
        "lower serving.tensorrt_llm.kv_cache_tokens, or roll out with --recreate: the live release then goes first",
    ),
    Failure(
        "parameter-missing",
        r"(Cannot find parameter with name: [^\n]*|Both encoder and decoder model paths are empty[^\n]*"
        r"|Invalid gpt_model_type[^\n]*|worker_path parameter is specified[^\n]*)",
        "the configuration is for another TensorRT-LLM than the node's: {0}",
        "assemble it for the node's version: recipe.runtime.tensorrt_llm of the model's file",
    ),
    Failure(
        "engine-missing",
        r"(Cannot find engine config file[^\n]*|Error opening engine file[^\n]*)",
        "the engine's files are not where the configuration says: {0}",
        "the node places them when it loads a release; see whether its folder was moved or emptied",
    ),
    Failure(
        "engine-unreadable",
        r"(\[json\.exception\.[^\n]*|[^\n]*Tensor names in engine are not the same as expected[^\n]*"
        r"|[^\n]*Failed to deserialize cuda engine[^\n]*)",
        "the node's TensorRT-LLM does not understand the engine: {0}",
        "only the version that built an engine reads it; " + _REBUILD,
    ),
    Failure(
        "tokenizer-missing",
        r"([^\n]*HFValidationError[^\n]*|[^\n]*Repo id must [^\n]*|[^\n]*is not a valid model identifier[^\n]*"
        r"|[^\n]*Can't load tokenizer for[^\n]*|[^\n]*Couldn't instantiate the backend tokenizer[^\n]*"
        r"|[^\n]*Unexpected tokenizer type[^\n]*|[^\n]*Incorrect path_or_model_id[^\n]*)",
        "there is no tokenizer where the configuration says: {0}",
        "the snapshot must hold the tokenizer's files, and the configuration an absolute path on the node",
    ),
    Failure(
        "backend-missing",
        r"(unable to find backend library for backend [^\n]*|unable to find '[^']*/model\.py'[^\n]*"
        r"|No module named 'tensorrt_llm[^\n]*)",
        "this node's Triton has no TensorRT-LLM: {0}",
        "run the node in an image of NVIDIA's with `trtllm` in its name, and set ENGINEHOUSE_TRITON=/opt/tritonserver",
    ),
)

# Lines that hold the same words when all is well: the backend warns of each parameter that it does not find.
_HARMLESS = re.compile(r"^(?:\[TensorRT-LLM\]\[(?:WARNING|INFO|DEBUG|TRACE)\]|[IW]\d{4} ).*$", re.MULTILINE)


def known_load_failure(message: str, log: str) -> TritonError | None:
    """The error for the first known failure in Triton's answer, `message`, or else in the server's `log`.

    `log` is what the server printed since the load began; models that load at the same time share it. Returns None if
    neither text is known.
    """
    for text in (message, _HARMLESS.sub("", log)):
        if (known := first_known(LOAD_FAILURES, text)) is not None:
            failure, text_found = known
            return TritonError(
                failure.message.format(text_found), hint=failure.hint, code=failure.code, retryable=failure.retryable
            )
    return None
