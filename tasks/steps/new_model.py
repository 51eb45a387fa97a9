"""A first model for weights that nobody has described yet: the kind that takes them, and limits that fit their GPU.

What is proposed was checked as a plan checks it, against what the weights say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.version import Version
from pydantic import ValidationError

from infra.errors import SpecError, UsageError
from infra.frozen import problems
from tasks.kinds.choice import engine_kind
from tasks.models.spec import Model
from tasks.trtllm.products import PRODUCTS, alike, architecture_of, gpu_memory_bytes
from tasks.trtllm.releases import FIRST_LLM_API, in_span, without_engines
from tasks.weights.facts import WeightsFacts

_GPUS = (1, 2, 4, 8)
"""Of one host, which serves a model. The fewest that hold it are taken."""
_CONTEXTS = (16384, 8192, 4096, 2048, 1024)
"""Tokens of one request. Longer ones take memory from others: who needs them says so."""
_MOST_SLOTS = 64
_FEWEST_SLOTS = 4
"""Fewer requests at once than these are no reason for a long context: a shorter one is tried first."""
_PASS_TOKENS = 8192
"""Tokens of one pass, for which the memory beside weights and cache is reckoned (`WORKSPACE_BYTES`)."""
_PROMPT: Mapping[str, Any] = {
    "name": "count-in-french",
    "text": "How do I count to nine in French?",
    "max_tokens": 64,
    "seed": 7,
    "temperature": 0,
    "expect": {"min_tokens": 5, "max_latency_s": 60},
}
_ON_A_CPU = {"slots": 2, "context_tokens": 2048}


@dataclass(frozen=True)
class Weights:
    """What is known of the weights before anything is fetched. `gguf` is the file that is taken, or its pattern."""

    uri: str
    include: tuple[str, ...] = ()
    facts: WeightsFacts | None = None
    gguf: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Proposal:
    """A model, the document that a file says it by, and what the weights say."""

    model: Model
    document: Mapping[str, Any]
    weights: Weights


def propose(weights: Weights, name: str, gpu: str, versions: Iterable[Version], target: str) -> Proposal:
    """A model of these weights on GPUs of a product, or without one on the CPU.

    `versions` are those of TensorRT-LLM that an image has. Raises UsageError: `gpu-unknown`, `gpu-too-small`,
    `architecture-unfit` if no kind and version takes the weights, and `gguf-on-gpu`; SpecError for a name that no model
    can have.
    """
    base = _Base(weights, name, target)
    base.proposal({"kind": "llamacpp"}, {})  # what is wrong with the name is told as that
    if weights.gguf:
        if gpu:
            raise UsageError(
                f"{weights.uri} has GGUF alone, which llama.cpp serves on the CPU",
                hint="leave --gpu out, or name a repository that has safetensors",
                code="gguf-on-gpu",
            )
        return base.proposal({"kind": "llamacpp", "quantization": "q8_0"}, {"slots": 4, "context_tokens": 2048})
    facts = weights.facts
    assert facts is not None, "weights that are no GGUF have a config.json"
    if not gpu:
        context = min(_ON_A_CPU["context_tokens"], facts.context or 2048)
        recipe = {"kind": "transformers", "device": "cpu"}
        return base.checked(recipe, {**_ON_A_CPU, "context_tokens": context}, facts)
    return _on_gpus(base, facts, _known_gpu(gpu), sorted(versions, reverse=True))


def _known_gpu(gpu: str) -> str:
    if architecture_of(gpu):
        return gpu
    names = alike(gpu)
    if len(names) == 1:  # one word is enough where there is one such product
        return names[0]
    raise UsageError(
        f"no GPU called '{gpu}' is known",
        hint=f"name one as nvidia-smi does: {', '.join(names or PRODUCTS)}",
        code="gpu-unknown",
    )


@dataclass(frozen=True)
class _Base:
    """What does not depend on the kind."""

    weights: Weights
    name: str
    target: str

    def proposal(self, recipe: Mapping[str, Any], serving: Mapping[str, Any]) -> Proposal:
        """Raises SpecError."""
        facts, include = self.weights.facts, self.weights.include
        template = {"chat_template": False} if facts is not None and facts.has_template is False else {}
        document = {
            "name": self.name,
            "description": self._description(),
            "source": {"uri": self.weights.uri, **({"include": list(include)} if include else {})},
            "recipe": dict(recipe),
            "serving": {**serving, **template},
            "targets": [self.target],
            "prompts": [dict(_PROMPT)],
        }
        try:
            return Proposal(Model.model_validate(document), document, self.weights)
        except ValidationError as error:
            raise SpecError(f"such a model cannot be: {problems(error)}") from error

    def checked(self, recipe: Mapping[str, Any], serving: Mapping[str, Any], facts: WeightsFacts) -> Proposal:
        """Raises as a plan does."""
        made = self.proposal(recipe, serving)
        engine_kind(made.model).require_weights(facts)
        return made

    def _description(self) -> str:
        repository = self.weights.uri.removeprefix("hf://").partition("@")[0]
        licence = f" Licence: {self.weights.licence}." if self.weights.licence else ""
        return f"{repository}.{licence}"


def _on_gpus(base: _Base, facts: WeightsFacts, gpu: str, versions: Sequence[Version]) -> Proposal:
    """By the newest version that takes the weights, on the fewest GPUs that hold them."""
    refused: UsageError | None = None
    for version, kind in _ways(versions):
        for gpus in _GPUS:
            runtime = {"tensorrt_llm": str(version), "gpu": gpu, "arch": architecture_of(gpu), "gpus": gpus}
            recipe = {"kind": kind, "architecture": facts.architecture, "runtime": runtime, "dtype": _dtype(facts)}
            try:
                if (found := _with_limits(base, facts, {**recipe, "tp_size": gpus})) is not None:
                    return found
            except SpecError as error:  # this version does not take them, on however many GPUs
                refused = refused or error
                break
            except UsageError as error:  # they cannot be divided so
                refused = refused or error
                continue
            if gpus == _GPUS[-1]:
                raise _too_small(facts, gpu)
    why = "the list of images has none" if refused is None else refused.message
    raise UsageError(
        f"no TensorRT-LLM that an image has takes these weights: {why}",
        hint="ENGINEHOUSE_IMAGES names your own list of images; without --gpu the file is for PyTorch on the CPU",
        code="architecture-unfit",
    )


def _ways(versions: Sequence[Version]) -> Iterator[tuple[Version, str]]:
    """Versions with a kind, the one to be tried first before: with the LLM API nothing is built ahead."""
    for version in versions:
        if in_span(version, FIRST_LLM_API):
            yield version, "llmapi"
        if not without_engines(version):
            yield version, "trt-engine"


def _with_limits(base: _Base, facts: WeightsFacts, recipe: Mapping[str, Any]) -> Proposal | None:
    """With the longest context of which the GPUs hold several; None if they do not hold the weights with a short one.

    Raises SpecError, and UsageError as a plan does.
    """
    most = facts.context or _CONTEXTS[-2]
    lengths = [tokens for tokens in _CONTEXTS if tokens <= most] or [most]
    for tokens in lengths:
        limits = {"max_input_len": min(3 * tokens // 4, _PASS_TOKENS), "max_seq_len": tokens}

        def made(slots: int, tokens: int = tokens, limits: Mapping[str, int] = limits) -> Proposal:
            full = {**recipe, **limits, "max_batch_size": slots, "max_num_tokens": _PASS_TOKENS}
            return base.checked(full, {"slots": slots, "context_tokens": tokens}, facts)

        try:
            planned = engine_kind(made(_MOST_SLOTS).model).planned_cache(facts)
        except UsageError as error:
            if error.code != "gpu-too-small":
                raise
            continue
        if planned.tokens is None:
            if planned.fraction is not None:  # nobody knows what a token takes: a share of the memory is its cache
                return made(_FEWEST_SLOTS)
            continue
        slots = min(_MOST_SLOTS, planned.tokens // tokens)
        if slots >= _FEWEST_SLOTS or (slots and tokens == lengths[-1]):
            return made(slots)
    return None


def _dtype(facts: WeightsFacts) -> str:
    return facts.dtype if facts.dtype in ("float16", "bfloat16") else "bfloat16"


def _too_small(facts: WeightsFacts, gpu: str) -> UsageError:
    memory = gpu_memory_bytes(gpu) or 0
    return UsageError(
        f"{(facts.bytes or 0) >> 30} GiB of weights do not fit {_GPUS[-1]} x {gpu} with {memory >> 30} GiB each",
        hint="take a larger GPU (--gpu), or weights that are quantized already",
        code="gpu-too-small",
    )
