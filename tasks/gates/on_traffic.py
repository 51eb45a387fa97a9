"""What judges a candidate while requests go to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tasks.gates.protocol import Trial
from tasks.gates.smoke import SmokeGate
from tasks.targets.gate_record import VerdictState


@dataclass(frozen=True)
class Judgement:
    """`reason` says what decided, or what is missing."""

    state: VerdictState
    reason: str = ""


class Judge(Protocol):
    """Is asked at the end of each step of a rollout."""

    def __call__(self, trial: Trial, since_s: float) -> Judgement:
        """Whether the candidate may have more requests; it has had the same share for `since_s` seconds.

        Raises TritonError that is retryable where the same question may be answered later.
        """
        ...


def answers_its_prompts(trial: Trial, since_s: float) -> Judgement:
    """Sends the test prompts once more: traffic there is, also where no client sends any.

    So what became of a candidate since its gates is seen: one that died, that leaks, that answers too late. It does not
    look at what clients saw.
    """
    failures = SmokeGate().run(trial).failures
    return Judgement("refused", "; ".join(failures)) if failures else Judgement("passed")
