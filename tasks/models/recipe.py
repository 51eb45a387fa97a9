"""The recipes, one model a kind: how weights become something servable."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from infra.frozen import Spec
from tasks.trtllm.recipe import LlmApiRecipe, TrtEngineRecipe


class LlamaCppRecipe(Spec):
    """GGUF on the CPU: dequantized to `dtype`, quantized to `quantization`, served by llama.cpp."""

    kind: Literal["llamacpp"]
    dtype: Literal["float16", "bfloat16"] = "float16"
    quantization: Literal["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"] = "q8_0"


Recipe = Annotated[LlamaCppRecipe | TrtEngineRecipe | LlmApiRecipe, Field(discriminator="kind")]
