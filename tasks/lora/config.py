"""What an adapter says of itself, by which one that is of no use is refused before anything is built.

Apart from `adapter`, which reads its tensors: who plans needs no numpy. Source: PEFT 0.21.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, ValidationError

from infra.errors import StepFailed
from infra.frozen import problems

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
"""The files that are taken of an adapter. Its repository may also hold pickles, training states and a tokenizer."""

# Each of these settings makes it another method, which adds something else, or does not add it to every token.
_OTHER_METHODS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# These change the model's own weights before the training begins. The adapter then fits the changed weights only.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterConfig(BaseModel):
    """What `adapter_config.json` says, of type LORA and of no method that adds something else."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    lora_alpha: FiniteFloat
    r: PositiveInt = 8
    rank_pattern: dict[str, PositiveInt] | None = None
    target_modules: tuple[str, ...] | str | None = None
    """Ends of modules' names; a text is a regular expression."""
    modules_to_save: tuple[str, ...] | None = None
    alpha_pattern: dict[str, FiniteFloat] = {}
    """By regular expressions that match the end of a module's name."""
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    target_parameters: tuple[str, ...] | None = None


class _Base(BaseModel):
    base_model_name_or_path: str | None = None


def trained_on(config: bytes) -> str | None:
    """The model that an adapter with this CONFIG was trained on: a name on the Hub, or a path on some machine.

    None if it does not say. Whether the adapter is of any use is another question.
    """
    try:
        return _Base.model_validate_json(config).base_model_name_or_path
    except ValidationError:
        return None


def parse_config(text: bytes) -> AdapterConfig:
    """Raises StepFailed `adapter-unfit`."""
    try:
        config = AdapterConfig.model_validate_json(text)
    except ValidationError as error:
        raise unfit(f"its {CONFIG} is not one of LoRA: {problems(error)}") from error
    if config.peft_type != "LORA":
        raise unfit(f"it is of type {config.peft_type}, not LORA")
    if others := [name for name in _OTHER_METHODS if (config.model_extra or {}).get(name)]:
        raise unfit(f"its {CONFIG} sets {', '.join(others)}, which cannot be merged")
    initial = config.init_lora_weights
    if isinstance(initial, str) and initial.lower().startswith(_CHANGE_THE_BASE):
        raise unfit(f"its training changed the model's own weights first (init_lora_weights {initial})")
    return config


def check_requested(config: AdapterConfig, most: int | None = None) -> None:
    """Raise StepFailed `adapter-unfit` if no engine can add it to a request: by its config alone, before a build.

    A rank above `most` is refused too, None: any rank.
    """
    if config.modules_to_save:
        raise not_by_request(f"{', '.join(config.modules_to_save)} were trained whole")
    if config.use_dora:
        raise not_by_request("it is one of DoRA")
    if config.fan_in_fan_out:
        raise not_by_request("its matrices are transposed (fan_in_fan_out)")
    if config.target_parameters:
        raise not_by_request(f"it adds to parameters ({', '.join(config.target_parameters)})")
    largest = max((config.r, *(config.rank_pattern or {}).values()))
    if most is not None and largest > most:
        raise unfit(f"its rank is {largest}, and there is room for {most}", hint="raise recipe.lora.max_rank")


def not_by_request(what: str) -> StepFailed:
    """The error for an adapter that no engine adds to a request."""
    return unfit(what, hint="merge it into the weights: `adapter`")


_OTHER_WEIGHTS = (
    "name the model that it was trained on as `source`, or merge it where it was trained and name the result"
)


def unfit(what: str, hint: str = _OTHER_WEIGHTS) -> StepFailed:
    """The error for an adapter that cannot be added to these weights."""
    return StepFailed(f"the adapter does not fit: {what}", hint=hint, code="adapter-unfit")
