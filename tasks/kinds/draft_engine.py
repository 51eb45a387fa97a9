"""The draft model of an engine: an engine of its own, which becomes a part of the other's."""

from __future__ import annotations

from dataclasses import replace

from infra.errors import UsageError
from tasks.models.recipe import TrtEngineRecipe
from tasks.models.spec import Model, Serving
from tasks.weights.facts import WeightsFacts

_SHARED = (
    "runtime",
    "dtype",
    "max_batch_size",
    "max_seq_len",
    "max_input_len",
    "max_num_tokens",
    "tokens_per_block",
    "portable",
)


def draft_engine(model: Model, recipe: TrtEngineRecipe) -> Model | None:
    """The draft model. It runs on one GPU, and takes and gives as many tokens as `model`. None if there is none."""
    source = model.draft
    if source is None or recipe.speculation is None or recipe.speculation.mode != "draft_tokens_external":
        return None
    same = {name: getattr(recipe, name) for name in _SHARED}
    draft = TrtEngineRecipe.model_validate({"kind": "trt-engine", **same})
    return model.model_copy(update={"source": source, "adapter": None, "recipe": draft, "serving": Serving()})


def without_prompts(facts: WeightsFacts) -> WeightsFacts:
    """The facts of weights that nobody sends a prompt to be rendered: no template is missed in them."""
    return replace(facts, has_template=None)


def of_draft(error: UsageError) -> UsageError:
    """An error about the weights of a draft model."""
    return UsageError(f"the draft model: {error.message}", hint=error.hint, code=error.code)
