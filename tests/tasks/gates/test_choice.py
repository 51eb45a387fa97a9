"""Each gate that a model's file may ask for is there."""

from __future__ import annotations

from tasks.gates.agreement.gate import AgreementGate
from tasks.gates.choice import GATES, gate_of
from tasks.gates.command.gate import CommandGate
from tasks.gates.quality.gate import QualityGate
from tasks.models.gates import GATE_SPECS, Gates


def test_gates_and_what_they_are_asked_for_have_the_same_names() -> None:
    assert GATES.keys() == GATE_SPECS.keys()


def test_a_models_file_gets_the_gates_that_it_asks_for() -> None:
    gates = Gates.model_validate({"agreement": None, "quality": {}, "ours": {"gate": "command", "command": ["true"]}})
    made = [type(gate_of(asked)) for asked in gates.asked.values()]
    assert made == [AgreementGate, QualityGate, CommandGate]
