"""What gates have measured of a release, as `enginehouse releases --json` lists it."""

from __future__ import annotations

from typing import Any

from tasks.targets.gate_record import Comparison, GateRecord, Verdict


def judged(release: dict[str, Any], gate: str) -> tuple[GateRecord, Verdict]:
    """What a gate measured of a release, and what came of it."""
    record = next(each for each in release["gates"] if each["gate"] == gate)
    verdict = next(each for each in release["result"]["gates"] if each["gate"] == gate)
    return GateRecord.model_validate(record), Verdict.model_validate(verdict)


def told(comparison: Comparison) -> str:
    """What decides, in a few words."""
    bound = "none" if comparison.lower is None else f"{comparison.lower:+.3f}"
    return f"{comparison.measure} {comparison.difference:+.3f}, lower bound {bound}, margin {comparison.margin:g}"
