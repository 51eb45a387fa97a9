"""The agreement gate: next tokens of a candidate against those of the live release."""

from __future__ import annotations

import statistics
import threading
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
from tasks.gates.clustered import Group, Worth, compare_losses
from tasks.gates.protocol import Served, Trial
from tasks.gates.sets import read_set
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.targets.gate_record import Comparison, Differing, Evidence, Figure
from tasks.targets.node_report import NodeReport

MEASURE = "next-token agreement"
_FEWEST_PASSAGES = 8
"""Of fewer nobody can tell how much passages differ."""
_FEWEST_DIFFERENCES = 5
"""Before so many places differ nothing is worth a computation."""
_OTHER_COMPARISONS = 100
"""As many can stand beside this one, and Holm would still let it refuse."""
_SHOWN = 12
"""Places, and as many answers, that people see side by side."""
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class _Stopped:
    """What stopped the reading on one node; nothing, if nothing did."""

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
        reading = _Reading(self.asked, len(passages), trial.alpha, time.monotonic() + self.asked.max_seconds)
        live = trial.live

        def read(place: int) -> _Stopped:
            share = passages[place :: len(trial.nodes)]
            return self._on(trial, live, trial.nodes[place], share, reading)

        with ThreadPoolExecutor(len(trial.nodes)) as pool:
            stopped = list(pool.map(read, range(len(trial.nodes))))
        return self._evidence(trial, live, reading, stopped)

    def _on(
        self, trial: Trial, live: Served, node: NodeReport, passages: Sequence[Passage], reading: _Reading
    ) -> _Stopped:
        ask = asker(trial.client(node), trial.candidate, live)
        for number, passage in enumerate(passages):
            if reading.is_over():
                break
            try:
                reading.add(
                    compare(passage, self.asked.positions, trial.candidate, live, ask, candidate_first=number % 2 == 0)
                )
            except CandidateFailed as error:
                return _Stopped(failure=f"node '{node.node}': {error}")
            except LiveFailed as error:
                return _Stopped(gap=f"node '{node.node}': the live release gave {error}")
            if number % 16 == 15:
                trial.say(f"agreement: {reading.said()}")
        return _Stopped()

    def _evidence(self, trial: Trial, live: Served, reading: _Reading, stopped: Sequence[_Stopped]) -> Evidence:
        positions = reading.positions
        gaps = [each.gap for each in stopped if each.gap]
        comparison = compare_positions(positions, self.asked, trial.alpha)
        if comparison is None:
            gaps.append(f"{_FEWEST_PASSAGES} passages or more are needed, and both releases have read fewer")
        failures = [each.failure for each in stopped if each.failure]
        answers = [] if failures or gaps else _answers(trial, live)
        return Evidence(
            comparisons=() if comparison is None else (comparison,),
            failures=tuple(failures),
            gaps=tuple(gaps),
            figures=(*_figures(positions), *_figures_of_answers(answers)),
            differing=(*_shown(positions), *_shown_answers(answers)),
            notes=reading.notes(),
        )


class _Reading:
    """What the threads of all nodes have read, and whether they go on."""

    def __init__(self, asked: AgreementSpec, passages: int, alpha: float, until: float) -> None:
        self._asked = asked
        self._passages = passages
        self._alpha = alpha
        self._until = until
        self._lock = threading.Lock()
        self._groups: list[list[Position]] = []
        self._is_decided = False

    @property
    def positions(self) -> list[Position]:
        return [position for group in self._groups for position in group]

    def add(self, positions: Sequence[Position]) -> None:
        """The places of one passage; of a text without any there is nothing to add."""
        if positions:
            with self._lock:
                self._groups.append(list(positions))
                self._is_decided = self._is_decided or self._cannot_pass()

    def is_over(self) -> bool:
        return self._is_decided or time.monotonic() > self._until

    def said(self) -> str:
        positions = self.positions
        return f"{sum(position.agrees for position in positions)} of {len(positions)} next tokens are the same"

    def notes(self) -> tuple[str, ...]:
        read = len(self._groups)
        if read == self._passages:
            return ()
        why = ": were the next tokens of all others the same, it would be refused too" if self._is_decided else ""
        return (f"{read} of {self._passages} passages were read{why}",)

    def _cannot_pass(self) -> bool:
        """Whether it will be refused, whatever the passages say that are left.

        So a stop here changes no verdict, and how often equal releases are refused stays what it is.
        """
        groups = [Group(sum(not each.agrees for each in group), len(group)) for group in self._groups]
        if len(groups) < _FEWEST_PASSAGES or sum(group.bad for group in groups) < _FEWEST_DIFFERENCES:
            return False
        left = [Group(0, self._asked.positions)] * (self._passages - len(groups))
        return Worth.of([*groups, *left], self._alpha).at_least(self._asked.margin) <= self._alpha / _OTHER_COMPARISONS


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
