"""Whether weights are what a recipe says, and can be divided so, before their tool finds out that they cannot."""

from __future__ import annotations

from infra.errors import UsageError
from tasks.trtllm.planned_limits import has_attention_of_its_own
from tasks.trtllm.recipe import TensorRtLlmFields, TrtEngineFields
from tasks.trtllm.releases import LAST, in_span
from tasks.weights.facts import WeightsFacts

_FIRST_LLAMA3 = "0.12"


def require_architecture(recipe: TensorRtLlmFields, facts: WeightsFacts) -> str:
    """The architecture of the weights. Raises UsageError `architecture-differs` if the recipe names another one, and
    `architecture-unknown` if neither names any.
    """
    named, found = recipe.architecture or "", facts.architecture
    if not (named or found):
        raise UsageError(
            "config.json of the weights names no architecture",
            hint="name it in recipe.architecture: LlamaForCausalLM",
            code="architecture-unknown",
        )
    if named and found and named != found:
        raise UsageError(
            f"the recipe is for {named}, and config.json of the weights names {found}",
            hint="correct recipe.architecture, or the source",
            code="architecture-differs",
        )
    return found or named


def require_positions(recipe: TrtEngineFields, facts: WeightsFacts) -> None:
    """Raise UsageError `weights-unfit` if engines of the version do not scale positions as the weights need it.

    Source: layers/attention.py, which up to 0.11 takes `linear` and `dynamic` alone. Llama 3.1 and later have `llama3`.
    """
    if facts.rope_scaling == "llama3" and not in_span(recipe.runtime.version, _FIRST_LLAMA3):
        raise UsageError(
            f"{facts.architecture}: TensorRT-LLM {recipe.runtime.tensorrt_llm} does not scale positions as these "
            f"weights need it (rope_type llama3): {_FIRST_LLAMA3} to {LAST} do",
            hint="choose another version with --runtime, or weights of Llama 3.0 or before",
            code="weights-unfit",
        )


def architecture_unfit(problem: ValueError) -> UsageError:
    """The error for weights that the version of TensorRT-LLM does not take, or not as the recipe asks."""
    return UsageError(
        str(problem),
        hint="change the recipe: its kind, or its version, which `enginehouse plan NAME --runtime VERSION` tries. Or "
        "take other weights",
        code="architecture-unfit",
    )


def require_parallel(recipe: TensorRtLlmFields, facts: WeightsFacts) -> None:
    """Raise UsageError `weights-unfit` unless heads, experts and layers divide over the recipe's GPUs.

    Sources: layers/attention.py, layers/moe.py and mapping.py of 0.8 to 0.16; `_torch/modules/attention.py`.
    """
    tensor = 1 if has_attention_of_its_own(recipe) else recipe.tp_size
    if facts.heads is not None and facts.heads % tensor:
        raise _unfit(facts, f"{facts.heads} heads do not divide by tp_size {tensor}", "tp_size", facts.heads)
    for heads in facts.key_value_heads:
        if heads % tensor and tensor % heads:
            raise _unfit(facts, f"{heads} heads of keys and values do not go with tp_size {tensor}", "tp_size", heads)
    experts = recipe.moe_ep_size or 1
    if experts > 1 and facts.experts % experts:
        raise _unfit(
            facts, f"{facts.experts} experts do not divide by moe_ep_size {experts}", "moe_ep_size", facts.experts
        )
    if experts > 1 and not facts.experts:
        raise UsageError(
            f"the model has no experts, and the recipe divides them: moe_ep_size {experts}",
            hint="leave moe_tp_size and moe_ep_size out of the recipe",
            code="weights-unfit",
        )
    _require_stages(recipe, facts)


def _require_stages(recipe: TensorRtLlmFields, facts: WeightsFacts) -> None:
    if facts.layers is None:
        return
    # The stages of an engine have equally many layers. PyTorch gives the first ones what is left over.
    if isinstance(recipe, TrtEngineFields) and facts.layers % recipe.pp_size:
        raise _unfit(facts, f"{facts.layers} layers do not divide by pp_size {recipe.pp_size}", "pp_size", facts.layers)
    if facts.layers < recipe.pp_size:
        raise _unfit(facts, f"{facts.layers} layers are fewer than pp_size {recipe.pp_size}", "pp_size", facts.layers)


def _unfit(facts: WeightsFacts, problem: str, field: str, whole: int) -> UsageError:
    sizes = ", ".join(str(size) for size in range(1, min(whole, 64) + 1) if whole % size == 0)
    name = facts.architecture or facts.model_type or "the model"
    return UsageError(f"{name}: {problem}", hint=f"sizes that do: recipe.{field} {sizes}", code="weights-unfit")
