"""The catalogue: models' files, read from their folder. A file with mistakes costs its own model, and no other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue, ValidationError

from infra.errors import SpecError, UsageError
from infra.positioned_yaml import Problem, read_yaml
from tasks.models.mistakes import in_words
from tasks.models.spec import Model

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Catalogue:
    """The models by name. `broken` has the mistakes of the other files, by the name that their model would have."""

    models: Mapping[str, Model]
    broken: Mapping[str, tuple[str, ...]]

    def require_readable(self, name: str) -> None:
        """Raise SpecError if the file of `name` has mistakes: there is such a model, and nobody knows what it is."""
        if name in self.broken:
            raise _spec_error(self.broken[name])

    def require_whole(self) -> None:
        """Raise one SpecError with the mistakes of all files, if there are any."""
        if self.broken:
            raise _spec_error([problem for problems in self.broken.values() for problem in problems])

    @property
    def unread(self) -> tuple[str, ...]:
        """What to tell whoever goes on without the broken files, a line each."""
        return tuple(f"{name} is left out: {'; '.join(problems)}" for name, problems in self.broken.items())


def load_model(path: Path) -> Model:
    """Read one file. Raises SpecError, which names file, line and field of every problem in it."""
    model, problems = _read(path)
    if model is None:
        raise _spec_error(problems)
    return model


def load_catalogue(folder: Path) -> Catalogue:
    """Read every `*.yaml` and `*.yml` of a folder. Raises SpecError if there is no such folder."""
    models: dict[str, Model] = {}
    broken: dict[str, tuple[str, ...]] = {}
    for name, path in _files(folder).items():
        model, problems = _read_alone(path)
        if model is None:
            broken[name] = problems
        else:
            models[name] = model
    return Catalogue(models, broken)


def catalogue_entry(folder: Path, name: str) -> Model:
    """The model `name` of the catalogue in `folder`: no other file is read.

    Raises UsageError `model-missing`, and SpecError.
    """
    files = _files(folder)
    if name not in files:
        raise UsageError(
            f"there is no model '{name}' in {folder}",
            hint=f"models: {', '.join(files) or 'none'}",
            code="model-missing",
        )
    model, problems = _read_alone(files[name])
    if model is None:
        raise _spec_error(problems)
    return model


def catalogue_files(folder: Path) -> tuple[Path, ...]:
    """The files that the catalogue in `folder` is read from."""
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES))


def catalogue_file(folder: Path, name: str) -> Path | None:
    """The file of a model, read or not; None if there is none. Raises SpecError if there is no such folder."""
    return _files(folder).get(name)


def json_schema() -> dict[str, JsonValue]:
    """JSON schema (draft 2020-12) of a model's file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Model.model_json_schema(by_alias=True)}


def _files(folder: Path) -> dict[str, Path]:
    """The file of each model, by name. Raises SpecError if there is no such folder."""
    if not folder.is_dir():
        raise SpecError(f"there is no catalogue at {folder}", hint="A catalogue is a folder of NAME.yaml files.")
    return {path.stem: path for path in catalogue_files(folder)}


def _read_alone(path: Path) -> tuple[Model | None, tuple[str, ...]]:
    """The same as `_read`, of a file that must be the only one of its model."""
    others = (path.with_suffix(suffix) for suffix in _SUFFIXES if suffix != path.suffix)
    if twins := [other.name for other in others if other.is_file()]:
        return None, (f"{path}:1: {twins[0]} beside it is a file of the same model",)
    return _read(path)


def _read(path: Path) -> tuple[Model | None, tuple[str, ...]]:
    """The model, or None and the problems of its file, one line each."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return None, (f"{path}:1: cannot be read: {error}",)
    return _parsed(path, text)


@lru_cache(maxsize=4096)
def _parsed(path: Path, text: str) -> tuple[Model | None, tuple[str, ...]]:
    """The same of a file's text. A process that looks at a catalogue again parses what has changed."""
    document, problems = read_yaml(text)
    model = None
    if document is not None:
        try:
            model = Model.model_validate(document.value)
        except ValidationError as error:
            problems += [
                Problem(*document.locate(each["loc"]), in_words(document.value, each)) for each in error.errors()
            ]
        if model is not None and model.name != path.stem:
            problems.append(
                Problem(
                    document.locate(("name",))[0],
                    "name",
                    f"{model.name!r} is not the file's name, {path.stem!r}",
                )
            )
    lines = tuple(
        f"{path}:{problem.line}: {problem.field + ': ' if problem.field else ''}{problem.message}"
        for problem in sorted(problems)
    )
    return (None if problems else model), lines


def _spec_error(problems: Iterable[str]) -> SpecError:
    return SpecError(
        "a model's file has mistakes:\n" + "\n".join(f"  {problem}" for problem in problems),
        hint="correct these lines: docs/how-to/model-file.md tells every field, and `enginehouse schema model` is for "
        "editors",
    )
