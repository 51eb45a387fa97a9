"""What the two TensorRT-LLM kinds share: where they are built and served, and how much memory a release takes."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from tasks.kinds.build_machine import BuildMachine
from tasks.models.recipe import LlmApiRecipe, TrtEngineRecipe
from tasks.models.spec import Model
from tasks.store.identity import Identity
from tasks.trtllm.kv_cache import WORKSPACE_BYTES, gpu_memory_bytes, kv_cache_tokens
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.serving import UPSTREAM_ONLY, LoraCache, TensorRtServing

RecipeOfKind = TypeVar("RecipeOfKind", TrtEngineRecipe, LlmApiRecipe)


class TensorRtLlmKind(Generic[RecipeOfKind]):
    """The base of both kinds. `parameters` is `serving.tensorrt_llm` of the model's file, or its defaults."""

    takes_adapters = False
    """Whether requests can name a LoRA adapter, which then needs memory of its own."""

    def __init__(self, model: Model, recipe: RecipeOfKind) -> None:
        self.model = model
        self.recipe = recipe
        self.parameters = model.serving.tensorrt_llm or TensorRtServing()

    def pool(self) -> str:
        return f"build-{self.recipe.runtime.arch}"

    def build_machine(self) -> BuildMachine:
        runtime = self.recipe.runtime
        return BuildMachine(
            gpus=self.recipe.world_size,
            product=runtime.gpu,
            tensorrt_llm=runtime.tensorrt_llm,
            image=runtime.image or "",
        )

    def draft_model(self) -> Model | None:
        return None

    def gpus(self) -> tuple[int, ...]:
        return tuple(range(self.recipe.world_size))

    def repository_identity(self, engine: Identity) -> Identity:
        from tasks.triton.repository import REPOSITORY_VERSION, serving_code_digest

        runtime = self.recipe.runtime
        return Identity.of(
            "assemble",
            REPOSITORY_VERSION,
            inputs={"engine": engine},
            fields={
                "kind": self.recipe.kind,
                "serving": {
                    **self.model.serving.model_dump(mode="json", exclude={"aliases", "tensorrt_llm"}),
                    "tensorrt_llm": self.parameters.model_dump(mode="json", exclude=set(UPSTREAM_ONLY)),
                },
                "code": f"sha256:{serving_code_digest()}",
                "runtime": {
                    "tensorrt_llm": runtime.tensorrt_llm,
                    # The size of the KV cache follows from it.
                    "gpu_memory_bytes": self._gpu_memory_bytes,
                },
            },
        )

    def cache_tokens(self, limits: EngineLimits) -> int | None:
        """Tokens of the KV cache. None if the model's file leaves it to a fraction of the free memory.

        It holds all slots with all their context, and at least one sequence of the engine's full length, without which
        the backend does not load. Raises UsageError if the GPU is too small or unknown.
        """
        parameters, serving, runtime = self.parameters, self.model.serving, self.recipe.runtime
        if parameters.kv_cache_tokens is not None:
            return parameters.kv_cache_tokens
        if parameters.kv_cache_bytes is not None:
            return parameters.kv_cache_bytes // limits.cache_bytes_per_token
        if parameters.kv_cache_fraction is not None:
            return None

        def blocks(tokens: int) -> int:
            return math.ceil(tokens / limits.tokens_per_block) * limits.tokens_per_block * parameters.max_beam_width

        window = max(parameters.attention_window, default=limits.max_seq_len)
        sequence = blocks(min(limits.max_seq_len, window))
        # The engine runs no more requests at once than it was built for. Requests that wait need no cache.
        running = min(serving.slots, limits.max_batch_size)
        return kv_cache_tokens(
            bytes_per_token=limits.cache_bytes_per_token,
            weight_bytes=limits.weight_bytes,
            wanted_tokens=max(sequence, running * blocks(min(serving.context_tokens, limits.max_seq_len))),
            gpu=runtime.gpu,
            memory_bytes=runtime.gpu_memory_bytes,
            sequence_tokens=sequence,
            lora_fraction=self._lora_fraction,
        )

    def memory_bytes(self, engine_bytes: int, limits: bytes) -> int:
        """Weights, workspace, KV cache and the cache of LoRA adapters, in bytes on each GPU of the release."""
        known = EngineLimits.from_json(limits)
        taken = known.weight_bytes + WORKSPACE_BYTES
        memory = self._gpu_memory_bytes or taken
        if (tokens := self.cache_tokens(known)) is not None:
            taken += tokens * known.cache_bytes_per_token
        else:
            taken += int((self.parameters.kv_cache_fraction or 0) * max(0, memory - taken))
        return taken + int(self._lora_fraction * max(0, memory - taken))

    @property
    def _gpu_memory_bytes(self) -> int | None:
        runtime = self.recipe.runtime
        return runtime.gpu_memory_bytes or gpu_memory_bytes(runtime.gpu)

    @property
    def _lora_fraction(self) -> float:
        """The share of the memory beside the KV cache that adapters get; 0 if the model takes no adapters."""
        return (self.parameters.lora_cache or LoraCache()).gpu_fraction if self.takes_adapters else 0.0
