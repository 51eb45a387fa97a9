"""Models that an earlier version let be called like a release, or like a record: they stop nobody but themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import UsageError
from tasks.garbage.collect import survey
from tasks.steps.promote import roll_back
from tasks.store.names import collision
from tasks.store.record import record_bytes
from tasks.targets.current import Current
from tasks.targets.node_report import ModelReport
from tasks.targets.release import Result
from tests.recording_node import RecordingTriton, running_node
from tests.waiting import wait

if TYPE_CHECKING:
    from tests.fleet import Fleet


def released_before(fleet: Fleet, model: str) -> None:
    """Release 1 of a model as it was made before its name was refused."""
    number = fleet.release(fleet.rebuild(model), public=False)
    fleet.target.conclude(model, Result(release=number, state="passed"))
    fleet.store.bucket.put(f"targets/test/{model}/current.json", record_bytes(Current(public=number)))


def reported(fleet: Fleet, model: str) -> ModelReport | None:
    return next((node.models.get(model) for node in fleet.target.nodes()), None)


@pytest.mark.parametrize("name", ["tiny", "tiny-r1", "tiny.2", "m-nodes", "0" * 63])
def test_names_that_are_no_other_things(name: str) -> None:
    assert collision(name) == ""


@pytest.mark.parametrize("name", ["nodes", "tiny--r1", "tiny--r1--llm"])
def test_a_model_of_such_a_name_is_not_served_and_the_node_says_why(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    released_before(fleet, name)
    with running_node(fleet, tmp_path / "node", monkeypatch) as triton:
        assert isinstance(triton, RecordingTriton)
        wait(lambda: reported(fleet, name) is not None, "report")
        report = reported(fleet, name)
    assert report is not None and (report.public, report.releases, report.error) == (None, {}, collision(name))
    assert triton.loads == []
    with pytest.raises(UsageError) as caught:
        roll_back(fleet.target, name, 1)
    assert caught.value.code == "model-name"


def test_a_model_called_nodes_stops_no_other(fleet: Fleet) -> None:
    released_before(fleet, "nodes")
    made = fleet.rebuild("tiny", commit="b" * 40)
    fleet.release(made)
    assert fleet.target.nodes() == []
    assert fleet.target.view("tiny").live == fleet.target.intent("tiny", 1)
    kept = survey(fleet.store.bucket, 0).kept
    assert kept[made.engine].startswith("release test/tiny@1 is live")
    assert "release test/nodes@1 is live" in kept.values()  # its files are no garbage before people have decided
