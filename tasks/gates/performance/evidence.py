"""What the turns come to: ratios against the live release, limits, failures, and the figures beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tasks.gates.performance.ratios import FEWEST_ROUNDS, compare_ratios
from tasks.gates.performance.turns import Asked, Side, Turns
from tasks.gates.proportions import compare_paired_answers, compare_with_floor
from tasks.load.metrics import MetricName
from tasks.load.outcome import Outcome
from tasks.load.percentiles import needed, percentile_name, percentile_of
from tasks.models.gate_specs.performance import PerformanceSpec
from tasks.targets.gate_record import Comparison, Evidence, Figure, Histogram

_RELATIVE: tuple[MetricName, ...] = ("time_to_first_token", "inter_token_latency")
"""What is compared with the live release. The latency of a whole answer is made of both, and of its length."""
_SHOWN = (50.0, 95.0, 99.0)
_BINS = 40
"""Of a histogram; each is wider than the one before by the same factor, as latencies spread."""
_LEAST_MS = 0.001


def evidence_of(asked: PerformanceSpec, turns: Turns, alpha: float, *, live: bool) -> Evidence:
    """With `live`, both releases were asked."""
    if (why := turns.unanswered.get("candidate")) is not None:
        return Evidence(failures=(why,))
    if (why := turns.unanswered.get("live")) is not None:
        return Evidence(gaps=(f"the live release: {why}",))
    if not turns.asked:
        return Evidence(gaps=(turns.cut or "nothing was asked",))
    late = turns.lateness.percentile(99) * 1000
    on_time = late <= asked.most_lateness_ms
    comparisons = tuple(_comparisons(asked, turns, alpha, live=live)) if on_time else ()
    gaps: list[str] = [turns.cut] if turns.cut and not _hopeless(turns) else []
    if not on_time:
        gaps.append(f"the load itself was {late:.0f} ms late, and {asked.most_lateness_ms:g} ms are allowed")
    elif live and not any(each.measure in _RELATIVE for each in comparisons):
        gaps.append(f"fewer than {FEWEST_ROUNDS} rounds have answers of both releases")
    return Evidence(
        comparisons=comparisons,
        failures=(_failed(turns),) if _hopeless(turns) else (),
        gaps=tuple(gaps),
        figures=tuple(_figures(asked, turns, live=live)),
        histograms=tuple(_histograms(turns, live=live)),
        notes=(*_notes(turns, live=live), f"the load was {late:.2f} ms late at its 99th percentile"),
    )


def milliseconds(outcome: Outcome, metric: MetricName) -> float | None:
    """A metric of one request; None where it has none."""
    if outcome.failure is not None or outcome.first is None:
        return None
    match metric:
        case "time_to_first_token":
            return (outcome.first - outcome.intended) * 1000
        case "request_latency":
            return (outcome.ended - outcome.intended) * 1000
        case "inter_token_latency":
            tokens = outcome.output_tokens or 0
            return (outcome.ended - outcome.first) * 1000 / (tokens - 1) if tokens > 1 else None
        case _:
            raise ValueError(f"{metric} is not a time of one request")


def log_ratio(each: Asked, metric: MetricName) -> float | None:
    """The natural logarithm of candidate / live, of a prompt that both have answered."""
    ours, theirs = (milliseconds(each.outcomes[side], metric) for side in ("candidate", "live"))
    return None if not ours or not theirs else math.log(ours / theirs)


def _comparisons(asked: PerformanceSpec, turns: Turns, alpha: float, *, live: bool) -> Iterator[Comparison]:
    answered = [each.outcomes["candidate"].failure is None for each in turns.asked]
    if live:
        beside = [each.outcomes["live"].failure is None for each in turns.asked]
        yield compare_paired_answers("requests answered", answered, beside, margin=asked.errors, alpha=alpha)
        for metric in _RELATIVE:
            rounds = [each for each in _ratios(turns.asked, metric) if each]
            if len(rounds) >= FEWEST_ROUNDS:
                yield compare_ratios(metric, rounds, margin=asked.margin, alpha=alpha, seed=asked.seed)
    else:
        yield compare_with_floor("requests answered", sum(answered), len(answered), 1 - asked.errors, alpha=alpha)
    for metric, limit in asked.limits:
        values = [milliseconds(each.outcomes["candidate"], metric) for each in turns.asked]
        # An answer of one token has no time between tokens, and keeps every limit of it. One that failed keeps none.
        within = [ok and (value is None or value <= limit) for ok, value in zip(answered, values, strict=True)]
        measure = f"{metric} within {limit:g} ms"
        yield compare_with_floor(measure, sum(within), len(within), asked.percentile / 100, alpha=alpha)


def _ratios(asked: Sequence[Asked], metric: MetricName) -> Iterator[list[float]]:
    for number in sorted({each.round for each in asked}):
        found = (log_ratio(each, metric) for each in asked if each.round == number)
        yield [ratio for ratio in found if ratio is not None]


def _hopeless(turns: Turns) -> bool:
    """Most requests of the candidate fail, and not most of the live release."""
    failed, most = len(turns.failed("candidate")), len(turns.asked) / 2
    both = "live" in turns.asked[0].outcomes
    return failed > most and not (both and len(turns.failed("live")) > most)


def _failed(turns: Turns) -> str:
    failed = turns.failed("candidate")
    kind, count = Counter(each.failure for each in failed).most_common(1)[0]
    message = next(each.message for each in failed if each.failure == kind)
    return f"{len(failed)} of {len(turns.asked)} requests failed, {count} of them {kind}: {message}"


def _figures(asked: PerformanceSpec, turns: Turns, *, live: bool) -> Iterator[Figure]:
    for metric in (*_RELATIVE, "request_latency"):
        ours, theirs = (_values(turns, side, metric) if side == "candidate" or live else [] for side in _SIDES)
        for which in _SHOWN:
            if len(ours) >= needed(which):
                beside = percentile_of(theirs, which) if len(theirs) >= needed(which) else None
                name = f"{metric} {percentile_name(which)}"
                yield Figure(name=name, unit="ms", candidate=percentile_of(ours, which), live=beside)
    sides = _SIDES if live else _SIDES[:1]
    yield _rate("request_throughput", "requests/s", turns, {side: _answered(turns, side) for side in sides})
    if all(_tokens(turns, side) for side in sides):
        yield _rate("output_token_throughput", "tokens/s", turns, {side: _tokens(turns, side) for side in sides})
    if asked.limits:
        yield _rate("goodput", "requests/s", turns, {side: _good(asked, turns, side) for side in sides})
    if live:
        yield from _by_stratum(turns.asked)


_SIDES: tuple[Side, Side] = ("candidate", "live")


def _histograms(turns: Turns, *, live: bool) -> Iterator[Histogram]:
    for metric in (*_RELATIVE, "request_latency"):
        ours, theirs = (_values(turns, side, metric) if side == "candidate" or live else [] for side in _SIDES)
        if ours:
            least, most = max(min(ours + theirs), _LEAST_MS), max(ours + theirs)
            edges = np.geomspace(least, max(most, 1.01 * least), _BINS + 1)
            yield Histogram(
                measure=metric,
                edges=tuple(float(f"{edge:.6g}") for edge in edges),
                candidate=_counts(ours, edges),
                live=_counts(theirs, edges) if theirs else (),
            )


def _counts(values: Sequence[float], edges: npt.NDArray[np.float64]) -> tuple[int, ...]:
    # Rounding may have put the least and the most just outside.
    return tuple(int(count) for count in np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0])


def _rate(name: str, unit: str, turns: Turns, counts: Mapping[Side, float]) -> Figure:
    """So many in the seconds in which each side had its turns."""
    rates = {side: count / turns.seconds[side] for side, count in counts.items()}
    return Figure(name=name, unit=unit, candidate=rates["candidate"], live=rates.get("live"))


def _by_stratum(asked: Sequence[Asked]) -> Iterator[Figure]:
    strata = sorted({each.item.stratum for each in asked})
    for stratum in strata if len(strata) > 1 else ():
        for metric in _RELATIVE:
            found = [log_ratio(each, metric) for each in asked if each.item.stratum == stratum]
            known = [ratio for ratio in found if ratio is not None]
            if known:
                ratio = math.exp(math.fsum(known) / len(known))
                yield Figure(name=f"{metric} of {stratum}, as a share of live", candidate=ratio, live=1.0)


def _values(turns: Turns, side: Side, metric: MetricName) -> list[float]:
    found = (milliseconds(each.outcomes[side], metric) for each in turns.asked)
    return [value for value in found if value is not None]


def _answered(turns: Turns, side: Side) -> float:
    return len(turns.asked) - len(turns.failed(side))


def _tokens(turns: Turns, side: Side) -> float:
    outcomes = (each.outcomes[side] for each in turns.asked)
    return sum(each.output_tokens or 0 for each in outcomes if each.failure is None)


def _good(asked: PerformanceSpec, turns: Turns, side: Side) -> float:
    return sum(
        each.outcomes[side].failure is None
        and all((milliseconds(each.outcomes[side], metric) or 0) <= limit for metric, limit in asked.limits)
        for each in turns.asked
    )


def _notes(turns: Turns, *, live: bool) -> Iterator[str]:
    """What people should know who read the comparisons."""
    if live and not any(_tokens(turns, side) for side in _SIDES):
        yield "the releases count no tokens, so the time between tokens is not compared"
    for side in _SIDES if live else _SIDES[:1]:
        if failed := turns.failed(side):
            kinds = Counter(each.failure for each in failed)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            yield f"{side}: {told}; the first: {failed[0].message}"
