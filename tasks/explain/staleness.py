"""What is stale about a live release: what its next rebuild would make otherwise, as far as records and files tell.

Nobody is asked over a network. So weights count as moved when the model's file or an accepted event names others; that
a branch of the hub has moved, `reconcile` finds out and makes an event of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import JsonValue, ValidationError

from infra.errors import SpecError, UsageError
from tasks.finetuned.records import CurrentWeights, newest_of
from tasks.models.overrides import override
from tasks.models.recipe import RECIPES
from tasks.models.spec import Model, Serving
from tasks.targets.changes import FieldChange, changes
from tasks.targets.release import Intent
from tasks.watch.verdict import Offer, judge, version_in_use

_TEXTS = 1
"""The version of an intent whose fields are texts: what they were in the file cannot be told any more."""
_BY_PLANNING = ("architecture", "runtime.tensorrt")
"""Fields of a recipe that planning fills in where a model's file leaves them open."""


@dataclass(frozen=True)
class Stale:
    """One reason why a rebuild would make another release."""

    what: Literal["weights", "version", "file"]
    why: str

    def document(self) -> dict[str, JsonValue]:
        return {**asdict(self)}


def stale(
    model: Model,
    live: Intent,
    weights: CurrentWeights,
    followed: str | None,
    offered: Iterable[Offer],
) -> tuple[Stale, ...]:
    """Why the release `live` is not what a rebuild of `model` would make now.

    `weights` are those that events brought, `followed` is the version that the release watch moved the model to, and
    `offered` are those that it may move it to, newest first. Raises UsageError if a rebuild cannot begin: the file does
    not go with the version or weights that it would take.
    """
    newest, tuned = newest_of(weights, model)
    version = None if model.updates.policy == "pinned" else version_in_use(newest, followed)
    asked = override(newest, tensorrt_llm=version).model
    moved = asked.origin != live.source
    return (
        *([Stale("weights", f"{_weights(tuned is not None)} {asked.origin}")] if moved else []),
        *_versions(asked, live, offered),
        *(Stale("file", str(change)) for change in _changed(asked, live)),
    )


def _weights(by_event: bool) -> str:
    return "an event brought" if by_event else "its file names"


def _versions(asked: Model, live: Intent, offered: Iterable[Offer]) -> Iterator[Stale]:
    has = version_of(live)
    runtime = asked.recipe.planned_runtime
    if runtime is None or not has:
        return
    if runtime.tensorrt_llm != has:
        yield Stale("version", f"TensorRT-LLM {has} → {runtime.tensorrt_llm}")
    if asked.updates.policy == "pinned":
        return
    for row in judge(asked, runtime.tensorrt_llm, offered):
        if row.verdict == "rebuild":
            yield Stale("version", f"TensorRT-LLM {row.version} is accepted, and there is an image")


def version_of(intent: Intent) -> str:
    """The version of TensorRT-LLM that a release was built with; empty for a kind without."""
    runtime = intent.recipe.get("runtime")
    version = runtime.get("tensorrt_llm") if isinstance(runtime, dict) else None
    return version if isinstance(version, str) else ""


def _changed(asked: Model, live: Intent) -> Iterator[FieldChange]:
    """The fields of recipe, serving and adapters that differ. The version is told apart from them."""
    if live.schema_version == _TEXTS:
        return
    recipe, serving = asked.recipe.model_dump(mode="json"), asked.serving.model_dump(mode="json")
    made, served = live.recipe, live.serving
    if (made, served) != (recipe, serving):  # of most they are equal, and their form costs more than all else here
        made, served = in_todays_form(live)
    for change in changes(made, recipe):
        filled_in = change.field in _BY_PLANNING and change.new is None
        if change.field != "runtime.tensorrt_llm" and not filled_in:
            yield change
    yield from _below("serving", changes(served, serving))
    yield from _below("adapters", changes(dict(live.adapters), dict(asked.adapters)))


def in_todays_form(live: Intent) -> tuple[Mapping[str, JsonValue], Mapping[str, JsonValue]]:
    """Recipe and serving with the fields that have come since: as long as nobody sets them, nothing has changed."""
    try:
        recipe = RECIPES[str(live.recipe.get("kind"))].model_validate(live.recipe).model_dump(mode="json")
        return recipe, Serving.model_validate(live.serving).model_dump(mode="json")
    except (KeyError, ValidationError, SpecError, UsageError):
        return live.recipe, live.serving  # a recipe of before that would be a mistake now


def _below(name: str, found: Iterable[FieldChange]) -> Iterator[FieldChange]:
    return (change.model_copy(update={"field": f"{name}.{change.field}"}) for change in found)
