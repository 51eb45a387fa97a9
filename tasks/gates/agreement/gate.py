"""The agreement gate: next tokens of a candidate against those of the live release."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from infra.errors import TritonError
from tasks.gates.agreement.answers import RunOn, run_on
from tasks.gates.agreement.passages import Passage, bundled, passages_of
from tasks.gates.agreement.positions import CandidateFailed, LiveFailed, Position, asker, compare
from tasks.gates.clustered import Group, compare_losses
from tasks.gates.protocol import Served, Trial
from tasks.gates.sets import read_set
from tasks.models.gates import AgreementSpec
from tasks.targets.gate_record import Comparison, Differing, Evidence, Figure
from tasks.targets.node_report import NodeReport

MEASURE = "next-token agreement"
_FEWEST_PASSAGES = 8
"""Of fewer nobody can tell how much passages differ."""
_SHOWN = 12
"""Places, and as many answers, that people see side by side."""
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class _Found:
    """What one node has brought: the places of each passage, and what stopped it."""

    positions: tuple[Position, ...] = ()
    failure: str = ""
    gap: str = ""


@dataclass(frozen=True)
class AgreementGate:
    """Each passage is read by both releases of one node, one request at a time, while other nodes read others.

    One at a time, since a batch of another size rounds otherwise. Places of one passage are not independent of each
    other, so the statistics count by passage (`tasks.gates.clustered`).
    """

    asked: AgreementSpec
    compares: ClassVar[bool] = True

    def run(self, trial: Trial) -> Evidence:
        """Raises UsageError `set-missing`, `set-invalid`, `set-changed`, and TritonError that is retryable."""
        if trial.live is None:
            return Evidence()
        passages = bundled() if self.asked.passages is None else passages_of(read_set(self.asked.passages))
        until = time.monotonic() + self.asked.max_seconds
        live = trial.live

        def read(place: int) -> _Found:
            return self._on(trial, live, trial.nodes[place], passages[place :: len(trial.nodes)], until)

        with ThreadPoolExecutor(len(trial.nodes)) as pool:
            found = list(pool.map(read, range(len(trial.nodes))))
        return self._evidence(trial, live, found, len(passages))

    def _on(self, trial: Trial, live: Served, node: NodeReport, passages: Sequence[Passage], until: float) -> _Found:
        ask = asker(trial.client(node), trial.candidate, live)
        positions: list[Position] = []
        for number, passage in enumerate(passages):
            if time.monotonic() > until:
                break
            try:
                positions += compare(
                    passage, self.asked.positions, trial.candidate, live, ask, candidate_first=number % 2 == 0
                )
            except CandidateFailed as error:
                return _Found(tuple(positions), failure=f"node '{node.node}': {error}")
            except LiveFailed as error:
                return _Found(tuple(positions), gap=f"node '{node.node}': the live release gave {error}")
            if number % 16 == 15:
                same = sum(position.agrees for position in positions)
                trial.say(f"agreement on node '{node.node}': {same} of {len(positions)} next tokens are the same")
        return _Found(tuple(positions))

    def _evidence(self, trial: Trial, live: Served, found: Sequence[_Found], passages: int) -> Evidence:
        positions = [position for each in found for position in each.positions]
        gaps = [each.gap for each in found if each.gap]
        comparison = compare_positions(positions, self.asked, trial.alpha)
        if comparison is None:
            gaps.append(f"{_FEWEST_PASSAGES} passages or more are needed, and both releases have read fewer")
        failures = [each.failure for each in found if each.failure]
        answers = [] if failures or gaps else _answers(trial, live)
        return Evidence(
            comparisons=() if comparison is None else (comparison,),
            failures=tuple(failures),
            gaps=tuple(gaps),
            figures=(*_figures(positions), *_figures_of_answers(answers)),
            differing=(*_shown(positions), *_shown_answers(answers)),
            notes=_notes(positions, passages),
        )


def compare_positions(positions: Sequence[Position], asked: AgreementSpec, alpha: float) -> Comparison | None:
    """The agreement of the passages against that of the live release with itself, which is 1. None: too few."""
    of_passages: defaultdict[str, list[bool]] = defaultdict(list)
    for position in positions:
        of_passages[position.passage].append(position.agrees)
    if len(of_passages) < _FEWEST_PASSAGES:
        return None
    groups = [Group(agree.count(False), len(agree)) for agree in of_passages.values()]
    return compare_losses(MEASURE, groups, margin=asked.margin, alpha=alpha, things="places")


def _answers(trial: Trial, live: Served) -> list[RunOn]:
    """Of the first node. Without them the figures are fewer, and nothing else: they decide nothing."""
    try:
        return run_on(trial.client(trial.nodes[0]), trial.model.prompts, trial.candidate, live)
    except TritonError as error:
        trial.say(f"agreement: the test prompts were not compared: {error.message}")
        return []


def _figures(positions: Sequence[Position]) -> tuple[Figure, ...]:
    differ = sum(not position.agrees for position in positions)
    unsettled = sum(not position.settled for position in positions)
    return (
        Figure(name="places asked", candidate=len(positions)),
        Figure(name="places where the next token differs", candidate=differ),
        Figure(name="places where a release differs from itself", candidate=unsettled),
    )


def _figures_of_answers(answers: Sequence[RunOn]) -> tuple[Figure, ...]:
    if not answers:
        return ()
    median = statistics.median(answer.first_difference for answer in answers)
    return (
        Figure(name="answers that differ", candidate=sum(not answer.same for answer in answers)),
        Figure(name="first difference of an answer, in the middle of all", unit="characters", candidate=median),
    )


def _shown(positions: Sequence[Position]) -> tuple[Differing, ...]:
    differing = [position for position in positions if not position.agrees][:_SHOWN]
    return tuple(
        Differing(
            question=position.prefix[-_SHOWN_CHARACTERS:],
            candidate=position.candidate,
            other=position.live,
            note=f"the next token in passage '{position.passage}'",
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


def _notes(positions: Sequence[Position], passages: int) -> tuple[str, ...]:
    read = len({position.passage for position in positions})
    return () if read == passages else (f"{read} of {passages} passages were read",)
