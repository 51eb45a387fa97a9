"""The agreement gate: next tokens of a candidate against those of the live release, and of the reference."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from infra.errors import TritonError
from tasks.gates.agreement import reference
from tasks.gates.agreement.answers import RunOn, run_on
from tasks.gates.agreement.passages import Passage
from tasks.gates.agreement.positions import OtherFailed, Position, asker, counts_tokens
from tasks.gates.agreement.reading import FEWEST_PASSAGES, Beside, Read, read
from tasks.gates.clustered import Group, compare_losses
from tasks.gates.protocol import FoundReference, Served, Trial
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.targets.gate_record import Comparison, Differing, Evidence, Figure

MEASURE = "next-token agreement"
_SHOWN = 12
"""Places, and as many answers, that people see side by side."""
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class AgreementGate:
    """Each passage is read by both releases of one node, and by the candidate beside what the reference has said.

    Places of one passage are not independent of each other, so the statistics count by passage
    (`tasks.gates.clustered`).
    """

    asked: AgreementSpec
    compares: ClassVar[bool] = True

    def run(self, trial: Trial) -> Evidence:
        """Raises UsageError `set-missing`, `set-invalid`, `set-changed`, StoreError, and TritonError that is
        retryable."""
        found = reference.find(trial, self.asked)
        if trial.live is None and found is None:
            return Evidence()
        passages = reference.read_passages(self.asked)
        told = list(self._told(trial, found, passages))
        answers: list[RunOn] = []
        if trial.live is not None and not any(each.failures or each.gaps for each in told):
            answers = _answers(trial, trial.live)
        return Evidence(
            comparisons=tuple(comparison for each in told for comparison in each.comparisons),
            failures=tuple(dict.fromkeys(failure for each in told for failure in each.failures)),
            gaps=tuple(gap for each in told for gap in each.gaps),
            figures=(*(figure for each in told for figure in each.figures), *_figures_of_answers(answers)),
            differing=(*(pair for each in told for pair in each.differing), *_shown_answers(answers)),
            notes=tuple(note for each in told for note in each.notes),
            reference="" if found is None else found.artifact,
        )

    def _told(self, trial: Trial, found: FoundReference | None, passages: Sequence[Passage]) -> Iterator[Evidence]:
        """What the live release says of the candidate, then the reference."""
        if trial.live is not None:
            beside = live_beside(trial.candidate, trial.live, self.asked)
            yield self._evidence(trial, beside, passages)
        if found is not None and found.tokens is not None:
            beside = reference.beside(found.tokens, passages, self.asked, trial.candidate)
            yield self._evidence(trial, beside, passages)
        elif found is not None:
            without = f"there is no reference: {found.missing}"
            # Who says `auto` takes the reference where there is one.
            yield Evidence(gaps=(without,)) if self.asked.reference == "always" else Evidence(notes=(without,))

    def _evidence(self, trial: Trial, beside: Beside, passages: Sequence[Passage]) -> Evidence:
        done = read(trial, passages, self.asked.positions, beside, self.asked.max_seconds)
        comparison = compare_positions(done.positions, beside, trial.alpha)
        few = f"{FEWEST_PASSAGES} passages or more are needed, and beside {beside.called} fewer were read"
        return Evidence(
            comparisons=() if comparison is None else (comparison,),
            failures=done.failures,
            gaps=(*done.gaps, *((few,) if comparison is None else ())),
            figures=_figures(done.positions, beside),
            differing=_shown(done.positions, beside),
            notes=_notes(done, len(passages), beside),
        )


def live_beside(candidate: Served, live: Served, asked: AgreementSpec) -> Beside:
    """The live release as what a candidate is compared with, on the same node."""
    counts = counts_tokens(candidate) and counts_tokens(live)
    return Beside("live", asked.margin, counts, partial(asker, served=live, failure=OtherFailed, counts=counts))


def compare_positions(positions: Sequence[Position], beside: Beside, alpha: float) -> Comparison | None:
    """The agreement of the passages against that of the other one with itself, which is 1. None: too few."""
    of_passages: defaultdict[str, list[bool]] = defaultdict(list)
    for position in positions:
        of_passages[position.passage].append(position.agrees)
    if len(of_passages) < FEWEST_PASSAGES:
        return None
    groups = [Group(agree.count(False), len(agree)) for agree in of_passages.values()]
    found = compare_losses(MEASURE, groups, margin=beside.margin, alpha=alpha, things="places")
    return found.model_copy(update={"against": beside.against})


def _answers(trial: Trial, live: Served) -> list[RunOn]:
    """Of the first node. Without them the figures are fewer, and nothing else: they decide nothing."""
    try:
        return run_on(trial.client(trial.nodes[0]), trial.model.prompts, trial.candidate, live)
    except TritonError as error:
        trial.say(f"agreement: the test prompts were not compared: {error.message}")
        return []


def _figures(positions: Sequence[Position], beside: Beside) -> tuple[Figure, ...]:
    differ = sum(not position.agrees for position in positions)
    unsettled = sum(not position.settled for position in positions)
    where = "" if beside.against == "live" else f", beside {beside.called}"
    return (
        Figure(name=f"places asked{where}", candidate=len(positions)),
        Figure(name=f"places where the next token differs{where}", candidate=differ),
        Figure(name=f"places where a release differs from itself{where}", candidate=unsettled),
    )


def _notes(done: Read, passages: int, beside: Beside) -> tuple[str, ...]:
    if done.passages == passages:
        return ()
    where = "" if beside.against == "live" else f" beside {beside.called}"
    why = ": were the next tokens of all others the same, it would be refused too" if done.is_decided else ""
    return (f"{done.passages} of {passages} passages were read{where}{why}",)


def _figures_of_answers(answers: Sequence[RunOn]) -> tuple[Figure, ...]:
    if not answers:
        return ()
    median = statistics.median(answer.first_difference for answer in answers)
    return (
        Figure(name="answers that differ", candidate=sum(not answer.same for answer in answers)),
        Figure(name="first difference of an answer, in the middle of all", unit="characters", candidate=median),
    )


def _shown(positions: Sequence[Position], beside: Beside) -> tuple[Differing, ...]:
    differing = [position for position in positions if not position.agrees][:_SHOWN]
    return tuple(
        Differing(
            question=position.prefix[-_SHOWN_CHARACTERS:],
            candidate=position.candidate,
            other=position.other,
            note=f"the next token in passage '{position.passage}'",
            against=beside.against,
        )
        for position in differing
    )


def _shown_answers(answers: Sequence[RunOn]) -> tuple[Differing, ...]:
    return tuple(
        Differing(
            question=answer.prompt,
            candidate=answer.candidate,
            other=answer.live,
            note=f"the first {answer.first_difference} characters are the same",
        )
        for answer in answers
        if not answer.same
    )[:_SHOWN]
