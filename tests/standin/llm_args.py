"""The arguments of a model and of a request in the stand-in for `tensorrt_llm`.

`llm_args.json` has the names of each version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .llm_lora import check_lora_config

FACTS = "llm_args.json"

Version: TypeAlias = tuple[float, ...]
Sampler: TypeAlias = Literal["cpp", "early torch", "torch"]


@dataclass(slots=True, kw_only=True)
class GuidedDecodingParams:
    """One guide. The fields are those of 1.0 to 1.4."""

    json: str | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False

    def guide(self) -> tuple[str, str]:
        """Its type, as the C++ backend names it, and its text."""
        given = [
            (kind, str(value))
            for kind, value in (
                ("json_schema", self.json),
                ("regex", self.regex),
                ("ebnf_grammar", self.grammar),
                ("json", self.json_object and "any"),
            )
            if value
        ]
        if len(given) != 1:
            raise ValueError(f"Only one guide can be used for a request, but got {len(given)}.")
        return given[0]


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """How to sample. The fields are those of 1.0 to 1.4."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: str | list[str] | None = None
    bad_token_ids: list[int] | None = None
    _bad_word_ids: list[list[int]] | None = field(default=None, init=False, repr=False)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    _stop_word_ids: list[list[int]] | None = field(default=None, init=False, repr=False)
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    logprobs: int | None = None
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.pad_id is None:
            self.pad_id = self.end_id
        self.best_of = self.best_of or self.n
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
        if self.best_of < self.n:
            raise ValueError(f"best_of ({self.best_of}) cannot be less than n ({self.n})")
        if self.best_of > 1 and not self.use_beam_search:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")

    def words(self, kind: Literal["bad", "stop"]) -> list[list[int]]:
        single: list[int] = getattr(self, f"{kind}_token_ids") or []
        processed: list[list[int]] | None = getattr(self, f"_{kind}_word_ids")
        if (texts := getattr(self, kind)) is not None and processed is None:
            raise RuntimeError(
                f"SamplingParams.{kind} ({texts}) is not processed by tokenizer, please call the setup method."
            )
        return [[token_id] for token_id in single] + (processed or [])


def sampler_of(version: Version, arguments: Mapping[str, Any]) -> Sampler:
    """The sampler that runs. The early one of PyTorch ignores many arguments in silence; later it is the only one."""
    known = _known(version)["LLM"]
    if "enable_trtllm_sampler" in known:
        return "cpp" if arguments.get("enable_trtllm_sampler") else "early torch"
    if "sampler_type" not in known:
        return "torch"
    chosen = arguments.get("sampler_type", "auto")
    searches = (arguments.get("max_beam_width") or 1) > 1
    return "cpp" if chosen == "TRTLLMSampler" or (chosen == "auto" and searches) else "early torch"


_OBJECTS = {
    "kv_cache_config": "KvCacheConfig",
    "scheduler_config": "SchedulerConfig",
    "peft_cache_config": "PeftCacheConfig",
    "cuda_graph_config": "CudaGraphConfig",
    "moe_config": "MoeConfig",
    "torch_compile_config": "TorchCompileConfig",
    "lora_config": "LoraConfig",
}

FIRST_SPECULATION_BY_DICTIONARY: Version = (1, 3, 0, 1)
"""From this version on the LLM reads `decoding_type` in a dictionary. Before, it takes an object alone."""


class DecodingBaseConfig:
    """Speculation as an object, which the LLM of versions before 1.3 takes."""

    def __init__(self, decoding_type: str, fields: Mapping[str, Any]) -> None:
        self.decoding_type = decoding_type
        self.fields = dict(fields)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DecodingBaseConfig:
        decoding_type = data.pop("decoding_type", None)
        if decoding_type not in _known((1, 2, 0, float("inf")))["speculation"]:
            raise ValueError(f"Invalid decoding type: {decoding_type}")
        return cls(decoding_type, data)


def known_names(version: str) -> dict[str, frozenset[str]]:
    """The names of the arguments of a version (`LLM`) and of the fields of their objects, by class."""
    known = _known(parts(version))
    return {owner: frozenset(known[owner]) for owner in ("LLM", *_OBJECTS.values())}


def check_arguments(version: Version, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError, in the real one's words, for an argument that the version does not take."""
    known = _known(version)
    for name in arguments:
        if name not in known["LLM"]:
            raise ValueError(f"LLM got invalid argument: {name}")
    for name, owner in _OBJECTS.items():
        _check_fields(owner, _object(arguments, name), known[owner])
    _check_speculation(version, arguments.get("speculative_config"), known["speculation"])
    cache, scheduler = _object(arguments, "kv_cache_config"), _object(arguments, "scheduler_config")
    if arguments.get("lora_config") is not None:
        check_lora_config(arguments["lora_config"])
    share = cache.get("free_gpu_memory_fraction")
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"Invalid freeMemFraction, freeMemFraction {share} must be smaller than 1.0")
    if arguments.get("sampler_type", "auto") not in ("auto", "TRTLLMSampler", "TorchSampler"):
        raise ValueError(f"Sampler type {arguments['sampler_type']} is not supported.")
    policy = scheduler.get("capacity_scheduler_policy", "GUARANTEED_NO_EVICT")
    if policy not in ("GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"):
        raise ValueError(f"1 validation error for SchedulerConfig\ncapacity_scheduler_policy: {policy}")


def _check_fields(owner: str, given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"1 validation error for {owner}\n{name}\n  Extra inputs are not permitted")


def _check_speculation(version: Version, given: Any, known: Mapping[str, list[str]]) -> None:
    if given is None:
        return
    if version < FIRST_SPECULATION_BY_DICTIONARY:
        if not isinstance(given, DecodingBaseConfig):
            raise ValueError("1 validation error for TorchLlmArgs\nspeculative_config.decoding_type\n  Extra inputs")
        decoding_type, fields = given.decoding_type, given.fields
    else:
        fields = dict(given)
        decoding_type = fields.pop("decoding_type", None)
    if decoding_type not in known:
        raise ValueError(f"Input tag '{decoding_type}' found using 'decoding_type' does not match any of the expected")
    if decoding_type in ("Medusa", "Lookahead"):
        raise ValueError(f"Speculation type {decoding_type} does not support backend pytorch")
    _check_fields(f"{decoding_type}DecodingConfig", fields, known[decoding_type])
    if decoding_type.startswith(("Draft", "Eagle")):
        model = fields.get("speculative_model") or fields.get("speculative_model_dir")
        if model is None:
            raise ValueError(f"Draft model must be provided for {decoding_type}")
        if not (Path(model) / "config.json").is_file():
            raise ValueError(f"{model} is not a local folder and is not a valid model identifier")
        if not fields.get("max_draft_len"):
            raise ValueError(f"max_draft_len must be > 0 for {decoding_type}")


def _object(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    return arguments.get(name) or {}


def _known(version: tuple[float, ...]) -> dict[str, Any]:
    facts: list[dict[str, Any]] = json.loads(Path(__file__).with_name(FACTS).read_text())
    return next(entry for entry in facts if not entry["until"] or version < parts(entry["until"]))


def parts(version: str) -> tuple[float, ...]:
    """(1, 3, 0, 26) for 1.3.0rc26; a release is after all of its candidates."""
    release, _, candidate = version.partition("rc")
    numbers = [int(part) for part in release.split(".")]
    return (*numbers, *[0] * (3 - len(numbers)), float(candidate) if candidate else float("inf"))
