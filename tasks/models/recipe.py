"""Recipes: how weights become something servable. One class a kind holds the fields and their rules.

A new kind adds its class to RECIPES, and what is done with it to `tasks.kinds.choice`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, Self, Union, cast

from packaging.version import InvalidVersion, Version
from pydantic import (
    Field,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    JsonValue,
    SerializeAsAny,
    TypeAdapter,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError

from infra.errors import UsageError
from infra.frozen import Spec
from tasks.trtllm.architectures import AUTODEPLOY, PYTORCH, check_llm_api
from tasks.trtllm.backend.rules import check_adapters, check_recipe
from tasks.trtllm.llmapi.arguments import check_llm_recipe, takes_adapters
from tasks.trtllm.llmapi.known_arguments import check_known
from tasks.trtllm.llmapi.translate import Translation, to_llmapi
from tasks.trtllm.recipe import GpuArchitecture, LlmApiFields, Runtime, TensorRtLlmFields, TrtEngineFields
from tasks.trtllm.releases import release_of, without_engines
from tasks.trtllm.serving import TensorRtServing
from tasks.trtllm.speculation import WITH_WEIGHTS, Draft
from tasks.trtllm.tools.commands import check_options

_DIVIDED = {
    "tensor_parallel_size": "tp_size",
    "pipeline_parallel_size": "pp_size",
    "context_parallel_size": "cp_size",
    "moe_tensor_parallel_size": "moe_tp_size",
    "moe_expert_parallel_size": "moe_ep_size",
}
"""Arguments of the LLM that a plan could not see."""


class Recipe(Spec):
    """The base of all recipes. Each has a field `kind`. These methods answer for a kind without TensorRT-LLM."""

    @property
    def planned_runtime(self) -> Runtime | None:
        """The TensorRT-LLM that the recipe is planned for. None for a kind without TensorRT-LLM."""
        return None

    @property
    def planned_architecture(self) -> str | None:
        """The class of the weights' config.json that the recipe is planned for. None if it names none."""
        return None

    def for_architecture(self, name: str) -> Recipe:
        """The recipe planned for an architecture, where it names none itself. The name is not checked."""
        return self

    @property
    def draft(self) -> Draft | None:
        """Where a draft model, or heads that guess tokens, come from. None if nothing guesses with weights."""
        return None

    def check_serving(self, parameters: TensorRtServing | None) -> None:
        """Check `serving.tensorrt_llm` of the model's file. Raises UsageError for what this recipe cannot honour."""
        if parameters is not None:
            raise UsageError(f"kind {kind_of(self)} has none of these", hint="remove them")

    def check_adapters(self, adapters: Collection[str], parameters: TensorRtServing | None) -> None:
        """Check the adapters that requests may choose, by their names. Raises UsageError if there can be none."""
        if adapters:
            raise UsageError(f"kind {kind_of(self)} takes no adapters by request", hint="merge one: `adapter`")

    def successor(self, tensorrt_llm: str) -> str | None:
        """The kind that takes over at this version of TensorRT-LLM. None if this kind goes on."""
        return None

    def unsupported(self, tensorrt_llm: Version) -> str:
        """Why no recipe of this kind can be planned for this version. Empty if it can."""
        return ""

    def translated(self, kind: str, parameters: TensorRtServing | None, tensorrt_llm: str) -> Translation | None:
        """A recipe of another kind for the same weights. None if the fields do not have all that it needs."""
        return None


class LlamaCppRecipe(Recipe):
    """GGUF on the CPU: dequantized to `dtype`, quantized to `quantization`, served by llama.cpp."""

    kind: Literal["llamacpp"]
    dtype: Literal["float16", "bfloat16"] = Field(default="float16", description="Of the checkpoint.")
    quantization: Literal["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] = Field(
        default="q8_0", description="What llama.cpp reads."
    )

    def check_adapters(self, adapters: Collection[str], parameters: TensorRtServing | None) -> None:
        pass


class _TensorRtLlmRecipe(TensorRtLlmFields, Recipe):
    """What the kinds of TensorRT-LLM answer alike."""

    @property
    def planned_runtime(self) -> Runtime:
        return self.runtime

    @property
    def planned_architecture(self) -> str | None:
        return self.architecture

    def for_architecture(self, name: str) -> Recipe:
        return self if self.architecture or not name else self.model_copy(update={"architecture": name})

    @property
    def draft(self) -> Draft | None:
        return None if self.speculation is None else self.speculation.draft


class TrtEngineRecipe(TrtEngineFields, _TensorRtLlmRecipe):
    """A TensorRT engine built ahead of time by trtllm-build."""

    @model_validator(mode="after")
    def _is_within_the_version(self) -> Self:
        check_options(self)
        return self

    def check_serving(self, parameters: TensorRtServing | None) -> None:
        check_recipe(self, parameters or TensorRtServing())

    def check_adapters(self, adapters: Collection[str], parameters: TensorRtServing | None) -> None:
        check_adapters(self, adapters, parameters or TensorRtServing())

    def successor(self, tensorrt_llm: str) -> str | None:
        try:
            return "llmapi" if without_engines(Version(tensorrt_llm)) else None
        except InvalidVersion:
            return None  # the recipe refuses it when it is parsed

    def unsupported(self, tensorrt_llm: Version) -> str:
        return "" if release_of(tensorrt_llm) is not None else "the options of its tools are not known"

    def translated(self, kind: str, parameters: TensorRtServing | None, tensorrt_llm: str) -> Translation | None:
        return to_llmapi(self, parameters, tensorrt_llm) if kind == "llmapi" else None


class LlmApiRecipe(LlmApiFields, _TensorRtLlmRecipe):
    """A checkpoint loaded by TensorRT-LLM's LLM API, with nothing built ahead."""

    @model_validator(mode="after")
    def _is_loaded_by_the_version(self) -> Self:
        if self.architecture is not None:
            check_llm_api(self.architecture, self.runtime.version, self.llm_args.get("backend"))
        return self

    @field_validator("llm_args")
    @classmethod
    def _are_of_the_version(cls, arguments: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        runtime: Runtime | None = info.data.get("runtime")
        if runtime is not None:
            check_known(runtime.version, arguments)
        for name, field in _DIVIDED.items():
            if name in arguments:
                raise ValueError(f"{name} follows from the recipe, whose GPUs are planned: use {field}")
        if arguments.get("backend") not in (None, PYTORCH, AUTODEPLOY):
            raise ValueError(f"backend is {PYTORCH} or {AUTODEPLOY}")
        cache = arguments.get("kv_cache_config")
        block = cache.get("tokens_per_block") if isinstance(cache, dict) else None
        if block is not None and (type(block) is not int or not 0 < block <= 4096):
            raise ValueError(f"kv_cache_config: tokens_per_block is a number of tokens, not {block}")
        speculation = arguments.get("speculative_config")
        if isinstance(speculation, dict) and info.data.get("speculation") is not None:
            raise ValueError("speculative_config follows from recipe.speculation: give one of them")
        if isinstance(speculation, dict) and speculation.get("decoding_type") in WITH_WEIGHTS:
            raise ValueError(
                f"speculative_config: {speculation['decoding_type']} needs weights, which nothing would fetch: "
                "recipe.speculation names a draft model or the heads of Eagle 3"
            )
        return arguments

    def check_serving(self, parameters: TensorRtServing | None) -> None:
        check_llm_recipe(self, parameters or TensorRtServing())

    def check_adapters(self, adapters: Collection[str], parameters: TensorRtServing | None) -> None:
        if parameters is not None and parameters.lora_cache is not None and not takes_adapters(self, adapters):
            raise UsageError("lora_cache holds adapters, and there are none", hint="name some under `adapters`")


class TransformersRecipe(Recipe):
    """Weights as they are, in PyTorch: slow, and the reference that the other kinds are measured against."""

    kind: Literal["transformers"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="What weights and cache are computed in. auto: as config.json says."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: one GPU where `arch` names its architecture, else the CPU."
    )
    arch: GpuArchitecture | None = Field(default=None, description="Of the GPU. None: any, with device: cuda.")
    cache_bytes_per_token: int | None = Field(
        default=None, ge=1, description="Of the KV cache, for a model whose layers Enginehouse does not understand."
    )

    @field_validator("arch")
    @classmethod
    def _is_of_a_gpu(cls, arch: str | None, info: ValidationInfo) -> str | None:
        if arch is not None and info.data.get("device") == "cpu":
            raise ValueError("device is cpu, which has no GPU architecture: leave one of them out")
        return arch

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda" or self.arch is not None

    def check_adapters(self, adapters: Collection[str], parameters: TensorRtServing | None) -> None:
        pass


RECIPES: dict[str, type[Recipe]] = {
    "llamacpp": LlamaCppRecipe,
    "trt-engine": TrtEngineRecipe,
    "llmapi": LlmApiRecipe,
    "transformers": TransformersRecipe,
}
"""The class of each kind, by the `kind` that a model's file names."""


def kind_of(recipe: Recipe) -> str:
    """The kind that a recipe is of."""
    return next(kind for kind, known in RECIPES.items() if type(recipe) is known)


def _read(value: object, _: ValidatorFunctionWrapHandler) -> Recipe:
    """A recipe from a model's file, of the class that its `kind` names."""
    if isinstance(value, Recipe):
        return value
    if not isinstance(value, Mapping):
        raise PydanticKnownError("dict_type")
    document = cast("Mapping[str, object]", value)
    if "kind" not in document:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
    known = RECIPES.get(str(document["kind"]))
    if known is None:
        expected = ", ".join(f"'{kind}'" for kind in RECIPES)
        raise PydanticKnownError(
            "union_tag_invalid",
            {"discriminator": "'kind'", "tag": str(document["kind"]), "expected_tags": expected},
        )
    return known.model_validate(document)


def _json_schema(_: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    union = Annotated[Union[tuple(RECIPES.values())], Field(discriminator="kind")]  # noqa: UP007
    return handler(TypeAdapter[Recipe](cast("type[Recipe]", union)).core_schema)


AnyRecipe = Annotated[
    SerializeAsAny[Recipe], WrapValidator(_read), GetPydanticSchema(get_pydantic_json_schema=_json_schema)
]
"""A recipe of whichever kind RECIPES knows when a model's file is read."""
