"""The Triton models of a release of kind `trt-engine`."""

from __future__ import annotations

from pathlib import Path

from packaging.version import Version

from infra.errors import UsageError
from tasks.kinds.answers import require_template, sampling_of
from tasks.models.spec import Serving
from tasks.serving.backend_inputs import ADAPTERS, ALWAYS_SENT, DRAFTS, GUIDES, LORA_WEIGHTS, READ, SENT, input_name
from tasks.serving.generation import Files
from tasks.serving.settings import ServingSettings
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.compatibility import CalledTensor, Calls, check_compatibility
from tasks.triton.config import (
    ENGINE_FOLDER,
    LLM,
    RELEASE,
    TENSORRT_LLM,
    TENSORRT_LLM_DRAFT,
    llm_config,
    release_config,
)
from tasks.triton.protobuf import parse_config
from tasks.triton.repository import TOKENIZER_FOLDER, write_release
from tasks.trtllm.backend.rules import check_against_engine
from tasks.trtllm.limits import EngineLimits, LogitsType
from tasks.trtllm.serving import TensorRtServing
from tasks.trtllm.speculation import DRAFT_FOLDER, Speculation, backend_speculation


def write_engine_release(
    output: Path,
    version: Version,
    serving: Serving,
    limits: EngineLimits,
    kv_cache_tokens: int | None,
    files: Files,
    tokenizer: str | None = None,
    *,
    lora_type: LogitsType = "FP16",
    adapters: tuple[str, ...] = (),
    speculation: Speculation | None = None,
) -> None:
    """Check that `tensorrt_llm`, `llm` and `release` agree, and write them to `output`.

    `version` is the engine's TensorRT-LLM. `kv_cache_tokens` None leaves the KV cache to a fraction of the free memory.
    `files` are those of the tokenizer. `tokenizer` is its folder, absolute, by default TOKENIZER_FOLDER in the version
    folder of `llm`. `lora_type` is of the engine's adapters; those that requests may choose are named in `adapters`,
    and the caller writes them. `speculation` is how the recipe has tokens guessed: by a draft model, whose engine lies
    in the engine's own folder, or by the engine itself. Raises UsageError if the engine cannot serve as `serving` asks.
    """
    require_template(serving, files)
    parameters = serving.tensorrt_llm or TensorRtServing()
    further = decoding_parameters(version, parameters, limits, speculation)
    drafts = speculation is not None and speculation.mode == "draft_tokens_external"
    if drafts and parameters.kv_cache_reuse is None:
        # Each step asks anew with all that was said.
        parameters = parameters.model_copy(update={"kv_cache_reuse": True})
    # `enginehouse assemble` takes engines that were not built by the recipe.
    check_against_engine(
        parameters,
        kv_cache_tokens,
        max_beam_width=limits.max_beam_width,
        max_seq_len=limits.max_seq_len,
        paged_kv_cache=limits.paged_kv_cache,
        paged_context_fmha=limits.paged_context_fmha,
    )
    if parameters.lora_cache is not None:
        # What it would load there no request can name: `llm` gives the engine the adapters of the model's file.
        cache = parameters.lora_cache.model_copy(update={"prefetch_folder": None})
        parameters = parameters.model_copy(update={"lora_cache": cache})
    if parameters.kv_cache_reuse is None and not limits.paged_context_fmha:
        # From 0.19 on the backend reuses the KV cache by default, which this engine cannot.
        parameters = parameters.model_copy(update={"kv_cache_reuse": False})
    engine = tensorrt_llm_config(
        version,
        parameters,
        engine_folder=ENGINE_FOLDER,
        max_batch_size=serving.slots,
        kv_cache_tokens=kv_cache_tokens,
        logits_type=limits.logits_type,
        lora_type=lora_type,
        further=further,
    )
    draft = _draft_config(version, parameters, serving.slots, kv_cache_tokens) if drafts else ""
    settings = ServingSettings(
        engine="tensorrt_llm",
        engine_path=tokenizer or TOKENIZER_FOLDER,
        slots=serving.slots,
        context_tokens=_context_tokens(serving, limits, drafts=drafts),
        chat_template=serving.chat_template,
        request_timeout_s=serving.request_timeout_s,
        tensorrt_llm=str(version),
        max_input_tokens=limits.prompt_tokens(chunked=bool(parameters.chunked_context)),
        max_beam_width=parameters.max_beam_width,
        decoupled=parameters.decoupled,
        guided_decoding=parameters.guided_decoding is not None,
        sampling=sampling_of(serving, files),
        max_tokens=serving.max_tokens,
        contract=serving.contract,
        adapters=adapters,
        draft_tokens=speculation.max_draft_len if drafts and speculation is not None else 0,
    )
    configs = {
        TENSORRT_LLM: engine,
        LLM: llm_config(contract=serving.contract, calls=TENSORRT_LLM),
        RELEASE: release_config(serving.contract),
    }
    check_compatibility(
        {name: parse_config(text) for name, text in configs.items()},
        _calls(settings, lora_type),
    )
    write_release(output, settings, instances=parameters.llm_instances, tensorrt_llm=engine, tensorrt_llm_draft=draft)


def decoding_parameters(
    version: Version, parameters: TensorRtServing, limits: EngineLimits, speculation: Speculation | None
) -> dict[str, str]:
    """The parameters of the backend that an engine needs which was built to check guesses. Raises UsageError."""
    mode = limits.decoding_mode
    if mode and parameters.decoding_mode is not None:
        raise UsageError(
            f"decoding_mode {parameters.decoding_mode} is not that of the engine, which was built for {mode}",
            hint="remove decoding_mode: it follows from the engine",
            code="serving-unfit",
        )
    try:
        return backend_speculation(version, mode, speculation)
    except ValueError as error:
        raise UsageError(str(error), hint="serve it with a version that does", code="serving-unfit") from error


def _context_tokens(serving: Serving, limits: EngineLimits, *, drafts: bool) -> int:
    """What a request may have. trtllm-build adds room for the guesses, and a draft model is asked with all but one."""
    most = limits.max_seq_len - limits.max_draft_len
    asked = limits.prompt_tokens(chunked=bool((serving.tensorrt_llm or TensorRtServing()).chunked_context))
    return min(serving.context_tokens, most, *([asked + 1] if drafts else []))


def _draft_config(version: Version, parameters: TensorRtServing, slots: int, kv_cache_tokens: int | None) -> str:
    """The draft model in the backend: one GPU, the same cache, and nothing that belongs to answers."""
    kept = {"scheduler_policy", "kv_cache_reuse", "host_cache_bytes", "attention_window", "chunked_context"}
    return tensorrt_llm_config(
        version,
        TensorRtServing(**parameters.model_dump(include=kept)),
        engine_folder=f"{ENGINE_FOLDER}/{DRAFT_FOLDER}",
        max_batch_size=slots,
        kv_cache_tokens=kv_cache_tokens,
        name=TENSORRT_LLM_DRAFT,
    )


def _calls(settings: ServingSettings, lora_type: str) -> Calls:
    unsent = {
        *(() if settings.guided_decoding else GUIDES),
        *(() if settings.adapters else ADAPTERS),
        *(() if settings.draft_tokens else DRAFTS),
    }
    types = {name: data_type for name, (data_type, _) in SENT.items()} | {LORA_WEIGHTS: lora_type}
    return Calls(
        sends=tuple(
            CalledTensor(input_name(name, settings.tensorrt_llm), types[name], dims, always=name in ALWAYS_SENT)
            for name, (_, dims) in SENT.items()
            if name not in unsent
        ),
        reads=tuple(CalledTensor(name, data_type, dims) for name, (data_type, dims) in READ.items()),
    )
