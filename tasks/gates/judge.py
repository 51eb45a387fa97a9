"""Verdicts: what the evidence of all gates of one candidate comes to.

Passed is what is shown to lose no more than its margin: the lower bound of the difference is above -margin. Refused is
what is shown to lose more: the upper bound is below -margin, at the level that Holm leaves it beside all comparisons of
all gates, or what it cannot be excused for. All else is undecided. For passing there is no correction: a candidate
passes only if every comparison says so, which no number of gates makes more likely.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.gates.distributions import z_of_power
from tasks.gates.holm import holm_levels
from tasks.gates.wording import compared, detail, missing, nothing_compared
from tasks.targets.gate_record import Comparison, GateRecord, Verdict, VerdictState


def judge(records: Sequence[GateRecord], alpha: float) -> tuple[Verdict, ...]:
    """The verdict on each gate, in their order. `alpha` is for all that can refuse together."""
    comparisons = [comparison for record in records for comparison in record.evidence.comparisons]
    levels = holm_levels([comparison.p_worse for comparison in comparisons], alpha)
    strictest = alpha / max(1, len(comparisons))
    stated = iter([(_stated(each, alpha, strictest), level) for each, level in zip(comparisons, levels, strict=True)])
    return tuple(_verdict(record, [next(stated) for _ in record.evidence.comparisons], alpha) for record in records)


def overall(verdicts: Sequence[Verdict]) -> VerdictState:
    """Refused if one gate refuses, else undecided if one could not decide."""
    states = {verdict.state for verdict in verdicts}
    return "refused" if "refused" in states else "undecided" if "undecided" in states else "passed"


def _stated(comparison: Comparison, alpha: float, level: float) -> Comparison:
    """The comparison with the loss that it could have seen beside the others: at the strictest level that Holm knows.

    A larger loss varies more, so it grows faster than the quantiles: between their ratio and its square.
    """
    if comparison.detectable is None or level == alpha:
        return comparison
    growth = (z_of_power(level) / z_of_power(alpha)) ** 1.5
    beyond = (comparison.detectable - comparison.margin) * growth
    return comparison.model_copy(update={"detectable": comparison.margin + beyond})


def _verdict(record: GateRecord, compared_at: Sequence[tuple[Comparison, float]], alpha: float) -> Verdict:
    evidence = record.evidence

    def verdict(state: VerdictState, reason: str, found: tuple[Comparison, float] | None) -> Verdict:
        decisive, level = (None, None) if found is None else found
        return Verdict(
            gate=record.gate,
            kind=record.kind,
            state=state,
            reason=reason,
            samples=evidence.samples if decisive is None else decisive.samples,
            decisive=decisive,
            level=level,
        )

    worst = min(compared_at, key=lambda each: each[0].p_worse - each[1], default=None)
    least_sure = max(compared_at, key=lambda each: each[0].p_fine, default=None)
    if evidence.failures:
        return verdict("refused", "; ".join(evidence.failures), worst)
    if worst is not None and worst[0].p_worse <= worst[1]:
        return verdict("refused", f"{compared(worst[0])}: {detail(worst[0], 'refused')}", worst)
    if evidence.gaps:
        return verdict("undecided", "; ".join(evidence.gaps), least_sure)
    if least_sure is None:
        return verdict("passed", nothing_compared(record), None)
    if least_sure[0].p_fine <= alpha:
        return verdict("passed", f"{compared(least_sure[0])}: {detail(least_sure[0], 'passed')}", least_sure)
    comparison, level = least_sure
    alone = ", which alone would refuse it" if comparison.p_worse <= alpha else ""
    reason = f"{compared(comparison)}: {detail(comparison, 'undecided')}{alone}. {missing(comparison)}"
    return verdict("undecided", reason, (comparison, level))
