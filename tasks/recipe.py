"""The recipes, one model a kind: how weights become something servable.

Rules of hardware and of versions are checked while a recipe is parsed, each on the field it speaks of.
"""

from __future__ import annotations

from typing import Annotated, Literal

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Spec(BaseModel):
    """Base of everything in a model's file: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class LlamaCppRecipe(Spec):
    """GGUF on the CPU: dequantized to `dtype`, quantized to `quantization`, served by llama.cpp."""

    kind: Literal["llamacpp"]
    dtype: Literal["float16", "bfloat16"] = "float16"
    quantization: Literal["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] = "q8_0"


class Runtime(Spec):
    """What a TensorRT-LLM recipe is built and served with."""

    tensorrt_llm: str = Field(description="Version of TensorRT-LLM, as published.")
    gpu: str = Field(min_length=1, description="Product name as nvidia-smi says it: NVIDIA H200.")
    arch: Literal["sm80", "sm86", "sm89", "sm90", "sm100", "sm103", "sm120", "sm121"]
    gpus: int = Field(ge=1, description="GPUs of one server.")

    @field_validator("tensorrt_llm")
    @classmethod
    def _is_a_version(cls, version: str) -> str:
        try:
            return str(Version(version))
        except InvalidVersion as error:
            raise ValueError(f"{version!r} is not a version") from error

    @property
    def compute_capability(self) -> int:
        """90 for sm90."""
        return int(self.arch.removeprefix("sm"))


# The first architecture with arithmetic for the format. Source: TensorRT-LLM's support matrix: FP8, also as
# the activations of INT4 AWQ weights, from Ada (sm89) on; NVFP4 from Blackwell (sm100) on.
_FIRST_ARCHITECTURE = {"fp8": 89, "w4a8_awq": 89, "nvfp4": 100}


class TensorRtLlmRecipe(Spec):
    """What the two TensorRT-LLM kinds share. Lengths are tokens, sizes are counts."""

    runtime: Runtime
    dtype: Literal["float16", "bfloat16"] = "bfloat16"
    quantization: Literal["none", "fp8", "int8_sq", "int8_wo", "int4_wo", "int4_awq", "w4a8_awq", "nvfp4"] = "none"
    tp_size: int = Field(default=1, ge=1)
    pp_size: int = Field(default=1, ge=1)
    max_batch_size: int = Field(default=64, ge=1)
    max_seq_len: int = Field(default=8192, ge=2, description="Prompt and answer together.")
    max_input_len: int = Field(default=4096, ge=1)
    max_num_tokens: int = Field(default=8192, ge=1, description="In one forward pass, over all requests.")

    @field_validator("quantization")
    @classmethod
    def _runs_on_the_architecture(cls, quantization: str, info: ValidationInfo) -> str:
        runtime = _runtime(info)
        first = _FIRST_ARCHITECTURE.get(quantization, 0)
        if runtime is not None and runtime.compute_capability < first:
            raise ValueError(f"{quantization} needs sm{first} or later, and {runtime.gpu} is {runtime.arch}")
        return quantization

    @field_validator("pp_size")
    @classmethod
    def _fits_the_gpus(cls, pp_size: int, info: ValidationInfo) -> int:
        runtime, tp_size = _runtime(info), info.data.get("tp_size")
        if runtime is not None and tp_size is not None and tp_size * pp_size > runtime.gpus:
            raise ValueError(
                f"tp_size {tp_size} x pp_size {pp_size} = {tp_size * pp_size} GPUs, and runtime.gpus is {runtime.gpus}"
            )
        return pp_size

    @field_validator("max_input_len")
    @classmethod
    def _leaves_room_for_an_answer(cls, max_input_len: int, info: ValidationInfo) -> int:
        max_seq_len = info.data.get("max_seq_len")
        if max_seq_len is not None and max_input_len >= max_seq_len:
            raise ValueError(f"{max_input_len} leaves no token for the answer in a max_seq_len of {max_seq_len}")
        return max_input_len


class TrtEngineRecipe(TensorRtLlmRecipe):
    """A TensorRT engine built ahead of time by trtllm-build."""

    kind: Literal["trt-engine"]

    @field_validator("runtime")
    @classmethod
    def _can_build_engines(cls, runtime: Runtime) -> Runtime:
        # 0.8 is the oldest version with the unified checkpoint; 1.3 removed trtllm-build.
        if not (0, 8) <= Version(runtime.tensorrt_llm).release < (1, 3):
            raise ValueError(
                f"kind trt-engine needs TensorRT-LLM 0.8 to 1.2, not {runtime.tensorrt_llm}: "
                "from 1.3 on there is only kind llmapi"
            )
        return runtime


class LlmApiRecipe(TensorRtLlmRecipe):
    """A checkpoint loaded by TensorRT-LLM's LLM API, with nothing built ahead."""

    kind: Literal["llmapi"]

    @field_validator("runtime")
    @classmethod
    def _has_the_llm_api(cls, runtime: Runtime) -> Runtime:
        # Triton's llmapi model runs the PyTorch backend from 1.0 on; before, it wrapped engines.
        if Version(runtime.tensorrt_llm).release < (1, 0):
            raise ValueError(f"kind llmapi needs TensorRT-LLM 1.0 or later, not {runtime.tensorrt_llm}")
        return runtime


def _runtime(info: ValidationInfo) -> Runtime | None:
    return info.data.get("runtime")


Recipe = Annotated[LlamaCppRecipe | TrtEngineRecipe | LlmApiRecipe, Field(discriminator="kind")]
