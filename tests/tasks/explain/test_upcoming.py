"""What the next rebuild would change: fields, and the artifacts that come out new, against what is live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.cli.diff_text import diff_lines
from deployments.cli.main import main
from infra.s3.bucket import Bucket
from tasks.explain.upcoming import Upcoming, upcoming
from tasks.models.spec import Model
from tasks.sources.resolved import NO_ACCESS
from tasks.steps.resolve import resolve_weights
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.release import Intent
from tasks.targets.target import Target
from tests.small_release import FILE


class House:
    """A store in which release 1 of a small model is live on target `test`, by identities as a rebuild has them."""

    def __init__(self, bucket: Bucket, folder: Path, gguf: bytes) -> None:
        self.target, self.weights = Target(bucket, "test"), folder / "small.gguf"
        self.weights.write_bytes(gguf)
        model = self.model()
        plan, store = resolve_weights(model).plan(model), ArtifactStore(bucket)
        files = folder / "files"
        files.mkdir()
        (files / "data.bin").write_bytes(bytes(3000))
        producer, below = Producer(task="test", code="test"), {}
        made = (
            ("snapshot", next(iter(plan.snapshots.values())), plan.snapshot),
            ("checkpoint", plan.checkpoint_ref, plan.checkpoint),
            ("engine", plan.engine_ref, plan.engine),
            ("repository", plan.repository_ref, plan.repository),
        )
        for role, ref, identity in made:
            store.publish(ref, identity, files, inputs=below, producer=producer)
            below = {role: ref}
        recipe, serving = (part.model_dump(mode="json") for part in (model.recipe, model.serving))
        self.target.reserve(
            model.name,
            lambda number: Intent(
                model=model.name,
                release=number,
                repository=str(plan.repository_ref),
                digest="d",
                recipe=recipe,
                serving=serving,
                source=model.origin,
                flow_run="",
            ),
        )
        self.target.move(model.name, lambda current: current.promoted(1))

    def document(self, **changes: Any) -> dict[str, Any]:
        """The model's file; changes of sections are merged into them."""
        document = yaml.safe_load(FILE.read_text())
        document["source"] = {"uri": f"file://{self.weights}"}
        for section, change in changes.items():
            document[section] = {**document.get(section, {}), **change}
        return document

    def model(self, **changes: Any) -> Model:
        return Model.model_validate(self.document(**changes))

    def upcoming(self, target: str = "test", **changes: Any) -> Upcoming:
        return upcoming(Target(self.target.bucket, target), self.model(**changes), NO_ACCESS)


@pytest.fixture
def house(bucket: Bucket, tmp_path: Path, gguf: bytes) -> House:
    return House(bucket, tmp_path, gguf)


def states(found: Upcoming) -> dict[str, str]:
    return {part.kind: part.state for part in found.parts}


def test_nothing_changes_while_nothing_was_changed(house: House) -> None:
    found = house.upcoming()
    assert not found.is_new and found.fields == () and {*states(found).values()} == {"same"}
    assert next(diff_lines(found)) == "smollm2-135m on 'test': the next rebuild changes nothing of release 1"
    assert all("2.9 KiB  the same" in line for line in [*diff_lines(found)][1:])


def test_each_field_is_told_with_the_artifacts_that_come_out_new(house: House) -> None:
    found = house.upcoming(serving={"slots": 4})
    assert found.is_new and [str(change) for change in found.fields] == ["serving.slots: 8 → 4"]
    assert states(found) == dict.fromkeys(("snapshot", "checkpoint", "engine"), "same") | {"repository": "to make"}
    assert [*diff_lines(found)][-1].endswith("to make: serving settings: slots 8 → 4")

    found = house.upcoming(recipe={"quantization": "q4_0"})
    assert [str(change) for change in found.fields] == ['quantization: "q8_0" → "q4_0"']
    assert states(found) == {"snapshot": "same", "checkpoint": "same", "engine": "to make", "repository": "to make"}
    engine, repository = [*diff_lines(found)][-2:]
    assert "to make: recipe: quantization q8_0 → q4_0" in engine
    assert repository.endswith("to make: because of what it is made from")


def test_weights_that_moved_are_found_by_asking_the_source(house: House) -> None:
    house.weights.write_bytes(house.weights.read_bytes() + b"more")
    found = house.upcoming()
    assert found.is_new and found.fields == () and {*states(found).values()} == {"to make"}
    assert "weights" in [*diff_lines(found)][1]


def test_another_alias_makes_a_release_of_the_same_bytes(house: House) -> None:
    found = house.upcoming(serving={"aliases": ["ensemble"]})
    assert found.is_new and {*states(found).values()} == {"same"}
    assert [change.field for change in found.fields] == ["serving.aliases"]


def test_where_none_is_live_what_the_store_has_is_told(house: House) -> None:
    found = house.upcoming(target="elsewhere")
    assert found.live is None and found.is_new and {*states(found).values()} == {"in the store"}
    assert "no release is live" in next(diff_lines(found))


def test_the_command_prints_both_forms(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bucket = house.target.bucket
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{bucket.name}/{bucket.prefix}")
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(tmp_path))
    monkeypatch.setenv("ENGINEHOUSE_TARGET", "test")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "smollm2-135m.yaml").write_text(yaml.safe_dump(house.document(serving={"slots": 4})))
    assert main(["diff", "smollm2-135m"]) == 0
    assert "  serving.slots: 8 → 4\n" in capsys.readouterr().out
    assert main(["diff", "smollm2-135m", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["live"], told["makes_release"], told["fields"][0]["new"]) == (1, True, 4)
    assert [each["state"] for each in told["artifacts"]] == ["same", "same", "same", "to make"]
    assert main(["diff", "nothing"]) == 2
    assert "[model-missing]" in capsys.readouterr().err
