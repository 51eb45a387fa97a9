"""`serving.tensorrt_llm` of a model's file: how Triton serves a model of the TensorRT-LLM kinds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from infra.frozen import Spec

_Window = Annotated[int, Field(ge=1)]
_Device = Annotated[int, Field(ge=0)]
_Fraction = Annotated[float, Field(gt=0, le=1)]
_Folder = Annotated[str, StringConstraints(pattern=r"^/")]

_MAX_INT32 = 2**31 - 1

UPSTREAM_ONLY = frozenset(
    {
        "exclude_input_in_output",
        "accumulate_tokens",
        "preprocessing_instances",
        "postprocessing_instances",
        "bls_instances",
        "extra",
    }
)
"""Fields that only the upstream layout uses."""


class LoraCache(Spec):
    """Room for LoRA adapters on the GPU and the host. Sizes are ranks, as the backend counts them."""

    optimal_adapter_size: int = Field(default=8, ge=1, description="The rank that most adapters have.")
    max_adapter_size: int = Field(default=64, ge=1, description="The largest rank.")
    gpu_fraction: _Fraction = Field(default=0.05, description="Of the GPU memory that is free after the KV cache.")
    host_bytes: int = Field(default=2**30, ge=0, description="On the host.")
    prefetch_folder: _Folder | None = Field(
        default=None, description="On the node; adapters that the upstream layout loads at the start."
    )


class TensorRtServing(Spec):
    """Parameters of the backend. A field that is None or empty leaves its parameter to the version's backend.

    The KV cache is the exception: the backend would take 0.9 of the memory that happens to be free, so
    `tasks.trtllm.kv_cache` computes a size. The upstream layout gets only what the file sets.
    """

    decoupled: bool = Field(default=True, description="Needed for streams.")
    max_beam_width: int = Field(default=1, ge=1, description="At most that of the recipe.")
    batching_strategy: Literal["inflight_fused_batching", "inflight_batching", "v1"] = Field(
        default="inflight_fused_batching", description="How requests come together, as the backend names it."
    )
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] | None = Field(
        default=None, description="Whether a request that runs may have to begin anew where the cache is full."
    )
    kv_cache_tokens: int | None = Field(default=None, ge=1, le=_MAX_INT32, description="None: computed from the GPU.")
    kv_cache_bytes: int | None = Field(default=None, ge=1, description="On each GPU; instead of a number of tokens.")
    kv_cache_fraction: _Fraction | None = Field(
        default=None,
        description="Of the GPU memory that is free once the engine is loaded. Beside a size the smaller counts; alone "
        "it leaves no room for a second release, which then needs --recreate.",
    )
    kv_cache_reuse: bool | None = Field(default=None, description="Of equal beginnings of prompts.")
    host_cache_bytes: int | None = Field(default=None, ge=0, description="Room on the host for offloaded KV blocks.")
    attention_window: tuple[_Window, ...] = Field(default=(), description="Tokens; several are one a layer, repeated.")
    sink_tokens: int | None = Field(default=None, ge=0, description="First tokens that no attention window drops.")
    chunked_context: bool | None = Field(default=None, description="Whether a long prompt goes through in parts.")
    exclude_input_in_output: bool | None = Field(
        default=None, description="Of the upstream layout; natively each request says it."
    )
    accumulate_tokens: bool = Field(default=False, description="Of the upstream layout; natively it always holds.")
    queue_delay_microseconds: int = Field(default=0, ge=0, description="How long Triton may wait for more requests.")
    queue_size: int | None = Field(default=None, ge=0, description="Requests that may wait; 0: without limit.")
    gpu_device_ids: tuple[tuple[_Device, ...], ...] = Field(default=(), description="GPUs of each engine instance.")
    decoding_mode: Literal["top_k", "top_p", "top_k_top_p", "beam_search"] | None = Field(
        default=None, description="How tokens are chosen. None: by the engine and the request."
    )
    multi_block_mode: bool | None = Field(default=None, description="Several blocks of the GPU for a long context.")
    context_fmha_fp32_acc: bool | None = Field(default=None, description="Attention to prompts adds up in float32.")
    gpu_weights_fraction: _Fraction | None = Field(default=None, description="Of an engine with weight streaming.")
    lora_cache: LoraCache | None = Field(default=None, description="Room for adapters. None: as the backend has it.")
    guided_decoding: Literal["xgrammar"] | None = Field(default=None, description="What keeps answers to a guide.")
    xgrammar_tokenizer_info: _Folder | None = Field(
        default=None, description="File on the node, which xgrammar made of the tokenizer; engines need it."
    )
    llm_instances: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="Processes with tokenizer and contract; native layout. None: by the node's cores.",
    )
    preprocessing_instances: int = Field(default=1, ge=1, description="Of the upstream layout.")
    postprocessing_instances: int = Field(default=1, ge=1, description="Of the upstream layout.")
    bls_instances: int = Field(default=1, ge=1, description="Of the upstream layout.")
    extra: dict[str, dict[str, str]] = Field(
        default={}, description="Further placeholders of NVIDIA's templates, by model; of the upstream layout."
    )

    @model_validator(mode="after")
    def _is_of_one_mind(self) -> Self:
        if self.kv_cache_tokens is not None and self.kv_cache_bytes is not None:
            raise ValueError("the KV cache has a size in tokens and one in bytes: give one of them")
        if self.xgrammar_tokenizer_info is not None and self.guided_decoding is None:
            raise ValueError("xgrammar_tokenizer_info is of no use without guided_decoding")
        return self
