"""Records of the store say where files go on a node's disk, so each is checked before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from infra.errors import ArtifactDamaged
from tasks.store.artifact import ArtifactRef, Manifest, recorded
from tasks.store.verify import bring
from tests.recording_node import running_node
from tests.waiting import wait

if TYPE_CHECKING:
    from tests.fleet import Fleet

NO_SEGMENTS = ["", ".", "..", "/etc", "a/b", "../x", ".hidden", "a\\b", "a\0b", "a\n", "a" * 300]


def altered(fleet: Fleet, key: str, **changes: Any) -> bytes:
    """The record at `key`, with other values."""
    stored = fleet.store.bucket.get(key)
    assert stored is not None
    return json.dumps({**json.loads(stored.body), **changes}).encode()


@pytest.mark.parametrize("attempt", NO_SEGMENTS)
def test_an_attempt_is_one_folder(fleet: Fleet, tmp_path: Path, attempt: str) -> None:
    engine, kept = fleet.rebuild().engine, tmp_path / "kept"
    kept.mkdir()
    key = engine.folder + "manifest.json"
    fleet.store.bucket.put(key, altered(fleet, key, attempt=attempt, files=[]))
    with pytest.raises(ArtifactDamaged):
        bring(fleet.store, engine, tmp_path / "artifacts")
    fleet.store.bucket.put(key, altered(fleet, key, attempt=str(kept)))
    with pytest.raises(ArtifactDamaged) as caught:
        bring(fleet.store, engine, tmp_path / "artifacts")
    assert not caught.value.retryable and sorted(path.name for path in tmp_path.iterdir()) == ["fleet", "kept"]


@pytest.mark.parametrize("reference", ["", "engine", "engine/m", "../m/" + "0" * 64, "engine/../" + "0" * 64])
def test_a_reference_is_a_kind_a_model_and_an_identity(fleet: Fleet, reference: str) -> None:
    with pytest.raises(ArtifactDamaged) as caught:
        recorded(reference)
    assert caught.value.code == "record-invalid"
    ref = fleet.rebuild().repository
    with pytest.raises(ValidationError):
        Manifest.model_validate_json(altered(fleet, ref.folder + "manifest.json", inputs={"engine": reference}))


@pytest.mark.parametrize("identity", ["..", "ab", "A" * 64, "0" * 63, "0" * 65])
def test_an_identity_is_whole(identity: str) -> None:
    with pytest.raises(ValueError):
        ArtifactRef.parse(f"engine/tiny/{identity}")


@pytest.mark.parametrize(
    "changes", [{"model": "other"}, {"release": 2}, {"repository": f"repository/tiny/../../{'0' * 64}"}]
)
def test_a_node_places_nothing_by_the_record_of_another_release(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    fleet.release(fleet.rebuild())
    fleet.release(fleet.rebuild("other"))
    key = "targets/test/tiny/1/intent.json"
    fleet.store.bucket.put(key, altered(fleet, key, **changes))
    with running_node(fleet, tmp_path / "node", monkeypatch) as triton:

        def error() -> str:
            reports = [node.models["tiny"] for node in fleet.target.nodes() if "tiny" in node.models]
            return reports[0].releases[1].error if reports and 1 in reports[0].releases else ""

        wait(lambda: error() != "", "error")
        assert "[record-invalid]" in error()
    assert not any(name.startswith("tiny") for name in triton.loads)
