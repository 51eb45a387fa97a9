"""What is made of a load that failed, from the very texts that Triton, TensorRT and TensorRT-LLM have left in logs."""

from __future__ import annotations

import pytest

from tasks.trtllm.backend.load_failures import LOAD_FAILURES, known_load_failure

STATE = "unexpected error when creating modelInstanceState: "

TEXTS = [
    (
        "version-mismatch",
        "[TensorRT-LLM][ERROR] 6: The engine plan file is not compatible with this version of TensorRT, expecting "
        "library version 9.2.0.5 got 9.3.0.1, please rebuild.\n[TensorRT-LLM][ERROR] 2: [engine.cpp::"
        "deserializeEngine::1148] Error Code 2: Internal Error (Assertion engine->deserialize(start, size, allocator, "
        f"runtime) failed. )\nE0401 1 model.cc:1] {STATE}[TensorRT-LLM][ERROR] Assertion failed: "
        "Failed to deserialize cuda engine",
        "expecting library version 9.2.0.5 got 9.3.0.1",
    ),
    (
        "version-mismatch",
        "1: [stdArchiveReader.cpp::stdArchiveReaderInitCommon::47] Error Code 1: Serialization (Serialization "
        "assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current "
        "Version: 228, Serialized Engine Version: 237)",
        "Current Version: 228, Serialized Engine Version: 237",
    ),
    (
        "architecture-wrong",
        "6: The engine plan file is generated on an incompatible device, expecting compute 8.0 got compute 8.9, please "
        "rebuild.",
        "expecting compute 8.0 got compute 8.9",
    ),
    (
        "library-mix",
        "Not found: unable to load shared library: /opt/tritonserver/backends/tensorrtllm/libtriton_tensorrtllm.so: "
        "undefined symbol: _ZNK12tensorrt_llm8executor8Response11getErrorMsgB5cxx11Ev",
        "undefined symbol: _ZNK12tensorrt_llm8executor8Response11getErrorMsgB5cxx11Ev",
    ),
    (
        "library-mix",
        "unable to load shared library: libnvinfer_plugin_tensorrt_llm.so.9: cannot open shared object file: No such "
        "file or directory",
        "libnvinfer_plugin_tensorrt_llm.so.9",
    ),
    ("mpi-spawn", "mpi4py.MPI.Exception: MPI_ERR_SPAWN: could not spawn processes", "could not spawn processes"),
    (
        "world-size",
        f"{STATE}[TensorRT-LLM][ERROR] Assertion failed: mpiSize == tp * pp "
        "(/app/tensorrt_llm/cpp/tensorrt_llm/runtime/worldConfig.cpp:80)",
        "mpiSize == tp * pp",
    ),
    ("world-size", "MPI size 1 != TP size 4 * PP size 1 * CP Size 1", "MPI size 1 != TP size 4"),
    (
        "world-size",
        "Assertion failed: With communicationMode kLEADER, MPI worldSize is expected to be equal to tp*pp when "
        "participantIds are not specified",
        "expected to be equal to tp*pp",
    ),
    (
        "world-size",
        "Assertion failed: Number of GPUs per node 1 must be at least as large as TP (4) * PP (1)",
        "must be at least as large as TP (4)",
    ),
    (
        "kv-cache-small",
        f"{STATE}maxTokensInPagedKvCache (29184) must be large enough to process at least 1 sequence to completion "
        "(i.e. must be larger than beam_width (1) * tokensPerBlock (128) * maxBlocksPerSeq (272))",
        "(29184) must be large enough",
    ),
    (
        "kv-cache-small",
        "maxTokensInPagedKvCache must be large enough to process at least 1 sequence to completion (i.e. must be "
        "larger than beam_width * tokensPerBlock * maxBlocksPerSeq)",
        "must be large enough",
    ),
    ("kv-cache-small", "AssertionError: Impossible to fit in any sequence in kvCache", "Impossible to fit"),
    (
        "gpu-memory",
        f"{STATE}[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, mCudaStream->get()): out of "
        "memory (/app/tensorrt_llm/cpp/tensorrt_llm/runtime/tllmBuffers.h:112)",
        "cudaMallocAsync",
    ),
    ("gpu-memory", "RuntimeError: Executor creation failed due to insufficient GPU memory.", "insufficient GPU memory"),
    ("gpu-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1002.00 MiB.", "1002.00 MiB"),
    ("parameter-missing", f"{STATE}Cannot find parameter with name: tokenizer_dir", "tokenizer_dir"),
    (
        "parameter-missing",
        f"{STATE}[TensorRT-LLM][ERROR] Assertion failed: Both encoder and decoder model paths are empty",
        "Both encoder and decoder model paths are empty",
    ),
    (
        "parameter-missing",
        "Invalid gpt_model_type. Must be v1/inflight_batching/inflight_fused_batching.",
        "Invalid gpt_model_type",
    ),
    (
        "parameter-missing",
        "worker_path parameter is specified, but this is no longer supported. Please specify executor_worker_path "
        "instead to specify the location of the trtllmExecutorWorker executable.",
        "worker_path parameter is specified",
    ),
    (
        "engine-missing",
        f"{STATE}[TensorRT-LLM][ERROR] Assertion failed: Cannot find engine config file /engines/llama/config.json",
        "/engines/llama/config.json",
    ),
    ("engine-missing", "Assertion failed: Error opening engine file: /engines/llama/rank0.engine", "rank0.engine"),
    (
        "engine-unreadable",
        f"{STATE}[json.exception.out_of_range.403] key 'use_context_fmha_for_generation' not found",
        "use_context_fmha_for_generation",
    ),
    ("engine-unreadable", "Assertion failed: Failed to deserialize cuda engine.", "Failed to deserialize cuda engine"),
    (
        "tokenizer-missing",
        "Internal: HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/tokenizer'. "
        "Use `repo_type` argument if needed.",
        "'/tokenizer'",
    ),
    (
        "tokenizer-missing",
        "Internal: OSError: Repo id must use alphanumeric chars, '-', '_' or '.'. The name cannot start or end with "
        "'-' or '.' and the maximum length is 96: '${tokenizer_dir}'.",
        "${tokenizer_dir}",
    ),
    (
        "tokenizer-missing",
        "OSError: Qwen/Qwen2.5 is not a local folder and is not a valid model identifier listed on the hub",
        "Qwen/Qwen2.5",
    ),
    (
        "backend-missing",
        "Invalid argument: unable to find backend library for backend 'tensorrtllm', try specifying runtime on the "
        "model configuration.",
        "'tensorrtllm'",
    ),
    ("backend-missing", "Internal: ModuleNotFoundError: No module named 'tensorrt_llm'", "'tensorrt_llm'"),
]


@pytest.mark.parametrize(("code", "text", "said"), TEXTS)
def test_a_known_text_is_a_named_error_with_what_it_said(code: str, text: str, said: str) -> None:
    for error in (known_load_failure(f"load failed: {text}", ""), known_load_failure("load failed", f"I1 a\n{text}\n")):
        assert error is not None and error.code == code
        assert said in error.message and error.hint
        assert not error.retryable


def test_every_row_of_the_table_has_a_text() -> None:
    assert {failure.code for failure in LOAD_FAILURES} == {code for code, _, _ in TEXTS}


def test_what_a_healthy_server_logs_is_no_failure() -> None:
    log = """
[TensorRT-LLM][WARNING] Cannot find parameter with name: batch_scheduler_policy
[TensorRT-LLM][INFO] MPI size: 4, rank: 0
[TensorRT-LLM][INFO] [MemUsageChange] Allocated 0.05 GiB for max tokens in paged KV cache (1152).
W1125 01:00:00.000000 12 metrics.cc:1] "out of memory is not what this line tells of"
I1125 01:00:00.000000 12 model_lifecycle.cc:1] "successfully loaded 'tensorrt_llm'"
"""
    assert known_load_failure("Internal: something else", log) is None


def test_the_answer_counts_before_the_log_that_others_share() -> None:
    error = known_load_failure("Failed to deserialize cuda engine.", "torch.OutOfMemoryError: CUDA out of memory.")
    assert error is not None and error.code == "engine-unreadable"
