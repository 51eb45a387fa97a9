"""The limits and sizes of a Hugging Face checkpoint that the LLM API loads as the recipe says."""

from __future__ import annotations

from pathlib import Path

from infra.errors import SourceError, StepFailed
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.planned_limits import planned_limits
from tasks.trtllm.recipe import LlmApiFields
from tasks.trtllm.speculation import DRAFT_FOLDER
from tasks.weights.config import facts_of


def checkpoint_limits(folder: Path, recipe: LlmApiFields) -> EngineLimits:
    """The limits of the checkpoint in `folder`. Raises StepFailed `checkpoint-unfit` if it has no `config.json`."""
    try:
        limits = planned_limits(recipe, facts_of(folder))
        draft = folder / DRAFT_FOLDER
        return limits.with_draft(planned_limits(recipe, facts_of(draft))) if draft.is_dir() else limits
    except SourceError as error:
        raise StepFailed(
            f"the config.json of the checkpoint cannot be read: {error}",
            hint="kind llmapi takes what transformers wrote: config.json names the type and the sizes of the model",
            code="checkpoint-unfit",
        ) from error
