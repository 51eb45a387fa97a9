"""A gate that Enginehouse does not have: it finds what a model's file tells it to find."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.gates.choice import GATES, made_of
from tasks.gates.protocol import Trial
from tasks.models.gate_specs.base import GateSpec
from tasks.models.gates import GATE_SPECS
from tasks.targets.gate_record import Comparison, Evidence, VerdictState

_P_VALUES: dict[VerdictState, tuple[float, float]] = {
    "passed": (0.9, 0.01),
    "refused": (0.001, 1.0),
    "undecided": (0.3, 0.4),
}
"""`p_worse` and `p_fine`."""


class ToldSpec(GateSpec):
    """What it is to find."""

    gate: Literal["told"] = "told"
    finds: VerdictState


class ToldGate:
    compares: ClassVar[bool] = True

    def __init__(self, asked: ToldSpec) -> None:
        self._asked = asked

    def run(self, trial: Trial) -> Evidence:
        p_worse, p_fine = _P_VALUES[self._asked.finds]
        comparison = Comparison(
            measure="obedience",
            candidate=0.8,
            other=0.9,
            difference=-0.1,
            lower=-0.2,
            upper=0.0,
            margin=0.1,
            p_worse=p_worse,
            p_fine=p_fine,
            samples=50,
        )
        return Evidence(comparisons=(comparison,))


def register() -> None:
    GATE_SPECS["told"] = ToldSpec
    GATES["told"] = made_of(ToldSpec, ToldGate)
