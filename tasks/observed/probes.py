"""Test prompts to a release and to the one before it, which stays loaded: what there is to see where no client asks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, cycle

from tasks.gates.protocol import Trial
from tasks.gates.sequential import PairedProcess
from tasks.gates.smoke import check_prompt
from tasks.models.spec import Prompt
from tasks.observed.evidence import Margins
from tasks.targets.gate_record import Comparison, PromptResult

SLOWER_MARGIN = 0.2
"""The share of probes, less those the other way round, in which the release may be slower than what is allowed. Equal
ones are slower as often as they are faster; one that is slower for good is so nearly always."""
PATIENCE_SECONDS = 30.0
"""A prompt that is not answered by then has failed. If both take so long, neither is worse."""


class Probes:
    """Pairs of answers to one prompt on one node, the order alternating; looked at after each pair."""

    def __init__(self, prompts: tuple[Prompt, ...], margins: Margins) -> None:
        self._margins = margins
        self._prompts: Iterator[Prompt] = cycle(prompts)
        self._numbers = count()
        self._failures = PairedProcess(margins.errors)
        self._slower = PairedProcess(SLOWER_MARGIN)
        self._failed = {True: 0, False: 0}
        self._late = {True: 0, False: 0}
        self.last: PromptResult | None = None
        """The last answer of the release that failed."""

    @property
    def sent(self) -> int:
        return self._failures.samples

    def ask(self, trial: Trial) -> bool:
        """Send the next prompt to both releases of a trial, on one of its nodes. Returns whether only ours failed.

        Without a release to compare with, ours is held against one that never fails.
        """
        number, prompt = next(self._numbers), next(self._prompts)
        node = trial.nodes[number % len(trial.nodes)]
        client = trial.client(node).within(PATIENCE_SECONDS)
        names = {True: trial.candidate.name, **({False: trial.live.name} if trial.live is not None else {})}
        order = sorted(names, reverse=number % 2 == 0)
        found = {ours: check_prompt(client, names[ours], trial.model, prompt, node.node) for ours in order}
        ours, theirs = found[True], found.get(False)
        self._note_failures(ours, theirs)
        if theirs is not None and ours.passed and theirs.passed:
            self._note_times(ours.seconds, theirs.seconds)
        return not ours.passed and (theirs is None or theirs.passed)

    def _note_failures(self, ours: PromptResult, theirs: PromptResult | None) -> None:
        fine = theirs is None or theirs.passed
        self._failures.observe(int(ours.passed) - int(fine))
        self._failed[True] += not ours.passed
        self._failed[False] += not fine
        self.last = self.last if ours.passed else ours

    def _note_times(self, ours: float, theirs: float) -> None:
        if self._margins.first_token is None:
            return
        most = 1 + self._margins.first_token
        late, early = ours > most * theirs, theirs > most * ours
        self._slower.observe(int(early) - int(late))
        self._late[True] += late
        self._late[False] += early

    def comparisons(self) -> tuple[Comparison, ...]:
        """What may be said now, whenever that is."""
        found = (
            ("failed test prompts", self._failures, self._failed, self._margins.errors),
            ("slower answers to test prompts", self._slower, self._late, SLOWER_MARGIN),
        )
        return tuple(
            Comparison(
                measure=measure,
                method="paired, anytime-valid",
                candidate=bad[True] / process.samples,
                other=bad[False] / process.samples,
                difference=(bad[False] - bad[True]) / process.samples,
                lower=None,
                upper=None,
                margin=margin,
                p_worse=process.standing(0.05).p_worse,
                p_fine=process.standing(0.05).p_fine,
                samples=process.samples,
            )
            for measure, process, bad, margin in found
            if process.samples
        )
