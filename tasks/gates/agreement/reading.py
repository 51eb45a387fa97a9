"""The passages of a set, read by a candidate and by what it is compared with: on each node one request at a time.

One at a time, since a batch of another size rounds otherwise. While one node reads a passage, others read others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias

from infra.triton.client import TritonClient
from tasks.gates.agreement.passages import Passage
from tasks.gates.agreement.positions import AskNext, CandidateFailed, OtherFailed, Position, asker, compare
from tasks.gates.clustered import Group, Worth
from tasks.gates.protocol import Trial
from tasks.targets.node_report import NodeReport

FEWEST_PASSAGES = 8
"""Of fewer nobody can tell how much passages differ."""
_FEWEST_DIFFERENCES = 5
"""Before so many places differ nothing is worth a computation."""
_OTHER_COMPARISONS = 100
"""As many can stand beside this one, and Holm would still let it refuse."""

Against: TypeAlias = Literal["live", "reference"]
CALLED: dict[Against, str] = {"live": "the live release", "reference": "the reference"}


@dataclass(frozen=True)
class Beside:
    """What a candidate is compared with."""

    against: Against
    margin: float
    """The share of next tokens that may differ from it."""
    counts: bool
    """Whether the numbers of tokens are asked for: whether both sides give them."""
    asker: Callable[[TritonClient], AskNext]
    """What asks it, beside the client of a node."""

    @property
    def called(self) -> str:
        return CALLED[self.against]


@dataclass(frozen=True)
class Read:
    """What came of the reading: the places of all passages, and what stopped it on a node."""

    positions: tuple[Position, ...]
    passages: int
    """How many were read."""
    is_decided: bool
    """Whether it ended early, since whatever the passages said that are left, the candidate would be refused."""
    failures: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()


def read(trial: Trial, passages: Sequence[Passage], places: int, beside: Beside, max_seconds: float) -> Read:
    """Have the candidate and what is `beside` it read all passages, with so many places in each.

    No passage is begun after `max_seconds`. Raises TritonError that is retryable.
    """
    progress = _Progress(places, len(passages), beside.margin, trial.alpha, time.monotonic() + max_seconds)

    def on(number: int) -> _Stopped:
        share = passages[number :: len(trial.nodes)]
        return _on(trial, trial.nodes[number], share, places, beside, progress)

    with ThreadPoolExecutor(len(trial.nodes)) as pool:
        stopped = list(pool.map(on, range(len(trial.nodes))))
    return Read(
        positions=tuple(position for group in progress.groups for position in group),
        passages=len(progress.groups),
        is_decided=progress.is_decided,
        failures=tuple(each.failure for each in stopped if each.failure),
        gaps=tuple(each.gap for each in stopped if each.gap),
    )


@dataclass(frozen=True)
class _Stopped:
    """What stopped the reading on one node; nothing, if nothing did."""

    failure: str = ""
    gap: str = ""


def _on(
    trial: Trial, node: NodeReport, passages: Sequence[Passage], places: int, beside: Beside, progress: _Progress
) -> _Stopped:
    client = trial.client(node)
    candidate, other = (
        asker(client, trial.candidate, CandidateFailed, counts=beside.counts),
        beside.asker(client),
    )
    for number, passage in enumerate(passages):
        if progress.is_over():
            break
        try:
            progress.add(compare(passage, places, candidate, other, candidate_first=number % 2 == 0))
        except CandidateFailed as error:
            return _Stopped(failure=f"node '{node.node}': {error}")
        except OtherFailed as error:
            return _Stopped(gap=f"node '{node.node}': {beside.called} gave {error}")
        if number % 16 == 15:
            trial.say(f"agreement with {beside.called}: {progress.said()}")
    return _Stopped()


class _Progress:
    """What the threads of all nodes have read, and whether they go on."""

    def __init__(self, places: int, passages: int, margin: float, alpha: float, until: float) -> None:
        self._places = places
        self._passages = passages
        self._margin = margin
        self._alpha = alpha
        self._until = until
        self._lock = threading.Lock()
        self.groups: list[list[Position]] = []
        self.is_decided = False

    def add(self, positions: Sequence[Position]) -> None:
        """The places of one passage; of a text without any there is nothing to add."""
        if positions:
            with self._lock:
                self.groups.append(list(positions))
                self.is_decided = self.is_decided or self._cannot_pass()

    def is_over(self) -> bool:
        return self.is_decided or time.monotonic() > self._until

    def said(self) -> str:
        positions = [position for group in self.groups for position in group]
        return f"{sum(position.agrees for position in positions)} of {len(positions)} next tokens are the same"

    def _cannot_pass(self) -> bool:
        """Whether it will be refused, whatever the passages say that are left.

        So a stop here changes no verdict, and how often equal releases are refused stays what it is.
        """
        groups = [Group(sum(not each.agrees for each in group), len(group)) for group in self.groups]
        if len(groups) < FEWEST_PASSAGES or sum(group.bad for group in groups) < _FEWEST_DIFFERENCES:
            return False
        left = [Group(0, self._places)] * (self._passages - len(self.groups))
        return Worth.of([*groups, *left], self._alpha).at_least(self._margin) <= self._alpha / _OTHER_COMPARISONS
