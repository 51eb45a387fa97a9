"""How Triton serves an engine of TensorRT-LLM: the part of a model's file that no other kind has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.frozen import Spec

_Window = Annotated[int, Field(ge=1)]
_Device = Annotated[int, Field(ge=0)]


class TensorRtServing(Spec):
    """Parameters of the backend. None or empty: what the version's backend does by itself."""

    decoupled: bool = Field(default=False, description="Needed for streams.")
    max_beam_width: int = Field(default=1, ge=1)
    batching_strategy: Literal["inflight_fused_batching", "inflight_batching", "v1"] = "inflight_fused_batching"
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] | None = None
    kv_cache_tokens: int | None = Field(default=None, ge=1)
    kv_cache_fraction: float | None = Field(
        default=None, gt=0, le=1, description="Of the GPU memory that is free once the engine is loaded."
    )
    kv_cache_reuse: bool | None = None
    host_cache_bytes: int | None = Field(default=None, ge=0)
    attention_window: tuple[_Window, ...] = Field(default=(), description="Tokens; several are one a layer, repeated.")
    chunked_context: bool | None = None
    exclude_input_in_output: bool | None = None
    accumulate_tokens: bool = False
    queue_delay_microseconds: int = Field(default=0, ge=0)
    queue_size: int | None = Field(default=None, ge=0, description="Requests that may wait; 0: without limit.")
    gpu_device_ids: tuple[_Device, ...] = ()
    preprocessing_instances: int = Field(default=1, ge=1)
    postprocessing_instances: int = Field(default=1, ge=1)
    bls_instances: int = Field(default=1, ge=1)
    extra: dict[str, dict[str, str]] = Field(
        default={}, description="Further placeholders of the version's templates, by model."
    )
