"""An error of ours as the state of a run: named by what a gate said, with code and hint, and without a traceback.

A child flow's error comes to its parent in the message of that state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Failed

from flows.names import REFUSED, UNDECIDED
from flows.traces import note_error
from infra.errors import EnginehouseError, GateRefused, GateUndecided, StepFailed

P = ParamSpec("P")
T = TypeVar("T")

_HINT = "\n\nhint: "


def without_traceback(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a run of this flow or task end in the state of an error of ours.

    A run that raises it gets a traceback in its log, and a state that says nothing but "Failed". All other errors are
    raised: their traceback tells something. Without a run there is no state, and every error is raised.
    """

    @wraps(function)
    async def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await function(*arguments, **named)
        except EnginehouseError as error:
            if FlowRunContext.get() is None:
                raise
            note_error(error.code)
            # Prefect raises the error of the state for whoever called the flow. Its types do not know that.
            return cast("T", failed(error))

    return call


def failed(error: EnginehouseError) -> State[Any]:
    """The final state of a run that ended with `error`, which it raises for a caller in the same process.

    Its type is that of every failure, so that whatever acts on failures does; its name says what a gate said.
    """
    name = REFUSED if isinstance(error, GateRefused) else UNDECIDED if isinstance(error, GateUndecided) else None
    return Failed(
        name=name or "Failed", message=f"{error}{_HINT}{error.hint}" if error.hint else str(error), data=error
    )


def reason_of(state: State[Any]) -> str:
    """Why a run ended as it did, without the hint."""
    return (state.message or "").partition(_HINT)[0]


def error_of(state: State[Any], what: str) -> StepFailed:
    """The error that ended the flow `what`, with its own message, hint and code; code `build-failed` if it had none."""
    message, _, hint = (state.message or "").partition(_HINT)
    found = re.fullmatch(r"(.*) \[([a-z-]+)\]", message, re.DOTALL)
    if found is None:
        return StepFailed(
            f"{what} ended as {state.name}: {message}", hint="see the run in the Prefect UI", code="build-failed"
        )
    return StepFailed(f"{what}: {found[1]}", hint=hint, code=found[2])
