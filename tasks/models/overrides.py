"""A model's file with some of it overridden: fields of its recipe, the version of TensorRT-LLM, the weights.

The command line, the flows, events and the release watch all do it with `override`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue, ValidationError

from infra.errors import SpecError, UsageError
from infra.frozen import Spec, problems
from tasks.models.recipe import RECIPES, Recipe
from tasks.models.source import Source
from tasks.models.spec import Model
from tasks.trtllm.images import ImageReport, planned_in_image
from tasks.trtllm.llmapi.translate import Translation, explained

_NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True)
class Overridden:
    """A model after its overrides. `translation` is set if they changed its kind."""

    model: Model
    translation: Translation | None = None

    @property
    def lost(self) -> Mapping[str, JsonValue]:
        """The fields of the model's file that the new kind has no counterpart for, with their values."""
        return {} if self.translation is None else self.translation.lost


def override(
    model: Model,
    *,
    recipe: Mapping[str, str] = _NOTHING,
    tensorrt_llm: str | None = None,
    source: str | None = None,
    adapter: str | None = None,
) -> Overridden:
    """The model with fields of its recipe, its TensorRT-LLM or its weights replaced; None leaves each as it is.

    Values of `recipe` are texts, numbers in digits. `kind=llmapi` in it translates an engine's recipe, and its other
    fields are then those of kind llmapi. `source` replaces the weights: it keeps the `include` of the model's file, and
    drops `trust` and the adapter. `adapter` replaces the adapter alone.

    Raises SpecError, which lists the fields that can be overridden, and UsageError `kind-changes` for another kind.
    """
    if source is not None:
        weights = Source(uri=source, include=model.source.include)
        model = model.model_copy(update={"source": weights, "adapter": None})
    if adapter is not None:
        model = model.model_copy(update={"adapter": adapter})
    fields = {name: value for name, value in recipe.items() if name != "kind"}
    kind = recipe.get("kind", model.kind)
    if kind != model.kind:
        return _translated(model, kind, fields, tensorrt_llm)
    return Overridden(_with_version(_with_fields(model, fields), tensorrt_llm))


def in_image(model: Model, report: ImageReport | None) -> Model:
    """The model planned with the TensorRT that its image was reported to hold.

    Raises UsageError `version-mismatch` if the model's file and the report contradict each other.
    """
    runtime = model.recipe.planned_runtime
    if report is None or runtime is None:
        return model
    planned = planned_in_image(runtime, report)
    if planned == runtime:
        return model
    return model.model_copy(update={"recipe": model.recipe.model_copy(update={"runtime": planned})})


def of_architecture(model: Model, architecture: str) -> Model:
    """The model planned for the architecture that its weights name, unless its file names one."""
    recipe = model.recipe.for_architecture(architecture)
    return model if recipe is model.recipe else model.model_copy(update={"recipe": recipe})


def _translated(model: Model, kind: str, fields: Mapping[str, str], tensorrt_llm: str | None) -> Overridden:
    runtime = model.recipe.planned_runtime
    version = tensorrt_llm or (runtime.tensorrt_llm if runtime is not None else "")
    translation = model.recipe.translated(kind, model.serving.tensorrt_llm, version)
    if translation is None:
        raise UsageError(
            f"{model.name} is of kind {model.kind}, whose recipe cannot become one of kind {kind}: only the "
            "recipe of a trt-engine has all that kind llmapi needs",
            hint=f"write the recipe into {model.name}.yaml",
            code="kind-changes",
        )
    allowed = _require_overridable(RECIPES[kind], kind, fields)
    serving = {**model.serving.model_dump(by_alias=True), "tensorrt_llm": translation.serving}
    wanted = " ".join(f"{name}={value}" for name, value in {"kind": kind, "tensorrt_llm": version, **fields}.items())
    hint = f"--runtime names another version than {version}, and --recipe overrides these. {allowed}"
    return Overridden(_revised(model, {**translation.recipe, **fields}, wanted, hint, serving), translation)


def _with_version(model: Model, tensorrt_llm: str | None) -> Model:
    """The model with another version of TensorRT-LLM. The kind never changes without the caller asking for it."""
    if tensorrt_llm is None:
        return model
    runtime = model.recipe.planned_runtime
    if runtime is None:
        raise UsageError(
            f"{model.name} is of kind {model.kind}, which has no TensorRT-LLM",
            hint="leave the version out, or name a model of kind trt-engine or llmapi",
        )
    if (successor := model.recipe.successor(tensorrt_llm)) is not None:
        raise UsageError(
            f"TensorRT-LLM {tensorrt_llm} builds no engines, and {model.name} is of kind {model.kind}",
            hint=_successor_hint(model, successor, tensorrt_llm),
            code="kind-changes",
        )
    recipe = {**model.recipe.model_dump(by_alias=True), "runtime": runtime.with_version(tensorrt_llm)}
    return _revised(model, recipe, f"tensorrt_llm={tensorrt_llm}", "")


def _with_fields(model: Model, fields: Mapping[str, str]) -> Model:
    if not fields:
        return model
    allowed = _require_overridable(type(model.recipe), model.kind, fields)
    wanted = " ".join(f"{name}={value}" for name, value in fields.items())
    return _revised(model, {**model.recipe.model_dump(by_alias=True), **fields}, wanted, allowed)


def _successor_hint(model: Model, kind: str, tensorrt_llm: str) -> str:
    command = f"enginehouse rebuild {model.name} --recipe kind={kind} --runtime {tensorrt_llm}"
    try:
        overridden = override(model, recipe={"kind": kind}, tensorrt_llm=tensorrt_llm)
    except SpecError as error:
        return f"{command} serves the same weights, once this is settled: {error.message}"
    assert overridden.translation is not None
    return f"{command} serves the same weights, with\n{explained(overridden.model.recipe, overridden.translation)}"


def _require_overridable(recipe: type[Recipe], kind: str, overrides: Mapping[str, str]) -> str:
    """The fields of a recipe that can be overridden, as a sentence. Raises SpecError if `overrides` has another one."""
    allowed = [name for name, field in recipe.model_fields.items() if _is_overridable(name, field.annotation)]
    listed = f"Fields: {', '.join(allowed)}."
    if unknown := sorted(overrides.keys() - set(allowed)):
        raise SpecError(f"a recipe of kind {kind} has no field {', '.join(unknown)} to override", hint=listed)
    return listed


def _is_overridable(name: str, annotation: object) -> bool:
    return name != "kind" and not (isinstance(annotation, type) and issubclass(annotation, Spec))


def _revised(
    model: Model,
    recipe: Mapping[str, JsonValue],
    wanted: str,
    hint: str,
    serving: Mapping[str, JsonValue] | None = None,
) -> Model:
    document = {**model.model_dump(by_alias=True), "recipe": recipe}
    if serving is not None:
        document["serving"] = serving
    try:
        return Model.model_validate(document)
    except ValidationError as error:
        raise SpecError(f"{model.name} does not go with {wanted}: {problems(error)}", hint=hint) from error
