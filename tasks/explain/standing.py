"""What became of a release in one word, for lists and for its report: its records taken together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.targets.approval import Approval
from tasks.targets.approvals import Approvals, requested
from tasks.targets.current import Current, ReleaseState
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.traffic import Shift, shift, shifted


@dataclass(frozen=True)
class Standing:
    """The records of a release that say what became of it. `state` is what the wanted state and its verdict say."""

    state: ReleaseState
    result: Result | None
    loaded: bool
    """Whether nodes are to hold it."""
    asked: bool = False
    """Whether a person was asked to decide on it."""
    approval: Approval | None = None
    """What came of that; None while nothing has."""
    shift: Shift | None = None
    """What came of the requests that it had as a candidate; None while nothing has, and where it had none."""

    @property
    def word(self) -> str:
        """Its gates may have passed it, and a person or the requests of its canary have not."""
        if self.state == "live":
            return self.state
        rejected = self.approval is not None and self.approval.state != "approved"
        if rejected or (self.shift is not None and self.shift.state == "refused"):
            return "refused"
        if self.asked and self.approval is None and self.loaded:
            return "waiting"
        # The previous release gets the verdict of any older one.
        return self.result.state if self.result and self.state == "previous" else self.state


def standings(
    target: Target, model: str, current: Current, history: Sequence[tuple[Intent, Result | None]]
) -> dict[int, Standing]:
    """That of each release of a history, by its number. Reads two listings, and the records that these name."""
    if not history:
        return {}
    asked, shifts = requested(target, model), shifted(target, model)
    return {
        (number := intent.release): Standing(
            current.state_of(number, result),
            result,
            number in current.loaded,
            number in asked,
            Approvals(target, model, number).decision() if number in asked else None,
            shift(target, model, number).read() if number in shifts else None,
        )
        for intent, result in history
    }


def told_of(shift: Shift) -> str:
    """What came of the requests that a candidate had, with the reason where there is one."""
    return f"{shift.state}, {shift.reason}" if shift.reason else shift.state
