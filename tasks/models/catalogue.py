"""The catalogue: models' files read from their folder, and what a caller overrides of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import JsonValue, ValidationError

from infra.errors import SpecError, UsageError
from infra.frozen import Spec
from infra.positioned_yaml import PositionedDocument, Problem, read_yaml
from tasks.models.recipe import LlamaCppRecipe
from tasks.models.spec import Model
from tasks.trtllm.recipe import LlmApiRecipe, TrtEngineRecipe
from tasks.trtllm.translate import Translation, explained, to_llmapi, without_engines


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


@dataclass(frozen=True)
class Asked:
    """A model with what its caller overrides; `translation` where its kind changed with that."""

    model: Model
    translation: Translation | None = None

    @property
    def lost(self) -> Mapping[str, JsonValue]:
        """Fields of the model's file that the new kind has no counterpart for, and their values."""
        return {} if self.translation is None else self.translation.lost


def as_asked(model: Model, overrides: Mapping[str, str], tensorrt_llm: str | None) -> Asked:
    """The model with `--recipe key=value` and `--runtime`. Raises SpecError, UsageError.

    `kind=llmapi` translates an engine's recipe, and the other overrides then are fields of kind llmapi. No other kind
    changes: UsageError `kind-changes`.
    """
    fields = {name: value for name, value in overrides.items() if name != "kind"}
    kind = overrides.get("kind", model.recipe.kind)
    if kind == model.recipe.kind:
        return Asked(with_runtime(with_recipe(model, fields), tensorrt_llm))
    if not isinstance(model.recipe, TrtEngineRecipe) or kind != "llmapi":
        raise UsageError(
            f"{model.name} is of kind {model.recipe.kind}, whose recipe does not become one of kind {kind}: only that "
            f"of a trt-engine says all that kind llmapi needs",
            hint=f"write the recipe into {model.name}.yaml",
            code="kind-changes",
        )
    version = tensorrt_llm or model.recipe.runtime.tensorrt_llm
    allowed = _require_overridable(LlmApiRecipe, fields)
    translation = to_llmapi(model.recipe, model.serving.tensorrt_llm, version)
    serving = {**model.serving.model_dump(by_alias=True), "tensorrt_llm": translation.serving}
    wanted = " ".join(f"{name}={value}" for name, value in {"kind": kind, "tensorrt_llm": version, **fields}.items())
    hint = f"--runtime names another version than {version}, and --recipe overrides these. {allowed}"
    return Asked(_revised(model, {**translation.recipe, **fields}, wanted, hint, serving), translation)


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
            hint=_to_llmapi_hint(model, tensorrt_llm),
            code="kind-changes",
        )
    if isinstance(model.recipe, LlamaCppRecipe):
        raise UsageError(f"{model.name} is of kind llamacpp, which has no TensorRT-LLM")
    recipe = {**model.recipe.model_dump(by_alias=True), "runtime": model.recipe.runtime.with_version(tensorrt_llm)}
    return _revised(model, recipe, f"tensorrt_llm={tensorrt_llm}", "")


def with_recipe(model: Model, overrides: Mapping[str, str]) -> Model:
    """The model with fields of its recipe replaced, for `--recipe key=value`. Digits do for a number.

    Kind and runtime stay. Raises SpecError that lists what is allowed.
    """
    if not overrides:
        return model
    allowed = _require_overridable(type(model.recipe), overrides)
    wanted = " ".join(f"{name}={value}" for name, value in overrides.items())
    changed = {**model.model_dump(by_alias=True)["recipe"], **overrides}
    return _revised(model, changed, wanted, allowed)


def _to_llmapi_hint(model: Model, tensorrt_llm: str) -> str:
    command = f"enginehouse rebuild {model.name} --recipe kind=llmapi --runtime {tensorrt_llm}"
    try:
        asked = as_asked(model, {"kind": "llmapi"}, tensorrt_llm)
    except SpecError as error:
        return f"{command} serves the same weights, once this is settled: {error.message}"
    assert asked.translation is not None and isinstance(asked.model.recipe, LlmApiRecipe)
    return f"{command} serves the same weights, with\n{explained(asked.model.recipe, asked.translation)}"


def _require_overridable(recipe: type[Spec], overrides: Mapping[str, str]) -> str:
    """What may be overridden in a recipe, in words. Raises SpecError where `overrides` has something else."""
    allowed = [name for name, field in recipe.model_fields.items() if _overridable(name, field.annotation)]
    told = f"Fields: {', '.join(allowed)}."
    if unknown := sorted(overrides.keys() - set(allowed)):
        kind = get_args(recipe.model_fields["kind"].annotation)[0]
        raise SpecError(f"a recipe of kind {kind} has no field {', '.join(unknown)} to override", hint=told)
    return told


def _revised(
    model: Model, recipe: Mapping[str, Any], wanted: str, hint: str, serving: Mapping[str, Any] | None = None
) -> Model:
    document = {**model.model_dump(by_alias=True), "recipe": recipe}
    if serving is not None:
        document["serving"] = serving
    try:
        return Model.model_validate(document)
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
