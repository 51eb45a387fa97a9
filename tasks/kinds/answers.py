"""What the files of an engine say of prompts and answers, as its release tells it to the model that serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.errors import UsageError
from tasks.models.spec import Serving
from tasks.serving.generation import FILE, Files, GenerationConfig
from tasks.serving.templates import DEFAULT, read_templates

if TYPE_CHECKING:
    from tasks.serving.settings import Sampling


def sampling_of(serving: Serving, files: Files) -> Sampling:
    """What a request gets that does not say: the values of the model's file, below them those of the weights.

    `files` are those of the tokenizer. Raises UsageError `generation-unfit` for values that make no sense.
    """
    try:
        generation = GenerationConfig.of(files)
    except ValueError as error:
        raise UsageError(
            f"the weights say of their answers what nobody can follow: {error}",
            hint=f"mend {FILE} where the weights come from, or leave it out with `source.include`",
            code="generation-unfit",
        ) from error
    return planned_sampling(serving, generation)


def planned_sampling(serving: Serving, generation: GenerationConfig) -> Sampling:
    """The same by what is known of the weights."""
    from tasks.serving.settings import Sampling  # numpy, which no plan needs

    values: dict[str, Any] = {**generation.sampling, **serving.defaults.model_dump(exclude_none=True)}
    return Sampling(**values)


def require_template(serving: Serving, files: Files) -> None:
    """Raise UsageError `template-missing` where prompts are to be rendered by a template that the weights lack."""
    try:
        found = read_templates(files)
    except ValueError as error:
        raise UsageError(f"the chat template cannot be read: {error}", code="template-missing") from error
    require_one(serving, has_one=DEFAULT in found)


def require_one(serving: Serving, *, has_one: bool) -> None:
    """As `require_template`, for who knows."""
    if serving.chat_template and not has_one:
        raise UsageError(
            "serving.chat_template is true, and the weights have no chat template",
            hint="set serving.chat_template to false, and prompts go to the model as they come. If it is in a file of "
            "its own, chat_template.jinja, let `source.include` take that and rebuild with --refresh",
            code="template-missing",
        )
