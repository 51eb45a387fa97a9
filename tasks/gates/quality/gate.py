"""The quality gate: right answers of a candidate against those of the live release, question by question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from infra.triton.client import TritonClient
from tasks.gates.proportions import compare_paired_answers, compare_with_floor
from tasks.gates.protocol import Trial
from tasks.gates.quality.asking import Mark, mark, tell_likelihoods
from tasks.gates.quality.questions import SCORERS, Question, bundled, questions_of
from tasks.gates.quality.samples import is_samples, questions_of_samples
from tasks.gates.sets import read_set
from tasks.models.gate_specs.quality import QualitySpec
from tasks.targets.gate_record import Comparison, Differing, Evidence, Figure

MEASURE = "right answers"
ENDINGS = "answers that end"
"""Before their last token: a release that has lost its stop words runs on, be its answers right or wrong."""
_SHOWN = 20
_SHOWN_CHARACTERS = 1000


@dataclass(frozen=True)
class Marked:
    """One question, with the marks of both releases; of the live one where there is one."""

    question: Question
    candidate: Mark
    live: Mark | None


@dataclass(frozen=True)
class QualityGate:
    """Each question is put to both releases on the same node, now to the one first and now to the other."""

    asked: QualitySpec
    compares: ClassVar[bool] = True

    def run(self, trial: Trial) -> Evidence:
        """Raises UsageError `set-missing`, `set-invalid`, `set-changed`, `scorer-missing`, and TritonError that is
        retryable."""
        if trial.live is None and self.asked.floor is None:
            return Evidence(
                notes=("no release was live and no floor is asked for, so there was nothing to compare with",)
            )
        questions = self._questions()
        clients = [trial.client(node) for node in trial.nodes]
        releases = [trial.candidate, *([] if trial.live is None else [trial.live])]
        by_likelihood = tell_likelihoods(clients[0], releases, questions)
        until = time.monotonic() + self.asked.max_seconds

        def put(place: int) -> Marked | None:
            if time.monotonic() > until:
                return None
            client = clients[place % len(clients)]
            if place % 32 == 31:
                trial.say(f"quality: question {place + 1} of {len(questions)}")
            return _both(trial, client, questions[place], by_likelihood=by_likelihood, candidate_first=place % 2 == 0)

        with ThreadPoolExecutor(len(clients) * self.asked.concurrency) as pool:
            marked = [found for found in pool.map(put, range(len(questions))) if found is not None]
        return evidence_of(marked, len(questions), self.asked, trial.alpha)

    def _questions(self) -> tuple[Question, ...]:
        if self.asked.questions is None:
            return bundled()
        found = read_set(self.asked.questions)
        return questions_of_samples(found, self.asked.scorer) if is_samples(found) else questions_of(found)


def _both(
    trial: Trial, client: TritonClient, question: Question, *, by_likelihood: bool, candidate_first: bool
) -> Marked:
    def ours() -> Mark:
        return mark(client, trial.candidate, question, by_likelihood=by_likelihood)

    if trial.live is None:
        return Marked(question, ours(), None)
    first = ours() if candidate_first else None
    theirs = mark(client, trial.live, question, by_likelihood=by_likelihood)
    return Marked(question, first or ours(), theirs)


def evidence_of(marked: Sequence[Marked], questions: int, asked: QualitySpec, alpha: float) -> Evidence:
    """What the marks come to."""
    if not marked:
        return Evidence(gaps=("no question was put",))
    pairs = [(each.candidate, each.live) for each in marked if each.live is not None]
    silent = [live.error for _, live in pairs if live.error]
    return Evidence(
        comparisons=tuple(_comparisons(marked, pairs, asked, alpha)),
        gaps=(f"the live release did not answer {len(silent)} of {len(pairs)} questions: {silent[0]}",)
        if silent
        else (),
        figures=_figures(marked),
        differing=_shown(marked),
        notes=_notes(marked, questions),
    )


def _comparisons(
    marked: Sequence[Marked], pairs: Sequence[tuple[Mark, Mark]], asked: QualitySpec, alpha: float
) -> list[Comparison]:
    comparisons: list[Comparison] = []
    if pairs:
        comparisons.append(
            compare_paired_answers(
                MEASURE,
                [ours.right for ours, _ in pairs],
                [theirs.right for _, theirs in pairs],
                margin=asked.margin,
                alpha=alpha,
            )
        )
    ends = [(ours.ended, theirs.ended) for ours, theirs in pairs if ours.ended is not None and theirs.ended is not None]
    if ends and asked.endings is not None:
        ours, theirs = ([bool(pair[place]) for pair in ends] for place in (0, 1))
        comparisons.append(compare_paired_answers(ENDINGS, ours, theirs, margin=asked.endings, alpha=alpha))
    if asked.floor is not None:
        right = sum(each.candidate.right for each in marked)
        comparisons.append(compare_with_floor(MEASURE, right, len(marked), asked.floor, alpha=alpha))
    return comparisons


def _figures(marked: Sequence[Marked]) -> tuple[Figure, ...]:
    """Right answers of all questions of one scorer, as a share."""
    figures: list[Figure] = []
    for scorer in SCORERS:
        of_it = [each for each in marked if each.question.scorer == scorer]
        if of_it:
            theirs = [each.live.right for each in of_it if each.live is not None]
            figures.append(
                Figure(
                    name=f"{MEASURE} by {scorer}, {len(of_it)} questions",
                    candidate=sum(each.candidate.right for each in of_it) / len(of_it),
                    live=sum(theirs) / len(theirs) if theirs else None,
                )
            )
    return tuple(figures)


def _shown(marked: Sequence[Marked]) -> tuple[Differing, ...]:
    """Questions that only one of both answers right, those first that the candidate has lost."""
    differing = [each for each in marked if each.live is not None and each.candidate.right != each.live.right]
    return tuple(
        Differing(
            question=each.question.prompt[:_SHOWN_CHARACTERS],
            candidate=_said(each.candidate),
            other="" if each.live is None else _said(each.live),
            note=f"question '{each.question.name}': only the {'candidate' if each.candidate.right else 'live release'}"
            " is right",
        )
        for each in sorted(differing, key=lambda each: each.candidate.right)[:_SHOWN]
    )


def _said(mark: Mark) -> str:
    return f"no answer: {mark.error}" if mark.error else mark.answer[:_SHOWN_CHARACTERS]


def _notes(marked: Sequence[Marked], questions: int) -> tuple[str, ...]:
    notes: list[str] = []
    silent = [each.candidate.error for each in marked if each.candidate.error]
    if silent:
        notes.append(f"the candidate did not answer {len(silent)} of {len(marked)} questions: {silent[0]}")
    if len(marked) < questions:
        notes.append(f"{len(marked)} of {questions} questions were put before the time was over")
    return tuple(notes)
