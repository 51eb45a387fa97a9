"""An error of a child flow on its way to its parent, in the message of the child's state: with code and hint."""

from __future__ import annotations

import re
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Failed

from infra.errors import EnginehouseError, StepFailed

_HINT = "\n\nhint: "


def failed(error: EnginehouseError) -> State[Any]:
    """The final state of a flow that failed with `error`."""
    return Failed(message=f"{error}{_HINT}{error.hint}")


def error_of(state: State[Any], what: str) -> StepFailed:
    """The error that ended the flow `what`, with its own message, hint and code; code `build-failed` if it had none."""
    message, _, hint = (state.message or "").partition(_HINT)
    found = re.fullmatch(r"(.*) \[([a-z-]+)\]", message, re.DOTALL)
    if found is None:
        return StepFailed(
            f"{what} ended as {state.name}: {message}", hint="see the run in the Prefect UI", code="build-failed"
        )
    return StepFailed(f"{what}: {found[1]}", hint=hint, code=found[2])
