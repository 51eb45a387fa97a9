"""The section `approval` of a model's file: whether a person decides before traffic moves to a release."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.frozen import Spec


class ApprovalSpec(Spec):
    """When a candidate that its gates did not refuse waits for a person, and for how long."""

    when: Literal["never", "undecided", "always"] = Field(
        description="undecided: a person decides where the gates could not. always: a person decides in any case."
    )
    timeout_hours: float = Field(
        default=24, gt=0, le=8784, description="A candidate on which nobody has decided by then is not promoted."
    )

    @property
    def asks(self) -> bool:
        """Whether there may be anything to decide."""
        return self.when != "never"
