"""The architectures that TensorRT-LLM takes: the class that `config.json` names, what converts it, what serves it.

Sources. Engines: `MODEL_MAP` of tensorrt_llm/models and the folders with a convert_checkpoint.py in 0.8 to 0.16 and in
1.3.0rc3, and the release notes in between. LLM API: the page of supported models of 1.0.0, the release notes of 1.1,
the classes registered in 1.3.0rc3 (for 1.2), the page of 1.3.0rc20, and the index of the model zoo of the 1.4 line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.version import Version

from tasks.trtllm.releases import FIRST_LLM_API, LAST, in_span

LLAMA = "LlamaForCausalLM"
PYTORCH = "pytorch"
"""`llm_args.backend` of the LLM API's own backend, which no file needs to name."""
AUTODEPLOY = "_autodeploy"
"""`llm_args.backend` of the second backend of the LLM API, which compiles models from transformers' own code."""


class ArchitectureUnfit(ValueError):
    """A version that does not take the architecture. The message names the versions and kinds that do."""


@dataclass(frozen=True)
class Architecture:
    """One class. A first version is empty where there never was one; engines end with LAST.

    `gives` are options that the class decides, for versions whose converter has them; True is a switch. Several models
    share a class with a `variant`: the option that says which one it is, since the script guesses by the folder's name.
    """

    converter: str = ""
    engine: str = ""
    pytorch: str = ""
    autodeploy: str = ""
    gives: Mapping[str, str | bool] = field(default_factory=dict[str, str | bool])
    variant: str = ""


def _engine(
    converter: str,
    engine: str,
    *,
    pytorch: str = "",
    autodeploy: str = "",
    variant: str = "",
    **gives: str | bool,
) -> Architecture:
    options = {f"--{name}": value for name, value in gives.items()}
    return Architecture(converter, engine, pytorch, autodeploy, options, variant)


def _llm_api(pytorch: str = "", autodeploy: str = "") -> Architecture:
    return Architecture(pytorch=pytorch, autodeploy=autodeploy)


ARCHITECTURES: Mapping[str, Architecture] = {
    LLAMA: _engine("llama", "0.8", pytorch="1.0"),
    "MistralForCausalLM": _engine("llama", "0.8", pytorch="1.0"),
    "MixtralForCausalLM": _engine("llama", "0.8", pytorch="1.0"),
    "InternLMForCausalLM": _engine("llama", "0.9"),
    "SkyworkForCausalLM": _engine("llama", "0.9"),
    "ArcticForCausalLM": _engine("llama", "0.10"),
    "ExaoneForCausalLM": _engine("llama", "0.13", autodeploy="1.3"),
    "GraniteForCausalLM": _engine("llama", "0.19", autodeploy="1.3"),
    "GraniteMoeForCausalLM": _engine("llama", "0.19"),
    "QWenLMHeadModel": _engine("qwen", "0.9", qwen_type="qwen"),
    "Qwen2ForCausalLM": _engine("qwen", "0.10", pytorch="1.0", qwen_type="qwen2"),
    "Qwen2MoeForCausalLM": _engine("qwen", "0.11", pytorch="1.0"),
    "Qwen3ForCausalLM": _engine("qwen", "1.0", pytorch="1.0"),
    "Qwen3MoeForCausalLM": _engine("qwen", "1.0", pytorch="1.0"),
    # Of Gemma's own formats only `hf` has a config.json; jax, keras and torch need flax on the worker, up to 0.12
    # the script imports it for every format.
    "GemmaForCausalLM": _engine("gemma", "0.9", **{"ckpt-type": "hf"}),
    "Gemma2ForCausalLM": _engine("gemma", "0.13", **{"ckpt-type": "hf"}),
    "Gemma3ForCausalLM": _engine("gemma", "0.19", pytorch="1.0", **{"ckpt-type": "hf"}),
    "RecurrentGemmaForCausalLM": _engine("recurrentgemma", "0.10", ckpt_type="hf"),
    "PhiForCausalLM": _engine("phi", "0.8"),
    # 0.10 takes its word for "not Phi-2", and reads the rest in config.json.
    "Phi3ForCausalLM": _engine("phi", "0.10", pytorch="1.0", model_type="Phi-3-mini-4k-instruct"),
    "Phi3SmallForCausalLM": _engine("phi", "0.11"),
    "PhiMoEForCausalLM": _engine("phi", "0.14"),
    "GPT2LMHeadModel": _engine("gpt", "0.9", gpt_variant="gpt2"),
    "GPTBigCodeForCausalLM": _engine("gpt", "0.9", gpt_variant="starcoder"),
    "Starcoder2ForCausalLM": _engine("gpt", "0.9", pytorch="1.2", gpt_variant="starcoder2"),
    "NemotronForCausalLM": _engine("gpt", "0.15", pytorch="1.0", gpt_variant="nemotron"),
    "GLMModel": _engine("chatglm", "0.8", chatglm_version="glm"),
    "ChatGLMModel": _engine("chatglm", "0.8", variant="--chatglm_version"),
    "ChatGLMForConditionalGeneration": _engine("chatglm", "1.2", variant="--chatglm_version"),
    "BaichuanForCausalLM": _engine("baichuan", "0.8", variant="--model_version"),
    "BaiChuanForCausalLM": _engine("baichuan", "0.8", variant="--model_version"),
    "FalconForCausalLM": _engine("falcon", "0.8"),
    "RWForCausalLM": _engine("falcon", "0.12"),
    "CohereForCausalLM": _engine("commandr", "0.15"),
    "InternLM2ForCausalLM": _engine("internlm2", "0.11"),
    # The script refuses to run without the option: the weights bring code, which the model's file must trust.
    "DeciLMForCausalLM": _engine("nemotron_nas", "0.14", pytorch="1.0", trust_remote_code=True),
    "DeepseekForCausalLM": _engine("deepseek_v1", "0.14"),
    "DeepseekV2ForCausalLM": _engine("deepseek_v2", "0.15", autodeploy="1.3"),
    "DbrxForCausalLM": _engine("dbrx", "0.10"),
    "BloomForCausalLM": _engine("bloom", "0.8"),
    "GPTJForCausalLM": _engine("gptj", "0.8"),
    "GPTNeoXForCausalLM": _engine("gptneox", "0.8"),
    "MPTForCausalLM": _engine("mpt", "0.8"),
    "OPTForCausalLM": _engine("opt", "0.8"),
    "MambaForCausalLM": _engine("mamba", "0.10"),
    "DeepseekV3ForCausalLM": _llm_api("1.0"),
    "Exaone4ForCausalLM": _llm_api("1.0"),
    "Gemma3ForConditionalGeneration": _llm_api("1.0"),
    "Llama4ForConditionalGeneration": _llm_api("1.0"),
    "LlavaNextForConditionalGeneration": _llm_api("1.0"),
    "Mistral3ForConditionalGeneration": _llm_api("1.0"),
    "MllamaForConditionalGeneration": _llm_api("1.0"),
    "NemotronHForCausalLM": _llm_api("1.0"),
    "Phi4MMForCausalLM": _llm_api("1.0"),
    "Qwen2VLForConditionalGeneration": _llm_api("1.0"),
    "Qwen2_5_VLForConditionalGeneration": _llm_api("1.0"),
    "GptOssForCausalLM": _llm_api("1.1"),
    "HunYuanDenseV1ForCausalLM": _llm_api("1.1"),
    "HunYuanMoEV1ForCausalLM": _llm_api("1.1"),
    "SeedOssForCausalLM": _llm_api("1.1"),
    "DeepseekV32ForCausalLM": _llm_api("1.2"),
    "Glm4MoeForCausalLM": _llm_api("1.2"),
    "MiniMaxM2ForCausalLM": _llm_api("1.2"),
    "MistralLarge3ForCausalLM": _llm_api("1.2"),
    "PixtralForConditionalGeneration": _llm_api("1.2"),
    "Qwen3NextForCausalLM": _llm_api("1.2"),
    "Qwen3VLForConditionalGeneration": _llm_api("1.2"),
    "Qwen3VLMoeForConditionalGeneration": _llm_api("1.2"),
    "AfmoeForCausalLM": _llm_api("1.3"),
    "Cohere2ForCausalLM": _llm_api("1.3"),
    "ExaoneMoEForCausalLM": _llm_api("1.3"),
    "Gemma3nForConditionalGeneration": _llm_api(autodeploy="1.3"),
    "Gemma4ForConditionalGeneration": _llm_api("1.3"),
    "Glm4MoeLiteForCausalLM": _llm_api(autodeploy="1.3"),
    "GlmMoeDsaForCausalLM": _llm_api("1.3"),
    "GraniteMoeHybridForCausalLM": _llm_api(autodeploy="1.3"),
    "KimiK25ForConditionalGeneration": _llm_api("1.3"),
    "DeepseekV4ForCausalLM": _llm_api("1.4"),
    "Gemma4ForCausalLM": _llm_api("1.4"),
    "InternLM3ForCausalLM": _llm_api(autodeploy="1.4"),
    "KimiLinearForCausalLM": _llm_api("1.4"),
    "LagunaForCausalLM": _llm_api("1.4"),
    "MiniMaxM3SparseForCausalLM": _llm_api("1.4"),
    "NemotronHPuzzleForCausalLM": _llm_api("1.4"),
    "Olmo3ForCausalLM": _llm_api(autodeploy="1.4"),
    "Qwen3_5ForCausalLM": _llm_api("1.4"),
    "Qwen3_5MoeForCausalLM": _llm_api("1.4"),
    "SmolLM3ForCausalLM": _llm_api(autodeploy="1.4"),
    "Step3p5ForCausalLM": _llm_api("1.4"),
}

# The folder of each converter below examples/models from 0.20 on. Before it is examples/CONVERTER.
_MOVED = {
    **{name: f"core/{name}" for name in ("llama", "qwen", "gemma", "recurrentgemma", "phi", "gpt", "commandr")},
    **{name: f"core/{name}" for name in ("internlm2", "nemotron_nas", "mamba")},
    "chatglm": "core/glm-4-9b",
    **{name: f"contrib/{name}" for name in ("baichuan", "bloom", "dbrx", "deepseek_v1", "deepseek_v2", "falcon")},
    **{name: f"contrib/{name}" for name in ("gptj", "gptneox", "mpt", "opt")},
}

# Classes that write no text. A class of the table counts first.
_WITHOUT_TEXT = (
    (r"^(T5|MT5|UMT5|Bart|MBart|LongT5|M2M100|Marian|Pegasus|Blenderbot|Whisper)", "an encoder with a decoder"),
    (r"For(Sequence|Token|Image|Audio)Classification$|RewardModel$|ForQuestionAnswering$", "a model that judges"),
    (r"Embedding", "an embedding model"),
    (r"^(CLIP|Siglip|ViT|Vit|Dino|Swin|DeiT|BEiT|Beit|SAM|Sam)|VisionModel$", "a vision model"),
    (r"ForMaskedLM$|^(Bert|Roberta|XLMRoberta|Deberta|DistilBert|ModernBert|Electra|NomicBert|Albert)", "an encoder"),
    (r"Model$", "a model without a head that predicts tokens, as embedding models are"),
)


def convert_script(converter: str, version: Version) -> str:
    """The converter's script below the folder of examples of 0.8 to 0.19, or below the folders of models since."""
    folder = _MOVED[converter].partition("/")[2] if in_span(version, "0.20") else converter
    return f"{folder}/convert_checkpoint.py"


def moved_script(script: str, version: Version) -> str:
    """Where a script, as `convert_script` names it, lies below the folder of examples of `version`."""
    folder = script.partition("/")[0]
    moved = next((place for place in _MOVED.values() if place.endswith(f"/{folder}")), "")
    return f"models/{moved}/convert_checkpoint.py" if moved and in_span(version, "0.20") else script


def is_converted_as_llama(name: str) -> bool:
    """Whether Llama's converter makes the checkpoints of the architecture."""
    return name in ARCHITECTURES and ARCHITECTURES[name].converter == "llama"


def engine_architecture(name: str, version: Version) -> Architecture:
    """What builds engines of `name` in `version`. Raises ArchitectureUnfit."""
    known = _known(name)
    if not known.engine:
        raise ArchitectureUnfit(f"no version of TensorRT-LLM builds engines of {name}: {_would_do(known)}")
    if not in_span(version, known.engine):
        raise ArchitectureUnfit(f"TensorRT-LLM {version} builds no engines of {name}: {_would_do(known)}")
    return known


def check_llm_api(name: str, version: Version, backend: object) -> None:
    """Raise ArchitectureUnfit unless the LLM API of `version` loads `name`. `backend` is `llm_args.backend`."""
    known = _known(name)
    # AutoDeploy takes what PyTorch does too.
    first = known.autodeploy or known.pytorch if backend == AUTODEPLOY else known.pytorch
    if not first or not in_span(version, first):
        raise ArchitectureUnfit(f"the LLM API of TensorRT-LLM {version} does not load {name}: {_would_do(known)}")


def _known(name: str) -> Architecture:
    if (known := ARCHITECTURES.get(name)) is not None:
        return known
    for pattern, what in _WITHOUT_TEXT:
        if re.search(pattern, name):
            raise ArchitectureUnfit(f"{name} is {what}: Enginehouse serves models that write text, one token at a time")
    # What nearly all names end with makes none of them the nearest.
    families = {each: each.partition("For")[0] for each in (*ARCHITECTURES, name)}
    alike = difflib.get_close_matches(families[name], families.values(), n=len(families), cutoff=0.8)
    near = difflib.get_close_matches(name, [each for each in ARCHITECTURES if families[each] in alike], n=1, cutoff=0.8)
    raise ArchitectureUnfit(
        f"no version of TensorRT-LLM is known to take {name}{f': did you mean {near[0]}?' if near else ''}; "
        "kind llamacpp serves it if there is a GGUF of it"
    )


def _would_do(known: Architecture) -> str:
    """The kinds and versions that take it, as a clause."""
    ways = [f"kind trt-engine does from {known.engine} to {LAST}"] if known.engine else []
    if known.pytorch:
        ways.append(f"kind llmapi does from {max(known.pytorch, FIRST_LLM_API, key=Version)} on")
    if known.autodeploy:
        ways.append(f"kind llmapi with `llm_args: {{backend: {AUTODEPLOY}}}` does from {known.autodeploy} on")
    if not (known.pytorch or known.autodeploy):
        ways.append("kind llmapi never does")
    return ", ".join(ways)
