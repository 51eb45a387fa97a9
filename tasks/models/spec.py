"""A model's file, `deployments/models/NAME.yaml`: what to serve, from where, how, and which prompts prove it.

All of it is frozen once it is parsed. Parsing applies the rules of hardware and versions, so a recipe that its GPU
cannot run is an error before anything is fetched.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from infra.errors import UsageError
from infra.frozen import FrozenDict, Spec, problems
from tasks.models.approval import ApprovalSpec
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.gates import SMOKE, Gates
from tasks.models.recipe import AnyRecipe, Recipe, kind_of
from tasks.models.registry import RegistrySpec
from tasks.models.rollout import Rollout
from tasks.models.source import REMOTE, Glob, Source, checked, folder
from tasks.models.source_uri import ModelsUri, PipUri
from tasks.models.updates import Updates
from tasks.models.watch import WatchSpec
from tasks.store.names import RELEASE_MARK, Alias, collision
from tasks.targets.parsers import ReasoningParserName, ToolParserName
from tasks.trtllm.serving import TensorRtServing


def _is_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=100)]
AdapterName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._/-]*$", max_length=63)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=63)]
Regex = Annotated[str, StringConstraints(min_length=1), AfterValidator(_is_regex)]
Text = Annotated[str, StringConstraints(min_length=1)]


class SamplingDefaults(Spec):
    """Values for a request that sets none. None: the engine's own default."""

    temperature: float | None = Field(default=None, ge=0, description="0: always the likeliest token.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Of the probability that is chosen from.")
    top_k: int | None = Field(default=None, ge=0, description="Tokens that are chosen from; 0: all.")
    repetition_penalty: float | None = Field(default=None, gt=0, description="1: none.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="0: none.")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, description="0: none.")


class Serving(Spec):
    """How the model answers, whatever its kind."""

    chat_template: bool = Field(default=True, description="Treat text_input as one user message, not as raw text.")
    slots: int = Field(default=8, ge=1, le=1024, description="Requests that generate at the same time.")
    context_tokens: int = Field(default=2048, ge=16, description="Prompt and answer of one request together.")
    request_timeout_s: float = Field(default=60, gt=0, description="A request older than this is ended with an error.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Of an answer whose request does not say. None: what the context has room for."
    )
    contract: Literal[1, 2] = Field(
        default=2, description="What clients send and get. 1: without chats, counts and the reason of the end."
    )
    aliases: tuple[Alias, ...] = Field(
        default=(),
        description="Further public names of the model, which NVIDIA's published clients ask for. "
        "Each is one model's alone on a target.",
    )
    tool_parser: ToolParserName | None = Field(
        default=None, description="How the model writes calls of tools. None: OpenAI's clients get none by `auto`."
    )
    reasoning_parser: ReasoningParserName | None = Field(
        default=None, description="How the model marks its reasoning, which OpenAI's clients get apart from the answer."
    )
    defaults: SamplingDefaults = Field(default=SamplingDefaults(), description="For requests that set none.")
    tensorrt_llm: TensorRtServing | None = Field(default=None, description="Of the kinds of TensorRT-LLM alone.")

    @field_validator("aliases")
    @classmethod
    def _each_once(cls, aliases: tuple[Alias, ...]) -> tuple[Alias, ...]:
        if len(set(aliases)) < len(aliases):
            raise ValueError("names one twice")
        return aliases

    @model_validator(mode="after")
    def _has_chats_for_its_parsers(self) -> Self:
        if self.contract == 1 and (self.tool_parser or self.reasoning_parser):
            raise ValueError("contract 1 has no chats, so tool_parser and reasoning_parser need contract 2")
        return self


class Expectations(Spec):
    """What the answer to a prompt must be like. Each expectation that is given must hold."""

    min_tokens: int | None = Field(
        default=None,
        ge=1,
        description="At least so many tokens; with contract 1 pieces of a stream, of a token or more each.",
    )
    contains: tuple[Text, ...] = Field(
        default=(), description="Each of these, letter by letter, somewhere in the answer."
    )
    matches: Regex | None = Field(default=None, description="A Python regular expression, searched in the answer.")
    is_json: bool = Field(default=False, alias="json", description="The whole answer parses as JSON.")
    max_latency_s: float | None = Field(default=None, gt=0, description="From request to last token.")
    stream_equals: bool = Field(default=False, description="Asked as a stream, the pieces add up to the same answer.")
    repeats_with_seed: bool = Field(default=False, description="Asked twice with the prompt's seed, the same answer.")

    @model_validator(mode="after")
    def _expects_something(self) -> Self:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("name at least one expectation, or the prompt can never fail")
        return self


class Prompt(Spec):
    """One test prompt of the smoke gate."""

    name: Name = Field(description="By which verdicts name it.")
    text: Text = Field(description="What is asked.")
    max_tokens: int = Field(ge=1, description="Of the answer.")
    seed: int | None = Field(default=None, ge=0, lt=2**64, description="None: each answer may be another.")
    temperature: float | None = Field(default=None, ge=0, description="None: the default of `serving`.")
    expect: Expectations = Field(description="What the answer must be like.")

    @field_validator("expect")
    @classmethod
    def _can_be_met(cls, expect: Expectations, info: ValidationInfo) -> Expectations:
        max_tokens = info.data.get("max_tokens")
        if max_tokens is not None and expect.min_tokens is not None and expect.min_tokens > max_tokens:
            raise ValueError(f"min_tokens {expect.min_tokens} is more than max_tokens {max_tokens}")
        needs_seed = [name for name in ("stream_equals", "repeats_with_seed") if getattr(expect, name)]
        if needs_seed and info.data.get("seed") is None:
            raise ValueError(f"{' and '.join(needs_seed)}: give the prompt a seed, or two answers may differ")
        return expect


class Model(Spec):
    """A whole catalogue entry."""

    name: Name = Field(description="The public name, and that of the file.")
    description: str = Field(default="", description="For people.")
    labels: dict[LabelName, LabelValue] = Field(
        default={},
        validate_default=True,
        description="For people, such as `team: search`; `enginehouse status` filters.",
    )
    source: Source = Field(description="Where the weights come from.")
    adapter: str | None = Field(
        default=None, description="A LoRA adapter, as PEFT saves it, that is merged into the weights of `source`."
    )
    accepts: tuple[Glob, ...] = Field(
        default=(), description="Other sources, or adapters, that events may name; never file:// or pip://."
    )
    recipe: AnyRecipe = Field(description="How the weights become something that can be served.")
    serving: Serving = Field(default=Serving(), description="How the model answers.")
    adapters: dict[AdapterName, str] = Field(
        default={},
        validate_default=True,
        description="LoRA adapters by name, of which each request may choose one (`lora_name`, or MODEL:NAME of "
        "OpenAI's clients). hf://org/repo@revision/folder is one of several in a repository.",
    )
    updates: Updates = Field(default=Updates(), description="Which new versions of TensorRT-LLM it takes by itself.")
    targets: tuple[Name, ...] = Field(default=("local",), description="Empty: built into the store alone.")
    prompts: tuple[Prompt, ...] = Field(description="What each candidate is asked first. At least one.")
    gates: Gates | None = Field(
        default=None, description="What a candidate must prove beside its prompts. Without it, nothing."
    )
    approval: ApprovalSpec = Field(
        default=ApprovalSpec(when="never"), description="Whether a person decides before traffic moves to a release."
    )
    rollout: Rollout = Field(default=Rollout(), description="How and when traffic moves to a release.")
    watch: WatchSpec | None = Field(
        default=None, description="How a release is watched after its promotion. Without it, it is not."
    )
    mlflow: RegistrySpec | None = Field(
        default=None, description="Have releases registered with the MLflow server of ENGINEHOUSE_MLFLOW."
    )

    @property
    def kind(self) -> str:
        """The kind of its recipe: trt-engine, llmapi, llamacpp, transformers."""
        return kind_of(self.recipe)

    @property
    def asked_of_gates(self) -> dict[str, dict[str, JsonValue]]:
        """What each gate is asked for, by its name, in the order in which they run: the test prompts come first."""
        prompts: list[JsonValue] = [prompt.model_dump(mode="json", by_alias=True) for prompt in self.prompts]
        asked: dict[str, dict[str, JsonValue]] = {SMOKE: {"prompts": prompts}}
        if self.gates is not None:
            asked |= {name: gate.model_dump(mode="json") for name, gate in self.gates.asked.items()}
        return asked

    @property
    def asks_reference(self) -> bool:
        """Whether a gate may compare a candidate with its weights as they are before they are quantized."""
        asked = () if self.gates is None else self.gates.asked.values()
        return any(isinstance(gate, AgreementSpec) and gate.reference != "never" for gate in asked)

    @property
    def origin(self) -> str:
        """Where the weights come from, in one line: the source, and the adapter if the model has one."""
        return self.source.uri if self.adapter is None else f"{self.source.uri} with {self.adapter}"

    @property
    def draft(self) -> Source | None:
        """Where the recipe's draft model comes from, or its heads that guess tokens."""
        wanted = self.recipe.draft
        return None if wanted is None else Source(uri=wanted.uri, trust=wanted.trust)

    @field_validator("recipe")
    @classmethod
    def _guesses_from_a_folder(cls, recipe: Recipe) -> Recipe:
        if (draft := recipe.draft) is None:
            return recipe
        if isinstance(checked(draft.uri), PipUri):
            raise ValueError("speculation.source is a folder, and pip:// names one file")
        try:
            Source(uri=draft.uri, trust=draft.trust)
        except ValidationError as error:
            raise ValueError(f"speculation.source: {problems(error)}") from error
        return recipe

    @field_validator("name")
    @classmethod
    def _is_no_name_of_ours(cls, name: str) -> str:
        if problem := collision(name):
            raise ValueError(problem)
        if RELEASE_MARK in name:
            raise ValueError(f"`{RELEASE_MARK}` separates the parts of a release's name (NAME--r7--llm)")
        return name

    @field_validator("adapter")
    @classmethod
    def _is_a_folder(cls, adapter: str | None) -> str | None:
        return None if adapter is None else folder(adapter)

    @field_validator("adapters")
    @classmethod
    def _can_be_chosen(cls, adapters: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        recipe, serving = info.data.get("recipe"), info.data.get("serving")
        if not isinstance(recipe, Recipe) or not isinstance(serving, Serving):
            return FrozenDict(adapters)
        if adapters and serving.contract == 1:
            raise ValueError("contract 1 has no lora_name, so adapters need serving.contract 2")
        try:
            recipe.check_adapters(adapters, serving.tensorrt_llm)
        except UsageError as error:
            raise ValueError(f"{error.message}. {error.hint}") from error
        return FrozenDict({name: folder(uri) for name, uri in adapters.items()})

    @field_validator("labels")
    @classmethod
    def _are_frozen(cls, labels: dict[str, str]) -> dict[str, str]:
        return FrozenDict(labels)

    @field_validator("accepts")
    @classmethod
    def _only_remote_sources(cls, accepts: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in accepts:
            if not pattern.startswith(REMOTE):
                raise ValueError(
                    f"{pattern!r} must begin with one of {', '.join(REMOTE)}; events never name file:// or pip://"
                )
        return accepts

    @field_validator("serving")
    @classmethod
    def _goes_with_the_kind(cls, serving: Serving, info: ValidationInfo) -> Serving:
        recipe = info.data.get("recipe")
        try:
            if isinstance(recipe, Recipe):
                recipe.check_serving(serving.tensorrt_llm)
        except UsageError as error:
            raise ValueError(f"tensorrt_llm: {error.message}. {error.hint}") from error
        return serving

    @field_validator("approval")
    @classmethod
    def _is_ever_asked_for(cls, approval: ApprovalSpec, info: ValidationInfo) -> ApprovalSpec:
        gates = info.data.get("gates")
        if approval.when == "undecided" and "gates" in info.data and (gates is None or gates.undecided != "ask"):
            raise ValueError("when: undecided needs `gates` that say `undecided: ask`, or nobody is ever asked")
        return approval

    @field_validator("rollout")
    @classmethod
    def _has_each_target_in_a_wave(cls, rollout: Rollout, info: ValidationInfo) -> Rollout:
        if "targets" in info.data:
            rollout.require_all_in_waves(info.data["targets"])
        return rollout

    @field_validator("mlflow")
    @classmethod
    def _registers_elsewhere(cls, mlflow: RegistrySpec | None, info: ValidationInfo) -> RegistrySpec | None:
        source = info.data.get("source")
        own = checked(source.uri) if isinstance(source, Source) else None
        if mlflow is not None and isinstance(own, ModelsUri) and own.name == (mlflow.name or info.data.get("name")):
            raise ValueError("the weights come from this registered model: give releases a `name` of their own")
        return mlflow

    @field_validator("prompts")
    @classmethod
    def _different_names(cls, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        if not prompts:
            raise ValueError("without a prompt nothing tells a broken release from a good one")
        names = [prompt.name for prompt in prompts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several prompts are named {', '.join(twice)}")
        return prompts
