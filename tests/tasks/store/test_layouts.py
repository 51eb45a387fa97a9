"""Artifacts by identity alone: models share what is equal, and what lies in the layout of before goes on being used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from infra.errors import SignatureRefused
from infra.s3.bucket import Bucket
from tasks.explain.lineage import lineage
from tasks.explain.why import why
from tasks.garbage.collect import collect, survey
from tasks.garbage.keep import pin, unpin
from tasks.store.artifact import ArtifactRef, signature_key
from tasks.store.artifact_store import ArtifactStore
from tasks.store.inventory import everything, identity_in
from tasks.store.notes import has_fetched, note_model
from tasks.store.signing import artifact_statement, require_signed_artifact, signer
from tasks.store.verify import bring, problems_in_store
from tasks.targets.references import ReleaseRef, find
from tasks.targets.verification import sign, verify
from tests.fleet import Made
from tests.layout_before import layout_before

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fleet import Fleet


def refs(made: Made) -> tuple[ArtifactRef, ...]:
    return made.snapshot, made.checkpoint, made.engine, made.repository


def keys(bucket: Bucket, kind: str) -> list[str]:
    return [entry.key for entry in bucket.list(f"artifacts/{kind}/") if entry.key.endswith("/manifest.json")]


def before(fleet: Fleet, model: str) -> Made:
    """A rebuild of an earlier version."""
    made = replace(fleet, store=ArtifactStore(fleet.store.bucket)).rebuild(model)
    snapshot, checkpoint, engine, repository = (layout_before(fleet.store, ref, model) for ref in refs(made))
    return Made(snapshot, checkpoint, engine, repository, model)


def test_a_reference_names_an_artifact_wherever_it_lies() -> None:
    one, other = ArtifactRef("engine", "0" * 64), ArtifactRef("engine", "0" * 64, "tiny")
    assert one == other and hash(one) == hash(other) and str(one) != str(other)
    assert [str(ArtifactRef.parse(str(ref))) for ref in (one, other)] == [str(one), str(other)]
    assert one.folder == f"artifacts/engine/{'0' * 64}/" and other.folder == f"artifacts/engine/tiny/{'0' * 64}/"
    assert {identity_in(f"{ref.folder}attempt/file") for ref in (one, other)} == {"0" * 64}
    assert one != ArtifactRef("engine", "1" * 64) and one != ArtifactRef("checkpoint", "0" * 64)


def test_a_dozen_adapters_share_their_base_and_a_renamed_model_shares_everything(fleet: Fleet) -> None:
    tuned = [fleet.rebuild(f"tuned-{number}", adapter=f"{number:040x}") for number in range(12)]
    assert len({made.snapshot for made in tuned}) == 1 and len({made.engine for made in tuned}) == 12
    bucket = fleet.store.bucket
    assert len(keys(bucket, "snapshot")) == 1 + 12  # the base once, and each adapter
    stored = {(entry.key, entry.etag) for entry in bucket.list("artifacts/")}
    renamed = fleet.rebuild("renamed", adapter=f"{3:040x}")
    assert refs(renamed) == refs(tuned[3]) and stored == {(e.key, e.etag) for e in bucket.list("artifacts/")}


def test_what_several_models_use_stays_as_long_as_one_does(fleet: Fleet) -> None:
    bucket, one = fleet.store.bucket, fleet.rebuild("one")
    other = fleet.rebuild("other")
    fleet.release(one)
    fleet.release(other)
    found = lineage(bucket, one.engine)
    assert {"test/one@1", "test/other@1", "test/one", "test/other"} <= found.entities.keys()
    assert set(lineage(bucket, ReleaseRef("test", "one", 1)).entities) == {
        *map(str, refs(one)),
        "test/one@1",
        "test/one",
        *(name for name in found.entities if name.startswith("hf ")),
    }
    # The one goes on to other weights, the other stays.
    for commit in ("b" * 40, "c" * 40):
        fleet.release(fleet.rebuild("one", commit=commit))
    kept = survey(bucket, 0)
    assert kept.kept[one.engine] == "release test/other@1 is live, and needs it"
    collect(bucket, kept, "test", 5)
    assert fleet.store.find(one.engine) is not None and fleet.store.find(one.repository) is not None


def test_what_lies_in_the_layout_of_before_is_found_by_every_model(fleet: Fleet, tmp_path: Path) -> None:
    made, bucket = before(fleet, "tiny"), fleet.store.bucket
    for ref in refs(made):
        found = fleet.store.need(ref.own)
        assert (found.ref.model, found.manifest.schema_version) == ("tiny", 1)
        assert find(bucket, str(ref.own), "test") == ref == find(bucket, ref.identity[:12], "test")
        assert find(bucket, f"{ref.kind}/tiny/{ref.identity[:12]}", "test") == ref
    assert {str(item.ref) for item in everything(bucket)} == set(map(str, refs(made)))
    # A second model makes nothing, and its release names what is there.
    other = fleet.rebuild("other")
    assert {str(item.ref) for item in everything(bucket)} == set(map(str, refs(made)))
    fleet.release(made)
    fleet.release(replace(made, model="other"))
    assert str(fleet.target.intent("other", 1).artifact) == str(made.repository) and refs(other) == refs(made)
    for ref in (made.repository, made.engine):
        assert bring(fleet.store, ref, tmp_path / "node")[1].is_dir()
    verdicts = verify(bucket, ReleaseRef("test", "other", 1), None, "", lambda done, total: None)
    assert [verdict.word for verdict in verdicts] == ["intact", "intact"]
    found = lineage(bucket, made.engine)
    assert {str(made.engine), str(made.snapshot), "test/tiny", "test/other"} <= found.entities.keys()
    # What is made from it now lies in the layout of now, and is explained with it.
    later = fleet.rebuild("tiny", slots=9)
    assert (later.engine, fleet.store.need(later.repository).ref.model) == (made.engine, "")
    assert fleet.store.need(later.repository).manifest.inputs == {"engine": str(made.engine)}
    assert str(later.repository) in lineage(bucket, made.snapshot).entities
    assert why(bucket, later.repository) == why(bucket, later.repository, made.repository)


def test_pins_and_collection_know_both_layouts(fleet: Fleet) -> None:
    made, bucket = before(fleet, "tiny"), fleet.store.bucket
    pin(bucket, made.checkpoint)
    again = fleet.rebuild("other", tensorrt_llm="1.2.1")
    pin(bucket, again.checkpoint)
    fleet.release(made)
    found = survey(bucket, 0)
    assert {str(ref) for ref in found.kept} == {
        *map(str, (made.checkpoint, made.engine, made.repository, again.checkpoint))
    }
    assert collect(bucket, found, "test", 5) == []
    assert fleet.store.look_up(made.snapshot).problem == "its files were collected"
    # Collected there and made again here, it is whole by every name, and a pin of before keeps it.
    fleet.rebuild("tiny")
    assert fleet.store.need(made.snapshot).ref.model == "" == fleet.store.need(made.snapshot.own).ref.model
    assert unpin(bucket, made.checkpoint.own) and not unpin(bucket, made.checkpoint)


def test_one_that_is_damaged_there_is_made_again_here(fleet: Fleet, tmp_path: Path) -> None:
    made = before(fleet, "tiny")
    damaged = fleet.store.need(made.engine)
    fleet.store.bucket.put(f"{made.engine.folder}{damaged.manifest.attempt}/data.bin", b"?")
    assert fleet.store.look_up(made.engine.own).problem == "'data.bin' was altered"
    fleet.rebuild("tiny")
    mended = fleet.store.need(made.engine)
    assert mended.ref.model == "" and problems_in_store(fleet.store.bucket, mended) == []
    _, folder = bring(fleet.store, made.engine, tmp_path / "node")
    assert folder.name == mended.manifest.attempt


def test_signatures_of_both_layouts(fleet: Fleet, signing_keys: dict[str, str]) -> None:
    bucket, make = fleet.store.bucket, signer(signing_keys["ours"])
    assert make is not None
    old, new = before(fleet, "tiny").engine, fleet.rebuild("other", commit="b" * 40).engine
    for ref, name in ((old, str(old)), (new, f"{new}/{fleet.store.need(new).manifest.attempt}")):
        artifact = fleet.store.need(ref)
        assert artifact_statement(artifact.ref, artifact.manifest).name == name
        assert list(sign(bucket, ref, signing_keys["ours"], lambda done, total: None)) == [ref]
        stored = bucket.get(signature_key(artifact.ref, artifact.manifest.attempt))
        assert stored is not None
        require_signed_artifact(signing_keys["ours.pub"], artifact.ref, artifact.manifest, stored.body)
    # Of the layout of now it is the attempt that is signed, not equal files in another folder.
    with pytest.raises(SignatureRefused) as caught:
        moved = artifact.manifest.model_copy(update={"attempt": "other"})
        require_signed_artifact(signing_keys["ours.pub"], artifact.ref, moved, stored.body)
    assert caught.value.code == "signature-other"


def test_which_model_was_fetched_from_a_snapshot(fleet: Fleet) -> None:
    made, bucket = before(fleet, "tiny"), fleet.store.bucket
    assert has_fetched(bucket, made.snapshot.own, "tiny") and not has_fetched(bucket, made.snapshot.own, "other")
    note_model(bucket, made.snapshot, "other")
    assert has_fetched(bucket, made.snapshot, "other")
    fleet.release(made)
    collect(bucket, survey(bucket, 0), "test", 5)
    assert has_fetched(bucket, made.snapshot, "tiny") and has_fetched(bucket, made.snapshot, "other")
