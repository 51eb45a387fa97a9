"""The size of a release's KV cache if its file sets none: a fixed number of tokens.

A fraction of the free memory would give a candidate beside a live release another cache than it has alone.
"""

from __future__ import annotations

import math

from infra.errors import UsageError
from tasks.trtllm.products import gpu_memory_bytes, meant

SHARE_ALONE = 0.9
"""The share of a GPU for a release that cannot stand beside another. The rest is for driver, contexts and fragments;
the backend's own default is the same."""

SHARE_BESIDE = SHARE_ALONE / 2
"""The share of a GPU for a release that stands beside another."""

WORKSPACE_BYTES = 3 * 2**30
"""Beside weights and cache on each GPU. An estimate: 0.5 GiB for the CUDA context and libraries, 1 to 2 GiB for the
activations of 8192 tokens in engines of 7 to 70 billion parameters, the rest for logits, sampling and NCCL."""


def cache_share(*, weight_bytes: int, gpu: str, memory_bytes: int | None = None) -> float:
    """The fraction of the memory that weights leave free, for a cache of which nobody knows what a token takes.

    With it the release has SHARE_BESIDE of the GPU, or SHARE_ALONE if that leaves the cache less than a tenth of it.
    Raises UsageError: `gpu-unknown`, `gpu-too-small`.
    """
    memory = _memory(gpu, memory_bytes)
    for share in (SHARE_BESIDE, SHARE_ALONE):
        room = int(memory * share) - weight_bytes - WORKSPACE_BYTES
        if room >= memory // 10:
            return math.floor(1000 * room / (memory - weight_bytes - WORKSPACE_BYTES)) / 1000
    raise _too_small(weight_bytes, gpu, memory, "a KV cache")


def kv_cache_tokens(
    *,
    bytes_per_token: int,
    weight_bytes: int,
    wanted_tokens: int,
    gpu: str,
    memory_bytes: int | None = None,
    sequence_tokens: int = 1,
    lora_fraction: float = 0.0,
) -> int:
    """Tokens of the KV cache: `wanted_tokens`, or as many as fit into SHARE_BESIDE of the GPU.

    If that holds not even one sequence of `sequence_tokens`, as many as fit into SHARE_ALONE. Such a release cannot
    stand beside another, and the roll-out asks for --recreate. All numbers are those of one GPU. `memory_bytes` counts
    for more than the product in `gpu`. The release's cache of adapters, `lora_fraction` of the memory that the rest of
    it leaves free, counts as part of the release. Raises UsageError: `gpu-unknown`, `gpu-too-small`.
    """
    memory = _memory(gpu, memory_bytes)
    for share in (SHARE_BESIDE, SHARE_ALONE):
        # So much that this and the adapters' fraction of the rest are the share.
        taken = int(memory * max(0.0, share - lora_fraction) / (1 - lora_fraction))
        room = taken - weight_bytes - WORKSPACE_BYTES
        if room >= sequence_tokens * bytes_per_token:
            # Models without attention keep nothing by token.
            return min(wanted_tokens, room // bytes_per_token) if bytes_per_token else wanted_tokens
    raise _too_small(weight_bytes, gpu, memory, f"a sequence of {sequence_tokens} tokens")


def _memory(gpu: str, memory_bytes: int | None) -> int:
    memory = memory_bytes or gpu_memory_bytes(gpu)
    if memory is None:
        raise UsageError(
            f"the memory of a '{gpu}' is not known, and the size of the KV cache follows from it",
            hint=f"{meant(gpu)}, or serving.tensorrt_llm.kv_cache_tokens",
            code="gpu-unknown",
        )
    return memory


def _too_small(weight_bytes: int, gpu: str, memory: int, needed: str) -> UsageError:
    return UsageError(
        f"{weight_bytes >> 20} MiB of weights leave a {gpu} with {memory >> 20} MiB no room for {needed}",
        hint="lower max_seq_len, or divide the model over more GPUs with tp_size",
        code="gpu-too-small",
    )
