"""What a model's file may ask of the gates of agreement, quality and a command."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.gate_specs.command import CommandSpec
from tasks.models.gate_specs.quality import QualitySpec
from tasks.models.gates import Gates
from tests.tasks.models.mistakes import mistakes


def asked(name: str, **fields: Any) -> Any:
    return Gates.model_validate({name: fields}).asked[name]


def test_one_line_asks_for_agreement() -> None:
    gate = Gates.model_validate({"agreement": None}).asked["agreement"]
    assert isinstance(gate, AgreementSpec) and gate.passages is None and gate.margin == 0.05


def test_sets_are_files_or_objects_and_may_be_pinned() -> None:
    gate = asked("quality", questions={"uri": "s3://bucket/folder/set.jsonl", "sha256": "a" * 64}, floor=0.3)
    assert isinstance(gate, QualitySpec) and gate.questions is not None
    assert gate.questions.uri == "s3://bucket/folder/set.jsonl"
    assert asked("agreement", passages={"uri": "file:///a/b.txt"}).passages is not None


def test_a_command_has_any_name() -> None:
    gate = asked("ours", gate="command", command=["python", "x.py"], metrics={"speed": {"floor": 3, "better": "more"}})
    assert isinstance(gate, CommandSpec) and gate.command == ("python", "x.py")
    assert hash(gate) == hash(CommandSpec.model_validate(gate.model_dump()))


@pytest.mark.parametrize(
    ("name", "fields", "where"),
    [
        ("agreement", {"margin": 0}, "agreement.margin"),
        ("agreement", {"positions": 0}, "agreement.positions"),
        ("agreement", {"passages": "file:///a"}, "agreement.passages"),
        ("agreement", {"passages": {"uri": "http://host/a"}}, "agreement.passages.uri"),
        ("agreement", {"passages": {"uri": "file://a"}}, "agreement.passages.uri"),
        ("agreement", {"passages": {"uri": "s3://bucket"}}, "agreement.passages.uri"),
        ("agreement", {"passages": {"uri": "s3://bucket/folder/"}}, "agreement.passages.uri"),
        ("quality", {"questions": {"uri": "file:///a", "sha256": "a"}}, "quality.questions.sha256"),
        ("quality", {"scorer": "regex"}, "quality.scorer"),
        ("quality", {"floor": 1}, "quality.floor"),
        ("quality", {"concurrency": 0}, "quality.concurrency"),
        ("command", {}, "command.command"),
        ("command", {"command": "python x.py"}, "command.command"),
        ("command", {"command": []}, "command.command"),
        ("command", {"command": ["a"], "timeout_s": 0}, "command.timeout_s"),
        ("command", {"command": ["a"], "metrics": {"speed": {}}}, "command.metrics.speed"),
        ("command", {"command": ["a"], "metrics": {"speed": {"margin": -1}}}, "command.metrics.speed.margin"),
        ("quality", {"question": {}}, "quality.question"),
    ],
)
def test_what_cannot_be_asked_is_named(name: str, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Gates.model_validate({name: fields})
    assert [*mistakes(caught.value)] == [where]
