"""The catalogue: models' files read from their folder, and what a caller overrides of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.errors import SpecError, UsageError
from infra.positioned_yaml import PositionedDocument, Problem, read_yaml
from tasks.frozen import Spec
from tasks.recipe import LlamaCppRecipe
from tasks.spec import Model
from tasks.trtllm.recipe import TrtEngineRecipe
from tasks.trtllm.translate import explained, to_llmapi, without_engines


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
    recipe = {**model.recipe.model_dump(by_alias=True), "runtime": model.recipe.runtime.with_version(tensorrt_llm)}
    return _revised(model, recipe, f"tensorrt_llm={tensorrt_llm}", "")


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
