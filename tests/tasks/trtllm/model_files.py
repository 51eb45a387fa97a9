"""The models that people serve, as files of the catalogue, and what each version of TensorRT-LLM should make of them.

The expectations were read apart from the driver's table: in `MODEL_MAP` and the folders of examples of 0.8 to 0.16 and
of 1.3.0rc3, in the release notes, and on the page of supported models of 1.0.0, 1.3.0rc20 and the 1.4 line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.models.spec import Model

ENGINES = (
    *("0.8.0", "0.9.0", "0.10.0", "0.11.0", "0.12.0", "0.13.0", "0.14.0", "0.15.0", "0.16.0"),
    *("0.17.0", "0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0", "1.1.0", "1.2.1"),
)
LLM_API_ALONE = ("1.3.0rc24", "1.4.0rc1")


@dataclass(frozen=True)
class Served:
    """A model. `folder` is its converter's, up to 0.19 and from 0.20 on; empty if no engine was ever built of it."""

    name: str
    uri: str
    architecture: str
    folder: str = ""
    moved: str = ""
    engine: str = ""
    llm_api: str = ""
    """The first version whose LLM API loads it with PyTorch; empty if none does."""
    variant: str | None = None


SERVED = (
    Served("llama-3", "meta-llama/Llama-3.3-70B-Instruct", "LlamaForCausalLM", "llama", "core/llama", "0.8", "1.0"),
    Served("qwen2.5", "Qwen/Qwen2.5-7B-Instruct", "Qwen2ForCausalLM", "qwen", "core/qwen", "0.10", "1.0"),
    Served("qwen3", "Qwen/Qwen3-8B", "Qwen3ForCausalLM", "qwen", "core/qwen", "1.0", "1.0"),
    Served("qwen3-moe", "Qwen/Qwen3-30B-A3B", "Qwen3MoeForCausalLM", "qwen", "core/qwen", "1.0", "1.0"),
    Served("mistral", "mistralai/Mistral-7B-v0.3", "MistralForCausalLM", "llama", "core/llama", "0.8", "1.0"),
    Served("mixtral", "mistralai/Mixtral-8x7B-v0.1", "MixtralForCausalLM", "llama", "core/llama", "0.8", "1.0"),
    Served("gemma", "google/gemma-7b-it", "GemmaForCausalLM", "gemma", "core/gemma", "0.9"),
    Served("gemma-2", "google/gemma-2-9b-it", "Gemma2ForCausalLM", "gemma", "core/gemma", "0.13"),
    Served("gemma-3", "google/gemma-3-1b-it", "Gemma3ForCausalLM", "gemma", "core/gemma", "0.19", "1.0"),
    Served("phi-3", "microsoft/Phi-3-mini-4k-instruct", "Phi3ForCausalLM", "phi", "core/phi", "0.10", "1.0"),
    Served("phi-4", "microsoft/phi-4", "Phi3ForCausalLM", "phi", "core/phi", "0.10", "1.0"),
    Served(
        "deepseek-v2",
        "deepseek-ai/DeepSeek-V2-Lite",
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        "contrib/deepseek_v2",
        "0.15",
    ),
    Served("deepseek-v3", "deepseek-ai/DeepSeek-V3", "DeepseekV3ForCausalLM", llm_api="1.0"),
    Served("gpt-oss", "openai/gpt-oss-20b", "GptOssForCausalLM", llm_api="1.1"),
    Served("nemotron", "nvidia/Minitron-8B-Base", "NemotronForCausalLM", "gpt", "core/gpt", "0.15", "1.0"),
    Served("command-r", "CohereForAI/c4ai-command-r-v01", "CohereForCausalLM", "commandr", "core/commandr", "0.15"),
    Served("falcon", "tiiuae/falcon-7b", "FalconForCausalLM", "falcon", "contrib/falcon", "0.8"),
    Served("glm-4", "THUDM/glm-4-9b-chat", "ChatGLMModel", "chatglm", "core/glm-4-9b", "0.12", variant="glm4"),
    Served("internlm2", "internlm/internlm2-7b", "InternLM2ForCausalLM", "internlm2", "core/internlm2", "0.11"),
    Served("llama-4", "meta-llama/Llama-4-Scout-17B-16E", "Llama4ForConditionalGeneration", llm_api="1.0"),
)


def model_file(served: Served, version: str, **recipe: Any) -> Model:
    """The model's file with `recipe` on top, at `version`. Raises ValidationError for what the version cannot do."""
    runtime = {"tensorrt_llm": version, "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 8}
    fields: dict[str, Any] = {"kind": "trt-engine", "architecture": served.architecture, "runtime": runtime, **recipe}
    if served.variant is not None and fields["kind"] == "trt-engine":
        fields.setdefault("variant", served.variant)
    prompt = {"name": "count", "text": "Count to nine.", "max_tokens": 8, "expect": {"min_tokens": 1}}
    return Model.model_validate(
        {"name": served.name, "source": {"uri": f"hf://{served.uri}@main"}, "recipe": fields, "prompts": [prompt]}
    )
