"""The catalogue: models' files, read from their folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue, ValidationError

from infra.errors import SpecError, UsageError
from infra.positioned_yaml import PositionedDocument, Problem, read_yaml
from tasks.models.spec import Model


def load_model(path: Path) -> Model:
    """Read one file. Raises SpecError, which names file, line and field of every problem in it."""
    model, problems = _read(path)
    if model is None:
        raise _spec_error(problems)
    return model


def load_catalogue(folder: Path) -> dict[str, Model]:
    """Read every `*.yaml` of a folder into models by name. Raises one SpecError with the problems of all files."""
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
    """The model `name` of the catalogue in `folder`. Raises UsageError `model-missing`, and SpecError."""
    catalogue = load_catalogue(folder)
    if name not in catalogue:
        raise UsageError(
            f"there is no model '{name}' in {folder}",
            hint=f"models: {', '.join(sorted(catalogue)) or 'none'}",
            code="model-missing",
        )
    return catalogue[name]


def json_schema() -> dict[str, JsonValue]:
    """JSON schema (draft 2020-12) of a model's file, for editors."""
    return Model.model_json_schema(by_alias=True)


def _read(path: Path) -> tuple[Model | None, list[str]]:
    """The model, or None and the problems of its file, one line each."""
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
    return Problem(line, field, message.removeprefix("Value error, "))


def _spec_error(problems: list[str]) -> SpecError:
    return SpecError(
        "the catalogue has mistakes:\n" + "\n".join(f"  {problem}" for problem in problems),
        hint="Correct these lines.",
    )
