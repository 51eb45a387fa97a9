"""What would hold a model that does not fit the GPUs of its recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import JsonValue, ValidationError

from tasks.models.recipe import LlmApiRecipe, TrtEngineRecipe
from tasks.models.spec import Model

_TP_SIZES = (2, 4, 8, 16)
_SMALLER = ("fp8", "int8_wo", "int4_awq", "nvfp4")
"""Formats of fewer bits, those that lose least first. The rules of the recipe say which its GPU and version have."""


def what_fits(model: Model, recipe: TrtEngineRecipe | LlmApiRecipe, has_room: Callable[[Model], bool]) -> str:
    """A hint: the least number of these GPUs that holds the model, and the first quantization that fits as it is."""
    found = [*_more_gpus(model, recipe, has_room), *_smaller_weights(model, recipe, has_room)]
    if found:
        return f"it fits with {' or with '.join(found)}"
    return f"neither {_TP_SIZES[-1]} of these GPUs nor another quantization holds it: take GPUs with more memory"


def _more_gpus(
    model: Model, recipe: TrtEngineRecipe | LlmApiRecipe, has_room: Callable[[Model], bool]
) -> Iterator[str]:
    for size in _TP_SIZES:
        gpus = size * recipe.pp_size * recipe.cp_size
        runtime = {**recipe.runtime.model_dump(), "gpus": max(gpus, recipe.runtime.gpus)}
        if size > recipe.tp_size and _holds(model, recipe, has_room, tp_size=size, runtime=runtime):
            yield f"tp_size {size}, on {gpus} x {recipe.runtime.gpu}"
            return


def _smaller_weights(
    model: Model, recipe: TrtEngineRecipe | LlmApiRecipe, has_room: Callable[[Model], bool]
) -> Iterator[str]:
    for quantization in _SMALLER:
        if quantization != recipe.quantization and _holds(model, recipe, has_room, quantization=quantization):
            yield f"quantization {quantization}"
            return


def _holds(
    model: Model,
    recipe: TrtEngineRecipe | LlmApiRecipe,
    has_room: Callable[[Model], bool],
    **changed: JsonValue,
) -> bool:
    """Whether the model has room with these fields of its recipe changed. Not if a rule of the recipe refuses them."""
    try:
        other = type(recipe).model_validate({**recipe.model_dump(by_alias=True), **changed})
    except ValidationError:
        return False
    return has_room(model.model_copy(update={"recipe": other}))
