"""How long the steps of a rebuild are expected to take: by earlier ones of the model, or by prior figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tasks.explain.planned_steps import PlannedStep, StepName
from tasks.store.artifact import Manifest

_PRIOR: Mapping[StepName, tuple[float, float]] = {
    "fetch": (2.0, 50e6),
    "export": (60.0, 100e6),
    "convert": (10.0, 200e6),
    "build": (30.0, 100e6),
    "assemble": (2.0, 0.0),
}
"""Seconds of a step by themselves, and the bytes of weights of each further second: orders of magnitude for discs and
networks of a data centre, measured nowhere. The first build of a model takes their place."""
_PRIOR_FACTOR = 4.0
_ONE_FACTOR = 1.5
"""What a single earlier run may be off by: another machine, another load."""


@dataclass(frozen=True)
class Expected:
    """Seconds, and the range in which they are likely to be. `runs` is how many earlier ones say so; 0 for a prior."""

    seconds: float
    low: float
    high: float
    runs: int

    def __add__(self, other: Expected) -> Expected:
        return Expected(
            self.seconds + other.seconds, self.low + other.low, self.high + other.high, min(self.runs, other.runs)
        )


def seconds_before(releases: Iterable[Mapping[StepName, Manifest]]) -> dict[StepName, list[float]]:
    """What the steps of earlier releases took, each artifact once. Older manifests do not say it."""
    known = {
        (manifest.kind, manifest.attempt): (step, manifest)
        for release in releases
        for step, manifest in release.items()
    }
    found: dict[StepName, list[float]] = {}
    for step, manifest in known.values():
        if manifest.producer.seconds > 0:
            found.setdefault(step, []).append(manifest.producer.seconds)
    return found


def expected(step: StepName, before: Sequence[float], weight_bytes: int | None) -> Expected | None:
    """What a step is expected to take; None if nothing is known of it. `weight_bytes` are those of the source."""
    if len(before) == 1:
        return Expected(before[0], before[0] / _ONE_FACTOR, before[0] * _ONE_FACTOR, 1)
    if before:
        return Expected(median(before), min(before), max(before), len(before))
    fixed, rate = _PRIOR[step]
    if rate and weight_bytes is None:
        return None
    seconds = fixed + ((weight_bytes or 0) / rate if rate else 0.0)
    return Expected(seconds, seconds / _PRIOR_FACTOR, seconds * _PRIOR_FACTOR, 0)


@dataclass(frozen=True)
class Forecast:
    """The time of the steps that are to be made, one for each; None for a step of which nothing is known.

    `gpu_seconds` are those of the GPUs that convert and build, taken together. Rollout and gates are not part of it.
    """

    steps: tuple[Expected | None, ...]
    total: Expected
    whole: bool
    """Whether something is known of every step."""
    gpu_seconds: Expected | None = None


_NOTHING = Expected(0.0, 0.0, 0.0, 1 << 30)


def forecast(
    steps: Sequence[PlannedStep], before: Mapping[StepName, Sequence[float]], weight_bytes: int | None, gpus: int
) -> Forecast:
    """`gpus` are those of the machine that builds."""
    found = tuple(
        expected(each.step, before.get(each.step, ()), weight_bytes) if each.state == "to make" else _NOTHING
        for each in steps
    )
    built = [
        each
        for each, step in zip(found, steps, strict=True)
        if each is not None and step.step in ("convert", "build") and step.state == "to make"
    ]
    busy = sum(built, _NOTHING)
    on_gpus = Expected(busy.seconds * gpus, busy.low * gpus, busy.high * gpus, busy.runs) if built and gpus else None
    return Forecast(found, sum((each for each in found if each is not None), _NOTHING), None not in found, on_gpus)
