"""The fields of the two TensorRT-LLM recipes, with the rules of hardware and versions that a field alone decides.

`tasks.models.recipe` adds the rules that need the tables of a version.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from packaging.version import InvalidVersion, Version
from pydantic import Field, JsonValue, StringConstraints, ValidationInfo, field_validator

from infra.frozen import Spec
from infra.toolchains.toolchain import is_pinned_image
from tasks.trtllm.products import architecture_of
from tasks.trtllm.releases import FIRST, FIRST_LLM_API, LAST, in_span, release_of, without_engines
from tasks.trtllm.speculation import Speculation, check_speculation

Quantization = Literal["none", "fp8", "fp8_rowwise", "int8_sq", "int8_wo", "int4_wo", "int4_awq", "w4a8_awq", "nvfp4"]
GpuArchitecture = Literal["sm80", "sm86", "sm89", "sm90", "sm100", "sm103", "sm120", "sm121"]
CALIBRATED = frozenset({"fp8", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4"})
"""Formats that quantize.py measures on a calibration set. The others follow from the weights alone."""
AWQ = frozenset({"int4_awq", "w4a8_awq"})
"""Formats whose weights share a scale block by block, `awq_block_size` of them."""

_Option = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
_Argument = Annotated[str, StringConstraints(min_length=1)]

# The first architecture with arithmetic for the format. Source: TensorRT-LLM's support matrix: FP8, also as
# the activations of INT4 AWQ weights, from Ada (sm89) on; NVFP4 from Blackwell (sm100) on.
_FIRST_ARCHITECTURE = {"fp8": 89, "fp8_rowwise": 89, "w4a8_awq": 89, "nvfp4": 100}
# Formats that Blackwell's data-centre chips (sm100 to sm119) lack. Source: errors of trtllm-build on them.
_NOT_ON_BLACKWELL = frozenset({"int8_wo", "int4_wo", "int8_sq", "fp8_rowwise", "int8"})
# The first release whose wheel has kernels for the architecture. Source: the release notes of 0.9 to 1.1.
_FIRST_RELEASE = {100: "0.17", 103: "1.1", 120: "0.19", 121: "1.0"}


class Runtime(Spec):
    """What a recipe is built and served with."""

    tensorrt_llm: str = Field(description="Version of TensorRT-LLM, as published.")
    tensorrt: str | None = Field(
        default=None,
        description="Version of TensorRT, if the image has another than the release usually comes with.",
    )
    image: str | None = Field(
        default=None, description="The container image that holds them, as NAME@sha256:…; a worker on another refuses."
    )
    gpu: str = Field(min_length=1, description="Product name as nvidia-smi says it: NVIDIA H200.")
    arch: GpuArchitecture = Field(description="Of the GPU: sm90 is an H100 or H200. Its build pool is build-sm90.")
    gpus: int = Field(ge=1, description="GPUs of one server.")
    gpu_memory_bytes: int | None = Field(
        default=None, ge=2**30, description="Of one GPU, if Enginehouse does not know its product."
    )

    @field_validator("tensorrt_llm")
    @classmethod
    def _is_a_version(cls, version: str) -> str:
        try:
            return str(Version(version))
        except InvalidVersion as error:
            raise ValueError(f"{version!r} is not a version") from error

    @field_validator("image")
    @classmethod
    def _is_given_by_digest(cls, image: str | None) -> str | None:
        if image is not None and not is_pinned_image(image):
            raise ValueError(f"{image!r} may be another image tomorrow: name it as NAME@sha256:…")
        return image

    @field_validator("arch")
    @classmethod
    def _is_known_to_the_version(cls, arch: str, info: ValidationInfo) -> str:
        version = info.data.get("tensorrt_llm")
        first = _FIRST_RELEASE.get(int(arch.removeprefix("sm")))
        if version is not None and first is not None and not in_span(Version(version), first):
            raise ValueError(f"{arch} needs TensorRT-LLM {first} or later, not {version}")
        return arch

    @field_validator("arch")
    @classmethod
    def _is_that_of_the_gpu(cls, arch: str, info: ValidationInfo) -> str:
        known = architecture_of(str(info.data.get("gpu")))
        if known and known != arch:
            raise ValueError(f"{info.data['gpu']} is {known}, not {arch}: correct the one that is wrong")
        return arch

    def with_version(self, tensorrt_llm: str) -> dict[str, JsonValue]:
        """The fields with another `tensorrt_llm`. Image and TensorRT belong to one version: another one drops them."""
        document: dict[str, JsonValue] = {**self.model_dump(), "tensorrt_llm": tensorrt_llm}
        return document if tensorrt_llm == self.tensorrt_llm else {**document, "image": None, "tensorrt": None}

    @property
    def version(self) -> Version:
        return Version(self.tensorrt_llm)

    @property
    def planned_tensorrt(self) -> str:
        """The TensorRT of the recipe, or the one that the release usually comes with; empty if that is not known."""
        known = release_of(self.version)
        return self.tensorrt or (known.tensorrt if known is not None else "")

    @property
    def image_digest(self) -> str:
        """`sha256:…`; empty if the recipe names no image."""
        return (self.image or "").partition("@")[2]

    @property
    def compute_capability(self) -> int:
        """90 for sm90."""
        return int(self.arch.removeprefix("sm"))


class Calibration(Spec):
    """What quantization is measured on. Toolchains have no network: the set is on the worker, or in its hub cache."""

    dataset: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./-]+$")] = Field(
        default="cnn_dailymail", description="Name on the hub, or the absolute path of a local copy."
    )
    size: int = Field(default=512, ge=1, description="Texts.")
    max_seq_length: int = Field(default=512, ge=16, description="Tokens of one text.")
    batch_size: int = Field(default=1, ge=1, description="Texts at once.")

    @property
    def local_folders(self) -> tuple[Path, ...]:
        """The set as a folder on the worker; empty for one of the hub."""
        return (Path(self.dataset),) if self.dataset.startswith("/") else ()


class TensorRtLlmFields(Spec):
    """What the two kinds share. Lengths are tokens, sizes are counts."""

    runtime: Runtime = Field(description="The TensorRT-LLM and the GPUs it is built and served with.")
    architecture: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="The class in the weights' config.json: Qwen2ForCausalLM. Planning goes by it without the weights.",
    )
    dtype: Literal["float16", "bfloat16"] = Field(default="bfloat16", description="Of weights that are not quantized.")
    quantization: Quantization = Field(default="none", description="none: the weights as they are.")
    kv_cache_dtype: Literal["auto", "fp8", "int8", "nvfp4"] = Field(default="auto", description="auto: the dtype.")
    calibration: Calibration = Field(default=Calibration(), description="For quantizations that measure activations.")
    awq_block_size: int = Field(default=128, ge=8, description="Weights that share a scale, in int4_awq and w4a8_awq.")
    tp_size: int = Field(default=1, ge=1, description="GPUs that share each layer.")
    pp_size: int = Field(default=1, ge=1, description="Groups of GPUs that have some of the layers each.")
    cp_size: int = Field(default=1, ge=1, description="GPUs that share the tokens of a long prompt.")
    moe_tp_size: int | None = Field(default=None, ge=1, description="None: as the version divides experts by itself.")
    moe_ep_size: int | None = Field(default=None, ge=1, description="GPUs over which experts are dealt out whole.")
    max_batch_size: int = Field(default=64, ge=1, description="Requests at the same time.")
    max_seq_len: int = Field(default=8192, ge=2, description="Prompt and answer together.")
    max_input_len: int = Field(default=4096, ge=1, description="Of a prompt.")
    max_num_tokens: int = Field(default=8192, ge=1, description="In one forward pass, over all requests.")
    max_beam_width: int = Field(default=1, ge=1, description="1: no beam search.")
    speculation: Speculation | None = Field(default=None, description="What guesses tokens ahead. None: nothing.")

    @property
    def world_size(self) -> int:
        """GPUs that one copy of the model takes."""
        return self.tp_size * self.pp_size * self.cp_size

    @field_validator("quantization", "kv_cache_dtype")
    @classmethod
    def _runs_on_the_architecture(cls, chosen: str, info: ValidationInfo) -> str:
        runtime = _runtime(info)
        first = _FIRST_ARCHITECTURE.get(chosen, 0)
        if runtime is not None and runtime.compute_capability < first:
            raise ValueError(f"{chosen} needs sm{first} or later, and {runtime.gpu} is {runtime.arch}")
        if runtime is not None and 100 <= runtime.compute_capability < 120 and chosen in _NOT_ON_BLACKWELL:
            raise ValueError(f"{chosen} does not run on {runtime.arch}, and {runtime.gpu} is that: use fp8 or nvfp4")
        return chosen

    @field_validator("pp_size", "cp_size")
    @classmethod
    def _fits_the_gpus(cls, size: int, info: ValidationInfo) -> int:
        runtime = _runtime(info)
        sizes = {name: info.data.get(name) for name in ("tp_size", "pp_size")} | {info.field_name: size}
        known = [(name, value) for name, value in sizes.items() if value is not None]
        world = math.prod(value for _, value in known)
        # With cp_size 1 the mistake lies in tp_size and pp_size, and pp_size has reported it.
        reported = info.field_name == "cp_size" and size == 1
        if runtime is not None and world > runtime.gpus and not reported:
            product = " x ".join(f"{name} {value}" for name, value in known)
            raise ValueError(f"{product} = {world} GPUs, and runtime.gpus is {runtime.gpus}: one host serves a model")
        return size

    @field_validator("moe_ep_size")
    @classmethod
    def _divides_the_experts(cls, moe_ep_size: int | None, info: ValidationInfo) -> int | None:
        moe_tp_size, tp_size = info.data.get("moe_tp_size"), info.data.get("tp_size")
        if (moe_tp_size is None) != (moe_ep_size is None):
            raise ValueError("give moe_tp_size and moe_ep_size together, or neither")
        if moe_tp_size is not None and moe_ep_size is not None and moe_tp_size * moe_ep_size != tp_size:
            raise ValueError(f"moe_tp_size {moe_tp_size} x moe_ep_size {moe_ep_size} is not tp_size {tp_size}")
        return moe_ep_size

    @field_validator("max_input_len")
    @classmethod
    def _leaves_room_for_an_answer(cls, max_input_len: int, info: ValidationInfo) -> int:
        max_seq_len = info.data.get("max_seq_len")
        if max_seq_len is not None and max_input_len >= max_seq_len:
            raise ValueError(f"{max_input_len} leaves no token for the answer in a max_seq_len of {max_seq_len}")
        return max_input_len


class Lora(Spec):
    """Room for adapters in an engine."""

    target_modules: tuple[_Option, ...] = Field(min_length=1, description="As trtllm-build names them: attn_qkv.")
    max_rank: int = Field(default=64, ge=1, description="The largest rank of an adapter.")


class ExtraArguments(Spec):
    """Arguments that Enginehouse does not know. Each tool gets its own word by word, after all others."""

    convert: tuple[_Argument, ...] = Field(default=(), description="For convert_checkpoint.py of the architecture.")
    quantize: tuple[_Argument, ...] = Field(default=(), description="For quantize.py.")
    build: tuple[_Argument, ...] = Field(default=(), description="For trtllm-build.")


class TrtEngineFields(TensorRtLlmFields):
    """A TensorRT engine built ahead of time by trtllm-build."""

    kind: Literal["trt-engine"]
    variant: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9_]+$",
        description="Which of the models of a class, where its converter must be told: glm4 of ChatGLMModel, or v2_7b.",
    )
    portable: bool = Field(default=False, description="One engine for all products of an architecture, a bit slower.")
    kv_cache_type: Literal["paged", "continuous"] = Field(default="paged", description="As trtllm-build names it.")
    tokens_per_block: int = Field(default=64, ge=8, description="Of the paged KV cache; a power of two.")
    paged_context_fmha: bool = Field(default=True, description="Needed for KV reuse and chunked context.")
    fused_mlp: bool = Field(default=True, description="For unquantized and fp8 weights; others never have it.")
    fast_build: bool = Field(default=False, description="Build sooner; weights then lie beside the engine.")
    plugins: dict[_Option, bool | int | str] = Field(
        default={}, description="Further options of trtllm-build without their dashes; true is enable."
    )
    lora: Lora | None = Field(default=None, description="Room for adapters that requests choose. None: without any.")
    extra_args: ExtraArguments = Field(default=ExtraArguments(), description="Further words for the tools.")

    @field_validator("runtime")
    @classmethod
    def _can_build_engines(cls, runtime: Runtime) -> Runtime:
        if not in_span(runtime.version, FIRST) or without_engines(runtime.version):
            raise ValueError(
                f"kind trt-engine needs TensorRT-LLM {FIRST} to {LAST}, not {runtime.tensorrt_llm}: "
                "later releases have kind llmapi alone"
            )
        return runtime

    @field_validator("tokens_per_block")
    @classmethod
    def _is_a_power_of_two(cls, tokens: int) -> int:
        if tokens & (tokens - 1):
            raise ValueError(f"{tokens} is not a power of two")
        return tokens

    @field_validator("speculation")
    @classmethod
    def _is_served_by_engines(cls, given: Speculation | None, info: ValidationInfo) -> Speculation | None:
        runtime = _runtime(info)
        if given is None or runtime is None:
            return given
        check_speculation("trt-engine", runtime.version, given)
        if info.data.get("max_beam_width", 1) > 1:
            raise ValueError("beam search checks no guesses: set max_beam_width to 1")
        most, tokens = info.data.get("max_input_len", 0), info.data.get("max_num_tokens", 0)
        if given.mode == "draft_tokens_external" and tokens < most:
            # Each step asks both engines with the prompt and all of the answer so far, in one pass.
            raise ValueError(f"both engines are asked with the whole answer so far: raise max_num_tokens to {most}")
        return given

    @field_validator("paged_context_fmha")
    @classmethod
    def _reuses_what_was_said(cls, paged: bool, info: ValidationInfo) -> bool:
        given: Speculation | None = info.data.get("speculation")
        if not paged and given is not None and given.mode == "draft_tokens_external":
            raise ValueError("a draft model needs it: every step would compute the whole prompt anew")
        return paged


class LlmApiFields(TensorRtLlmFields):
    """A checkpoint loaded by TensorRT-LLM's LLM API, with nothing built ahead."""

    kind: Literal["llmapi"]
    llm_args: dict[_Option, JsonValue] = Field(default={}, description="Further arguments of tensorrt_llm.LLM.")

    @field_validator("speculation")
    @classmethod
    def _is_served_by_pytorch(cls, given: Speculation | None, info: ValidationInfo) -> Speculation | None:
        if given is not None and (runtime := _runtime(info)) is not None:
            check_speculation("llmapi", runtime.version, given)
        return given

    @field_validator("kv_cache_dtype")
    @classmethod
    def _is_known_to_pytorch(cls, kept_as: str) -> str:
        if kept_as == "int8":
            raise ValueError("an int8 KV cache is for TensorRT engines alone: use fp8")
        return kept_as

    @field_validator("llm_args")
    @classmethod
    def _leaves_what_is_not_the_recipes(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in ("model", "tokenizer", "trust_remote_code"):
            if name in arguments:
                raise ValueError(f"{name} is set for every model: files come from the source, and no code with them")
        return arguments

    @field_validator("quantization")
    @classmethod
    def _has_kernels_in_pytorch(cls, quantization: str) -> str:
        if quantization in ("int8_sq", "int8_wo", "int4_wo"):
            raise ValueError(f"{quantization} is for TensorRT engines alone: fp8, int4_awq, w4a8_awq and nvfp4 are not")
        return quantization

    @field_validator("runtime")
    @classmethod
    def _has_the_llm_api(cls, runtime: Runtime) -> Runtime:
        if not in_span(runtime.version, FIRST_LLM_API):
            raise ValueError(f"kind llmapi needs TensorRT-LLM {FIRST_LLM_API} or later, not {runtime.tensorrt_llm}")
        return runtime


def _runtime(info: ValidationInfo) -> Runtime | None:
    return info.data.get("runtime")
