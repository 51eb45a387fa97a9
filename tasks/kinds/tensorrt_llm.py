"""What the two TensorRT-LLM kinds share: where they are built and served, and how much memory a release takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

from infra.errors import UsageError
from tasks.kinds.answers import require_one
from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.protocol import PlannedCache, PlannedMemory, by_role
from tasks.kinds.reference import Reference, TransformersReference
from tasks.kinds.room import what_fits
from tasks.models.recipe import LlmApiRecipe, TrtEngineRecipe
from tasks.models.spec import Model
from tasks.store.identity import Identity
from tasks.triton.serving_code import REPOSITORY_VERSION, serving_code_digest
from tasks.trtllm.kv_cache import WORKSPACE_BYTES, cache_share, kv_cache_tokens
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.planned_limits import planned_limits
from tasks.trtllm.prequantized import require_mergeable, require_taken
from tasks.trtllm.products import gpu_memory_bytes
from tasks.trtllm.serving import UPSTREAM_ONLY, LoraCache, TensorRtServing
from tasks.trtllm.weights_fit import require_parallel
from tasks.weights.facts import WeightsFacts

_ADAPTERS_VERSION = 1
_NONE: Mapping[str, Identity] = {}

RecipeOfKind = TypeVar("RecipeOfKind", TrtEngineRecipe, LlmApiRecipe)


class TensorRtLlmKind(ABC, Generic[RecipeOfKind]):
    """The base of both kinds. `parameters` is `serving.tensorrt_llm` of the model's file, or its defaults."""

    reads_config: ClassVar[bool] = True
    takes_adapters = False
    """Whether requests can name a LoRA adapter, which then needs memory of its own."""

    def __init__(self, model: Model, recipe: RecipeOfKind) -> None:
        self.model = model
        self.recipe = recipe
        self.parameters = model.serving.tensorrt_llm or TensorRtServing()

    def require_weights(self, facts: WeightsFacts) -> None:
        require_parallel(self.recipe, facts)
        require_taken(self.recipe, facts)
        if self.model.adapter is not None:
            require_mergeable(facts)
        if facts.has_template is not None:
            require_one(self.model.serving, has_one=facts.has_template)
        if problem := self._too_large(facts):
            raise UsageError(
                problem,
                hint=what_fits(self.model, self.recipe, lambda other: self._of(other)._has_room(facts)),
                code="gpu-too-small",
            )

    @abstractmethod
    def _of(self, model: Model) -> TensorRtLlmKind[RecipeOfKind]:
        """The same kind, of a model whose recipe is changed."""

    def _has_room(self, facts: WeightsFacts) -> bool:
        try:
            require_parallel(self.recipe, facts)
            require_taken(self.recipe, facts)
        except UsageError:
            return False
        return not self._too_large(facts)

    def _too_large(self, facts: WeightsFacts) -> str:
        """Why no GPU of the recipe's product can hold the release. Empty if one can, or if nobody knows the sizes."""
        planned, gpu = self._planned(facts), self.recipe.runtime.gpu
        if isinstance(planned, UsageError):
            return planned.message
        if planned is None or planned.capacity is None or planned.total <= planned.capacity:
            return ""
        return (
            f"a release takes {planned.total >> 20} MiB of each GPU, {planned.weights >> 20} MiB of them weights and "
            f"{planned.cache >> 20} MiB KV cache, and a {gpu} has {planned.capacity >> 20} MiB"
        )

    def planned_memory(self, facts: WeightsFacts) -> PlannedMemory | None:
        planned = self._planned(facts)
        if isinstance(planned, UsageError):
            raise planned
        return planned

    def _planned(self, facts: WeightsFacts) -> PlannedMemory | UsageError | None:
        if not _sizes_known(facts):
            return None
        limits = self._planned_limits(facts)
        try:
            total = self.memory_bytes(0, limits.to_json().encode())
            cache = self.cache_bytes(limits)
        except UsageError as error:
            if error.code != "gpu-too-small":
                raise
            return error
        own = limits.weight_bytes + self._running(limits) * limits.state_bytes + WORKSPACE_BYTES
        cache = max(0, total - own) if cache is None else cache  # a share of the memory
        return PlannedMemory(limits.weight_bytes, cache, total - limits.weight_bytes - cache, self._gpu_memory_bytes)

    def planned_cache(self, facts: WeightsFacts) -> PlannedCache:
        """Its tokens are known where the recipe leaves the weights as they are. Raises as `cache_tokens` does."""
        limits = self._planned_limits(facts)
        planned = PlannedCache(limits.cache_bytes_per_token, notes=tuple(self._notes(facts, limits)))
        if not _sizes_known(facts) or self.recipe.quantization != "none":
            return planned
        return replace(planned, tokens=self.cache_tokens(limits), fraction=self.cache_fraction(limits))

    def _planned_limits(self, facts: WeightsFacts) -> EngineLimits:
        """With what guesses its tokens, which lies in the same folder."""
        limits = planned_limits(self.recipe, facts)
        return limits if facts.draft is None else limits.with_draft(planned_limits(self.recipe, facts.draft))

    def _notes(self, facts: WeightsFacts, limits: EngineLimits) -> Iterator[str]:
        recipe, serving = self.recipe, self.model.serving
        if facts.context is not None and recipe.max_seq_len > facts.context:
            yield f"the model was made for {facts.context} tokens, and max_seq_len is {recipe.max_seq_len}"
        if recipe.max_batch_size > serving.slots:
            yield f"max_batch_size is {recipe.max_batch_size}, and serving.slots lets {serving.slots} requests run"
        if serving.slots > recipe.max_batch_size:
            yield f"serving.slots is {serving.slots}, and max_batch_size lets {recipe.max_batch_size} requests run"
        tokens = self.cache_tokens(limits) if _sizes_known(facts) else None
        each = min(serving.context_tokens, limits.max_seq_len)
        if tokens is not None and tokens < self._running(limits) * each:
            yield (
                f"the KV cache has room for {tokens // each} requests of {each} tokens at once, and "
                f"{self._running(limits)} may run: the others wait"
            )

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

    def reference(self) -> Reference:
        return TransformersReference.of(self.model, on_gpu=True)

    def gpus(self) -> tuple[int, ...]:
        return tuple(range(self.recipe.world_size))

    def repository_identity(self, engine: Identity, adapters: Mapping[str, Identity] = _NONE) -> Identity:
        runtime, given = self.recipe.runtime, self.recipe.speculation
        decoded = None if given is None else given.decoded
        return Identity.of(
            "assemble",
            REPOSITORY_VERSION,
            inputs={"engine": engine, **by_role(adapters)},
            fields={
                **({"adapters": _ADAPTERS_VERSION} if adapters else {}),
                **({"speculation": decoded} if decoded is not None else {}),
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
        """Tokens of the KV cache. None if a fraction of the free memory decides it: `cache_fraction`.

        It holds all slots with all their context, and at least one sequence of the engine's full length, without which
        the backend does not load. Raises UsageError if the GPU is too small or unknown.
        """
        parameters, serving, runtime = self.parameters, self.model.serving, self.recipe.runtime
        if parameters.kv_cache_tokens is not None:
            return parameters.kv_cache_tokens
        if parameters.kv_cache_bytes is not None and limits.cache_bytes_per_token != 0:
            if limits.cache_bytes_per_token is None:
                raise UsageError(
                    "how many tokens kv_cache_bytes are is not known: the layers of this model are not understood",
                    hint="give serving.tensorrt_llm.kv_cache_tokens or kv_cache_fraction instead",
                    code="cache-unknown",
                )
            return parameters.kv_cache_bytes // limits.cache_bytes_per_token
        if parameters.kv_cache_fraction is not None or limits.cache_bytes_per_token is None:
            return None

        def blocks(tokens: int) -> int:
            return math.ceil(tokens / limits.tokens_per_block) * limits.tokens_per_block * parameters.max_beam_width

        window = max(parameters.attention_window, default=limits.max_seq_len)
        sequence = blocks(min(limits.max_seq_len, window))
        running = self._running(limits)
        return kv_cache_tokens(
            bytes_per_token=limits.cache_bytes_per_token,
            weight_bytes=limits.weight_bytes + running * limits.state_bytes,
            wanted_tokens=max(sequence, running * blocks(min(serving.context_tokens, limits.max_seq_len))),
            gpu=runtime.gpu,
            memory_bytes=runtime.gpu_memory_bytes,
            sequence_tokens=sequence,
            lora_fraction=self._lora_fraction,
        )

    def cache_bytes(self, limits: EngineLimits) -> int | None:
        """Bytes of these tokens on the GPU that holds the most. None if they are not known."""
        tokens, each = self.cache_tokens(limits), limits.cache_bytes_per_token
        return None if tokens is None or each is None else tokens * each

    def cache_fraction(self, limits: EngineLimits) -> float | None:
        """The fraction of the free memory for a KV cache without a size in tokens.

        Where nobody knows what a token of the model takes, it is a share, and not a number that would be wrong. Raises
        UsageError as `cache_tokens` does.
        """
        if self.parameters.kv_cache_fraction is not None or self.cache_tokens(limits) is not None:
            return self.parameters.kv_cache_fraction
        return self._cache_share(limits)

    def served(self, limits: EngineLimits) -> TensorRtServing:
        """`parameters` as a release gets them."""
        return self.parameters.model_copy(update={"kv_cache_fraction": self.cache_fraction(limits)})

    def memory_bytes(self, engine_bytes: int, limits: bytes) -> int:
        """Weights, workspace, KV cache and the cache of LoRA adapters, in bytes on each GPU of the release."""
        known = EngineLimits.from_json(limits)
        taken = known.weight_bytes + self._running(known) * known.state_bytes + WORKSPACE_BYTES
        memory = self._gpu_memory_bytes or taken
        if (cache := self.cache_bytes(known)) is not None:
            taken += cache
        else:
            fraction = self.parameters.kv_cache_fraction or self._cache_share(known)
            taken += int(fraction * max(0, memory - taken))
        return taken + int(self._lora_fraction * max(0, memory - taken))

    def _running(self, limits: EngineLimits) -> int:
        """Requests that run at once: no more than the engine was built for. Those that wait need no memory."""
        return min(self.model.serving.slots, limits.max_batch_size)

    def _cache_share(self, limits: EngineLimits) -> float:
        runtime = self.recipe.runtime
        return cache_share(weight_bytes=limits.weight_bytes, gpu=runtime.gpu, memory_bytes=runtime.gpu_memory_bytes)

    @property
    def _gpu_memory_bytes(self) -> int | None:
        runtime = self.recipe.runtime
        return runtime.gpu_memory_bytes or gpu_memory_bytes(runtime.gpu)

    @property
    def _lora_fraction(self) -> float:
        """The share of the memory beside the KV cache that adapters get; 0 if the model takes no adapters."""
        return (self.parameters.lora_cache or LoraCache()).gpu_fraction if self.takes_adapters else 0.0


def _sizes_known(facts: WeightsFacts) -> bool:
    return facts.bytes is not None and (facts.draft is None or facts.draft.bytes is not None)
