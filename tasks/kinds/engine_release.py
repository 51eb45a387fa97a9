"""The models of a release of kind `trt-engine`: from the model's file and what its engine can do."""

from __future__ import annotations

import math
from pathlib import Path

from tasks.models.spec import Model
from tasks.serving.backend_inputs import ALWAYS_SENT, GUIDES, READ, SENT, input_name
from tasks.serving.settings import Sampling, ServingSettings
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.compatibility import CalledTensor, Calls, check_compatibility
from tasks.triton.config import ENGINE_FOLDER, LLM, RELEASE, TENSORRT_LLM, llm_config, release_config
from tasks.triton.protobuf import parse_config
from tasks.triton.repository import TOKENIZER_FOLDER, write_release
from tasks.trtllm.kv_cache import WORKSPACE_BYTES, gpu_memory_bytes, kv_cache_tokens
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.recipe import LlmApiRecipe, TrtEngineRecipe
from tasks.trtllm.serving import LoraCache, TensorRtServing
from tasks.trtllm.serving_rules import check_engine


def write_engine_release(output: Path, model: Model, limits: EngineLimits, tokenizer: str = TOKENIZER_FOLDER) -> None:
    """Fill `output` with `tensorrt_llm`, `llm` and `release`, after checking that they agree.

    `tokenizer` is a folder inside the version folder of `llm`, or absolute. Raises UsageError.
    """
    recipe, parameters = _recipe(model), _parameters(model)
    tokens = cache_tokens(model, limits)
    # The engine of `enginehouse assemble` need not be one of the recipe.
    check_engine(
        parameters,
        tokens,
        max_beam_width=limits.max_beam_width,
        max_seq_len=limits.max_seq_len,
        paged_kv_cache=limits.paged_kv_cache,
        paged_context_fmha=limits.paged_context_fmha,
    )
    if parameters.kv_cache_reuse is None and not limits.paged_context_fmha:
        # From 0.19 on the backend reuses by itself, which this engine cannot.
        parameters = parameters.model_copy(update={"kv_cache_reuse": False})
    engine = tensorrt_llm_config(
        recipe.runtime.version,
        parameters,
        engine_folder=ENGINE_FOLDER,
        max_batch_size=model.serving.slots,
        kv_cache_tokens=tokens,
        logits_type=limits.logits_type,
    )
    serving = model.serving
    settings = ServingSettings(
        engine="tensorrt_llm",
        engine_path=tokenizer,
        slots=serving.slots,
        context_tokens=min(serving.context_tokens, limits.max_seq_len),
        chat_template=serving.chat_template,
        request_timeout_s=serving.request_timeout_s,
        tensorrt_llm=recipe.runtime.tensorrt_llm,
        max_input_tokens=limits.max_input_len,
        max_beam_width=parameters.max_beam_width,
        decoupled=parameters.decoupled,
        guided_decoding=parameters.guided_decoding is not None,
        sampling=Sampling(**serving.defaults.model_dump(exclude_none=True)),
    )
    configs = {
        TENSORRT_LLM: engine,
        LLM: llm_config(instances=parameters.llm_instances, calls=TENSORRT_LLM),
        RELEASE: release_config(),
    }
    check_compatibility(
        {name: parse_config(text) for name, text in configs.items()},
        _calls(settings.tensorrt_llm, guided=settings.guided_decoding),
    )
    write_release(output, settings, instances=parameters.llm_instances, tensorrt_llm=engine)


def cache_tokens(model: Model, limits: EngineLimits) -> int | None:
    """Tokens of the KV cache; None where the model's file leaves it to a fraction of what is free. Raises UsageError.

    Room for all slots with all their context, and for one sequence as long as the engine takes it: without that the
    backend does not load.
    """
    recipe, parameters, serving = _recipe(model), _parameters(model), model.serving
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
    # The engine runs no more requests at once than it was built for; the others wait without a cache.
    running = min(serving.slots, limits.max_batch_size)
    return kv_cache_tokens(
        bytes_per_token=limits.cache_bytes_per_token,
        weight_bytes=limits.weight_bytes,
        wanted_tokens=max(sequence, running * blocks(min(serving.context_tokens, limits.max_seq_len))),
        gpu=recipe.runtime.gpu,
        memory_bytes=recipe.runtime.gpu_memory_bytes,
        sequence_tokens=sequence,
        lora_fraction=_lora_fraction(model),
    )


def release_memory_bytes(model: Model, limits: EngineLimits) -> int:
    """What one release takes on each of its GPUs: weights, workspace, KV cache and the cache of LoRA adapters."""
    taken = limits.weight_bytes + WORKSPACE_BYTES
    runtime = _recipe(model).runtime
    memory = runtime.gpu_memory_bytes or gpu_memory_bytes(runtime.gpu) or taken
    if (tokens := cache_tokens(model, limits)) is not None:
        taken += tokens * limits.cache_bytes_per_token
    else:
        taken += int((_parameters(model).kv_cache_fraction or 0) * max(0, memory - taken))
    return taken + int(_lora_fraction(model) * max(0, memory - taken))


def _lora_fraction(model: Model) -> float:
    """Of the memory that is free beside the KV cache: what the adapters get, where the model takes any."""
    recipe, cache = _recipe(model), _parameters(model).lora_cache
    takes = recipe.lora is not None if isinstance(recipe, TrtEngineRecipe) else "lora_config" in recipe.llm_args
    return (cache or LoraCache()).gpu_fraction if takes else 0.0


def _calls(version: str, *, guided: bool) -> Calls:
    return Calls(
        sends=tuple(
            CalledTensor(input_name(name, version), data_type, dims, always=name in ALWAYS_SENT)
            for name, (data_type, dims) in SENT.items()
            if guided or name not in GUIDES
        ),
        reads=tuple(CalledTensor(name, data_type, dims) for name, (data_type, dims) in READ.items()),
    )


def _recipe(model: Model) -> TrtEngineRecipe | LlmApiRecipe:
    assert isinstance(model.recipe, TrtEngineRecipe | LlmApiRecipe)
    return model.recipe


def _parameters(model: Model) -> TensorRtServing:
    return model.serving.tensorrt_llm or TensorRtServing()
