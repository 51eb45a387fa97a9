"""Shift traffic to a candidate that has passed its gates: step by step, each for a while, then it is judged again.

A canary is refused as soon as its clients are shown to fare worse than those of the live release.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.errors import GateRefused
from tasks.gates.on_traffic import Judge, Judgement, answers_its_prompts
from tasks.models.rollout import Rollout, Step
from tasks.observed.beside import Beside
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.roll_out import require_wanted
from tasks.steps.validate import trial_of
from tasks.targets.target import Target
from tasks.targets.traffic import (
    Canary,
    Shadow,
    Shift,
    copy_to_shadow,
    send_to_canary,
    shift,
    traffic,
    withdraw_traffic,
)

LOOK_SECONDS = 5.0
"""How often it is looked whether the candidate is still wanted."""


@dataclass
class Shifting:
    """The steps of one candidate. Where they are, the record of traffic says: a run that comes again goes on there.

    How long a share has been given is the age of that record, by the store's clock.
    """

    context: Context
    plan: Plan
    target_name: str
    release: int
    judge: Judge = answers_its_prompts
    _given: Step | None = field(default=None, init=False)
    """The step that this run has given, or found given."""
    _beside: Beside | None = field(default=None, init=False)
    """What this run has seen of the requests to both releases, since it gave the step or found it given."""

    @property
    def target(self) -> Target:
        return self.context.target(self.target_name)

    @property
    def rollout(self) -> Rollout:
        return self.plan.model.rollout

    @property
    def model(self) -> str:
        return self.plan.model.name

    def look(self) -> float | None:
        """Do what is due now; returns in how many seconds to look again, None once nothing is left to do.

        Nothing is to do for a file without steps, where no release is public, and where memory does not hold the
        candidate beside it.

        Raises GateRefused if the candidate is refused: its traffic is gone by then, and it is no candidate any more.
        Raises EnginehouseError `release-withdrawn`, as `validate` does, and TritonError.
        """
        if not self.rollout.shifts:
            return None
        current, _ = self.target.current(self.model)
        if current.public in (None, self.release) or current.alone:
            return None
        if (known := shift(self.target, self.model, self.release).read()) is not None:
            return self._concluded(known)
        require_wanted(self.target, self.model, self.release)
        number, since_s = self._at()
        if number is None:
            if self._given is not None:
                return self._refuse("its traffic was taken away")
            return self._give(self.rollout.steps[0])
        step = self._given = self.rollout.steps[number]
        if worse := self._worse(current.public):
            return self._refuse(worse)
        if since_s < step.soak:
            return min(LOOK_SECONDS, step.soak - since_s)
        judgement = self.judge(trial_of(self.context, self.plan, self.target, self.release), since_s)
        if judgement.state != "passed":
            return self._refuse(_words(judgement))
        if number + 1 < len(self.rollout.steps):
            return self._give(self.rollout.steps[number + 1])
        return self._conclude("passed")

    def _worse(self, live: int) -> str:
        """What clients of a canary fare worse in; empty if nothing shows that."""
        if self.rollout.strategy != "canary":
            return ""
        if self._beside is None:
            self._beside = Beside(self.target, self.model, self.release, live, self.plan.model.watch)
        return self._beside.worse()

    def _at(self) -> tuple[int | None, float]:
        """Which step the record has, and since when; None if it has none of them."""
        known, age = traffic(self.target, self.model).aged()
        wanted = [self._part(step) for step in self.rollout.steps]
        part = known.canary if self.rollout.strategy == "canary" else known.shadow
        number = wanted.index(part) if part in wanted else None
        return number, age

    def _part(self, step: Step) -> Canary | Shadow:
        if self.rollout.strategy == "canary":
            return Canary(release=self.release, share=step.share, sticky=self.rollout.sticky)
        return Shadow(release=self.release, share=step.share)

    def _give(self, step: Step) -> float:
        self._given, self._beside = step, None
        what = "requests go" if self.rollout.strategy == "canary" else "requests are copied"
        self.context.reporter.say(f"{step.share:.1%} of the {what} to release {self.release} for {step.soak:g} s")
        match self._part(step):
            case Canary() as canary:
                send_to_canary(self.target, self.model, canary)
            case Shadow() as shadow:
                copy_to_shadow(self.target, self.model, shadow)
        return min(LOOK_SECONDS, step.soak)

    def _refuse(self, reason: str) -> None:
        return self._conclude("refused", reason)

    def _conclude(self, state: str, reason: str = "") -> None:
        share = self.rollout.steps[0].share if self._given is None else self._given.share
        found = Shift.model_validate(
            {
                "release": self.release,
                "strategy": self.rollout.strategy,
                "state": state,
                "reason": reason,
                "share": share,
            }
        )
        return self._concluded(shift(self.target, self.model, self.release).create(found))

    def _concluded(self, known: Shift) -> None:
        """The record counts, whoever wrote it. A refused one takes its traffic first, then its place."""
        if known.state == "passed":
            if known.strategy == "shadow":
                withdraw_traffic(self.target, self.model, self.release)
            return
        withdraw_traffic(self.target, self.model, self.release)
        self.target.move(self.model, lambda current: current.without_candidates(self.release))
        raise GateRefused(
            f"{self.model} release {self.release} on '{self.target.name}' was refused with {known.share:.1%} of the "
            f"requests ({known.strategy}): {known.reason}",
            hint="the live release has all requests again",
        )


def _words(judgement: Judgement) -> str:
    return judgement.reason if judgement.state == "refused" else f"undecided: {judgement.reason}"
