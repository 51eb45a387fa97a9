"""The gates, and the gate of what a model's file asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tasks.gates.agreement.gate import AgreementGate
from tasks.gates.command.gate import CommandGate
from tasks.gates.performance.gate import PerformanceGate
from tasks.gates.protocol import Gate
from tasks.gates.quality.gate import QualityGate
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.gate_specs.base import GateSpec
from tasks.models.gate_specs.command import CommandSpec
from tasks.models.gate_specs.performance import PerformanceSpec
from tasks.models.gate_specs.quality import QualitySpec
from tasks.models.gates import kind_of

SpecT = TypeVar("SpecT", bound=GateSpec)


def made_of(spec: type[SpecT], make: Callable[[SpecT], Gate]) -> Callable[[GateSpec], Gate]:
    """What makes the gate of a spec, which is one of this class: GATES and GATE_SPECS have the same names."""

    def gate(asked: GateSpec) -> Gate:
        assert isinstance(asked, spec)
        return make(asked)

    return gate


GATES: dict[str, Callable[[GateSpec], Gate]] = {
    "agreement": made_of(AgreementSpec, AgreementGate),
    "quality": made_of(QualitySpec, QualityGate),
    "performance": made_of(PerformanceSpec, PerformanceGate),
    "command": made_of(CommandSpec, CommandGate),
}
"""What makes each gate, by the name of its kind."""


def gate_of(asked: GateSpec) -> Gate:
    """The gate that a model's file asks for."""
    return GATES[kind_of(asked)](asked)
