"""What verdicts say to people."""

from __future__ import annotations

from tasks.targets.gate_record import Comparison, GateRecord, VerdictState

AGAINST = {"live": "of the live release", "reference": "of the reference", "floor": "asked for"}


def value(number: float, unit: str) -> str:
    """A measure: a share as percent, everything else in its unit."""
    return f"{100 * number:.4g} %" if not unit else f"{number:.4g} {unit}"


def change(number: float | None, unit: str) -> str:
    """A difference of two measures, with its sign: of shares in points of a hundred."""
    if number is None:
        return "an unknown one"
    return f"{100 * number:+.3g} points" if not unit else f"{number:+.3g} {unit}"


def between(comparison: Comparison) -> str:
    """The bounds of a difference: `-0.8 points … +0.2 points`."""
    lower, upper = (
        "unknown" if bound is None else change(bound, comparison.unit) for bound in (comparison.lower, comparison.upper)
    )
    return f"{lower} … {upper}"


def loss(number: float, unit: str) -> str:
    """An amount that may be lost, or could have been seen."""
    return f"{100 * number:.3g} points" if not unit else f"{number:.3g} {unit}"


def compared(comparison: Comparison) -> str:
    """What was compared: `accuracy 71.5 %, against 72 % of the live release`."""
    ours, theirs = (value(number, comparison.unit) for number in (comparison.candidate, comparison.other))
    return f"{comparison.measure} {ours}, against {theirs} {AGAINST[comparison.against]}"


def detail(comparison: Comparison, state: VerdictState) -> str:
    """The bound that decided, beside the margin."""
    unit = comparison.unit
    allowed = f"{loss(comparison.margin, unit)} may be lost" if comparison.margin else "nothing may be lost"
    match state:
        case "passed":
            return f"a difference of at least {change(comparison.lower, unit)}, and {allowed}"
        case "refused":
            return f"a difference of at most {change(comparison.upper, unit)}, and {allowed}"
        case "undecided":
            between = f"{change(comparison.lower, unit)} and {change(comparison.upper, unit)}"
            return f"a difference between {between}, and {allowed}"


def missing(comparison: Comparison) -> str:
    """What could have been seen, and what would decide."""
    taken = f"{comparison.samples} samples"
    if comparison.detectable is not None:
        taken += f" show a loss of {loss(comparison.detectable, comparison.unit)} or more"
    else:
        taken += " did not decide"
    more = "" if comparison.needed is None else f"; about {max(comparison.needed, comparison.samples + 1)} would decide"
    return taken + more


def nothing_compared(record: GateRecord) -> str:
    """Why a gate without a comparison passes."""
    if record.evidence.prompts:
        return f"all {len(record.evidence.prompts)} answers are as they should be"
    if record.evidence.notes:
        return "; ".join(record.evidence.notes)
    return "no release was live, so there was nothing to compare with" if record.live is None else "nothing failed"
