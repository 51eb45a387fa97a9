"""The section `approval` of a model's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tasks.models.spec import Model

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"


def model(**sections: Any) -> Model:
    return Model.model_validate(yaml.safe_load((CATALOGUE / "smollm2-135m.yaml").read_text()) | sections)


def test_a_file_without_it_asks_nobody() -> None:
    assert not model().approval.asks and not model(approval={"when": "never"}).approval.asks
    asking = model(approval={"when": "always"}).approval
    assert asking.asks and asking.timeout_hours == 24


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"approval": None}, "approval"),  # a line without a value is no wish to be asked nothing
        ({"approval": {}}, "approval.when"),
        ({"approval": {"when": "sometimes"}}, "approval.when"),
        ({"approval": {"when": "always", "timeout_hours": 0}}, "approval.timeout_hours"),
        ({"approval": {"when": "always", "timeout": 1}}, "approval.timeout"),
        ({"approval": {"when": "undecided"}}, "approval"),
        ({"approval": {"when": "undecided"}, "gates": {"undecided": "promote"}}, "approval"),
    ],
)
def test_what_asks_nobody_or_for_no_time_is_refused(sections: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**sections)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [place]


def test_a_person_may_decide_what_gates_cannot() -> None:
    assert model(approval={"when": "undecided"}, gates={"agreement": None}).approval.asks
