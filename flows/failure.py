"""A child flow's error on its way to the parent: the message of its state holds code and hint, and gives them back."""

from __future__ import annotations

import re
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Failed

from infra.errors import EnginehouseError, StepFailed

_HINT = "\n\nhint: "


def failed(error: EnginehouseError) -> State[Any]:
    """The state in which a flow ends that failed with `error`."""
    return Failed(message=f"{error}{_HINT}{error.hint}")


def error_of(state: State[Any], what: str) -> StepFailed:
    """The error that ended the flow `what`, in its own words; code `build-failed` where it had none."""
    said, _, hint = (state.message or "").partition(_HINT)
    found = re.fullmatch(r"(.*) \[([a-z-]+)\]", said, re.DOTALL)
    if found is None:
        return StepFailed(
            f"{what} ended as {state.name}: {said}", hint="see the run in the Prefect UI", code="build-failed"
        )
    return StepFailed(f"{what}: {found[1]}", hint=hint, code=found[2])
