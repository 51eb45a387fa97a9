"""The section `gates` of a model's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import ValidationError

from infra.errors import SpecError
from tasks.models.catalogue import json_schema, load_model
from tasks.models.gate_specs.base import GateSpec
from tasks.models.gates import GATE_SPECS, Gates, kind_of
from tasks.models.spec import Model

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"


class DuelSpec(GateSpec):
    gate: Literal["duel"] = "duel"
    margin: float = 0.01
    rounds: int = 8


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GATE_SPECS, "duel", DuelSpec)


def document(gates: Any) -> dict[str, Any]:
    known = yaml.safe_load((CATALOGUE / "smollm2-135m.yaml").read_text())
    return {**known, "name": "tiny", "gates": gates}


def test_one_line_asks_for_a_gate() -> None:
    model = Model.model_validate(document(yaml.safe_load("duel:")))
    assert model.gates is not None and model.gates.asked == {"duel": DuelSpec()}
    assert (model.gates.alpha, model.gates.undecided) == (0.05, "ask")
    assert Model.model_validate(document(None)).gates is None


def test_names_of_ones_own_and_the_way_through_json() -> None:
    asked = {"undecided": "refuse", "far": {"gate": "duel", "margin": 0.1}, "near": {"gate": "duel"}}
    model = Model.model_validate(document(asked))
    assert model.gates is not None and [*model.gates.asked] == ["far", "near"]
    assert {kind_of(each) for each in model.gates.asked.values()} == {"duel"}
    assert Model.model_validate_json(model.model_dump_json(by_alias=True)) == model
    assert model != Model.model_validate(document({"undecided": "refuse"}))
    hash(model)


@pytest.mark.parametrize(
    ("gates", "place", "words"),
    [
        ({"duell": None}, "duell", "there is no gate 'duell'; the nearest is duel"),
        ({"alhpa": 0.1}, "alhpa", "there is no gate 'alhpa'; the nearest is alpha"),
        ({"mine": {"gate": "dual"}}, "mine", "there is no gate 'dual'; the nearest is duel"),
        ({"duel": 3}, "duel", "is a table of what the gate is asked for"),
        ({"duel": {"rounds": "many"}}, "duel.rounds", "valid integer"),
        ({"smoke": {}}, "smoke", "is always there"),
        ({"My Gate": {"gate": "duel"}}, "My Gate", "lowercase letters"),
        ({1: None}, "1", "there is no gate '1'"),
        ({"undecided": "wait"}, "undecided", "'ask', 'refuse' or 'promote'"),
        ({"alpha": 0.5}, "alpha", "less than or equal to 0.2"),
    ],
)
def test_mistakes_name_their_place_and_the_nearest(gates: Any, place: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Gates.model_validate(gates)
    (mistake,) = caught.value.errors()
    assert ".".join(map(str, mistake["loc"])) == place and words in mistake["msg"]


def test_a_mistake_has_its_line(tmp_path: Path) -> None:
    text = yaml.safe_dump(document({"duel": {"margn": 1}}), sort_keys=False)
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    line = text.splitlines().index("    margn: 1") + 1
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert f"tiny.yaml:{line}: gates.duel.margn: is no field here: did you mean 'margin'?" in caught.value.message


def test_editors_know_the_gates() -> None:
    section: Any = json_schema()["$defs"]
    assert {"alpha", "undecided"} <= set(section["Gates"]["properties"])
    assert section["DuelSpec"]["properties"].keys() == {"gate", "margin", "rounds"}
