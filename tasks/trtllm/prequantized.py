"""Checkpoints that are quantized already: which versions take which, and how.

Sources: the convert scripts and their parsers of 0.8 to 0.16; `load_hf_quant_config` in `_torch/model_config.py` and
`_update_from_hf_quant_config` in `llmapi/llm_utils.py`, of 1.0, of 1.2 and of the middle of 2026 (1.3 and 1.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from infra.errors import UsageError
from tasks.trtllm.recipe import TensorRtLlmFields, TrtEngineFields
from tasks.trtllm.releases import FIRST, FIRST_LLM_API, LAST, in_span
from tasks.weights.facts import WeightsFacts
from tasks.weights.quantized import Quantized

_SEEN_BY_ITSELF = "0.16"
"""The first release whose script of Llama, and of Qwen, reads GPTQ and AWQ in `config.json`."""
_SEEING = ("llama", "qwen")
_MANY_FILES = "0.13"
"""The first release that reads GPTQ weights from a folder. Before, its script opens one file."""


@dataclass(frozen=True)
class _Rule:
    """Quantized weights that a kind takes from release `since` on. `formats` are those of the method; empty for all."""

    method: str
    since: str
    formats: frozenset[str] = frozenset()

    def takes(self, quantized: Quantized) -> bool:
        return quantized.method == self.method and (not self.formats or quantized.format in self.formats)


_ENGINES = (_Rule("gptq", FIRST), _Rule("awq", _SEEN_BY_ITSELF), _Rule("fbgemm_fp8", "0.12"))
_LLM_API = (
    _Rule("modelopt", FIRST_LLM_API),
    _Rule("fp8", FIRST_LLM_API),
    _Rule("mxfp4", FIRST_LLM_API),
    # Packed integers are no format of the PyTorch backend, whoever packed them; nor are GPTQ and AWQ.
    _Rule("compressed-tensors", "1.3", frozenset({"float-quantized", "naive-quantized", "nvfp4-pack-quantized"})),
    _Rule("nvfp4", "1.3"),
    _Rule("mxfp8", "1.3"),
)
_RULES: Mapping[Literal["trt-engine", "llmapi"], tuple[_Rule, ...]] = {"trt-engine": _ENGINES, "llmapi": _LLM_API}

# What `quantization.quant_algo` of a converted checkpoint then is.
ALGORITHMS = {
    "gptq": frozenset({"W4A16_GPTQ"}),
    "awq": frozenset({"W4A16_GPTQ", "W4A16_AWQ"}),
    "fbgemm_fp8": frozenset({"FP8_PER_CHANNEL_PER_TOKEN"}),
}

# How the option for the file of quantized weights is spelled from a release on.
_PATHS = {"0.8": "--ammo_quant_ckpt_path", "0.10": "--modelopt_quant_ckpt_path", "0.11": "--quant_ckpt_path"}
# What the scripts that know int4_gptq are told beside it: the file, that scales are of groups, how large these are.
_TOLD = {
    "llama": ("path", "--per_group", "--group_size"),
    "qwen": ("--per_group", "--group_size"),
    "baichuan": ("path", "--group_size"),
    "gptneox": ("path",),
}


def require_taken(recipe: TensorRtLlmFields, facts: WeightsFacts) -> None:
    """Raise UsageError `weights-quantized` if the recipe's kind and version do not take weights quantized like that."""
    quantized = facts.quantization
    if quantized is None:
        return
    if recipe.quantization != "none":
        raise _not_taken(
            f"recipe.quantization is {recipe.quantization}, and the weights are quantized already: {quantized}",
            "`quantization: none` takes them as they are; or name the unquantized weights as the source",
        )
    kind, version = "trt-engine" if isinstance(recipe, TrtEngineFields) else "llmapi", recipe.runtime.version
    if not any(rule.takes(quantized) and in_span(version, rule.since) for rule in _RULES[kind]):
        raise _not_taken(
            f"kind {kind} of TensorRT-LLM {version} does not take weights that are quantized already by {quantized}",
            _what_would_do(quantized),
        )
    if kind == "trt-engine":
        _require_gptq(quantized, facts, version)
    elif quantized.method == "fp8" and quantized.block_size not in ((128, 128), ()):
        raise _not_taken(
            f"the LLM API takes FP8 weights in blocks of 128 x 128, and these are {quantized}", _UNQUANTIZED
        )


def require_mergeable(facts: WeightsFacts) -> None:
    """Raise UsageError `weights-quantized` if an adapter cannot be merged into the weights.

    MXFP4 is of experts alone: the attention of gpt-oss, which most adapters change, is bfloat16.
    """
    quantized = facts.quantization
    if quantized is not None and quantized.method != "mxfp4":
        raise _not_taken(
            f"the adapter cannot be merged into weights that are quantized already by {quantized}",
            "name the unquantized weights as the source, or let requests choose it: `adapters`",
        )


def convert_options(
    converter: str, facts: WeightsFacts | None, version: Version, model: str
) -> dict[str, str | int | bool]:
    """The options of `converter`, the folder of a convert script, for weights that are quantized already.

    `model` is the folder of the weights. Empty for others, and where the script sees it by itself. Raises UsageError
    `weights-quantized` for a script that does not know how.
    """
    quantized = facts.quantization if facts is not None else None
    if facts is None or quantized is None:
        return {}
    if quantized.method == "fbgemm_fp8" and converter == "llama":
        return {}
    if converter in _SEEING and in_span(version, _SEEN_BY_ITSELF):
        return {}
    if converter not in _TOLD or quantized.method != "gptq":
        raise _not_taken(
            f"examples/{converter}/convert_checkpoint.py of TensorRT-LLM {version} takes no weights that are quantized "
            f"already by {quantized}",
            _UNQUANTIZED,
        )
    options: dict[str, str | int | bool] = {"--use_weight_only": True, "--weight_only_precision": "int4_gptq"}
    for word in _TOLD[converter]:
        match word:
            case "path":
                spelled = [option for since, option in _PATHS.items() if in_span(version, since)][-1]
                options[spelled] = model if in_span(version, _MANY_FILES) else f"{model}/{_only_file(facts)}"
            case "--group_size":
                options[word] = quantized.group_size or 128
            case _:
                options[word] = True
    return options


def _require_gptq(quantized: Quantized, facts: WeightsFacts, version: Version) -> None:
    if quantized.method != "gptq":
        return
    if quantized.reordered or quantized.bits not in (None, 4) or quantized.group_size is None:
        raise _not_taken(
            f"engines take GPTQ weights of 4 bits in groups, without desc_act, and these are {quantized}", _UNQUANTIZED
        )
    if len(facts.files) > 1 and not in_span(version, _MANY_FILES):
        raise _not_taken(
            f"TensorRT-LLM {version} reads GPTQ weights from one file, and these have {len(facts.files)}",
            f"TensorRT-LLM {_MANY_FILES} to {LAST} reads several",
        )


def _only_file(facts: WeightsFacts) -> str:
    return facts.files[0] if facts.files else "model.safetensors"


_UNQUANTIZED = "name the unquantized weights as the source, and say recipe.quantization: int4_awq or fp8, for example"


def _what_would_do(quantized: Quantized) -> str:
    ways = [
        f"kind {kind} with TensorRT-LLM {rule.since} {f'to {LAST}' if kind == 'trt-engine' else 'or later'} does"
        for kind, rules in _RULES.items()
        for rule in rules
        if rule.takes(quantized)
    ]
    return "; ".join([*ways, f"or {_UNQUANTIZED}" if ways else _UNQUANTIZED])


def _not_taken(problem: str, hint: str) -> UsageError:
    return UsageError(problem, hint=hint, code="weights-quantized")
