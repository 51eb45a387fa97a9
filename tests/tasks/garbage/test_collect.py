"""Garbage collection on a real store: what is reached stays, the rest goes, whoever works meanwhile loses nothing."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import TYPE_CHECKING

import pytest

from infra.errors import ArtifactDamaged, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.lineage import lineage
from tasks.garbage import collect as collect_module
from tasks.garbage.collect import Survey, collect, survey, survey_lines
from tasks.garbage.keep import note_use, pin, unpin
from tasks.steps.promote import roll_back
from tasks.steps.retire import retire
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.lease import Watch, held
from tasks.store.notes import NOTES
from tasks.targets.current import Current
from tasks.targets.gate_record import Evidence, GateRecord
from tasks.targets.gate_records import GateRecords
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.references import PublicName, ReleaseRef, find

if TYPE_CHECKING:
    from tests.fleet import Fleet, Made

WEEK = 7 * 86400.0


def at_once(fleet: Fleet) -> Survey:
    """A survey without any grace: what was made this second may go."""
    return survey(fleet.store.bucket, 0)


def going(found: Survey) -> set[str]:
    return {item.name for item in found.garbage}


def let_go(fleet: Fleet, found: Survey) -> list[str]:
    return [item.name for item in collect(fleet.store.bucket, found, "test", 5)]


def names(made: Made) -> set[str]:
    return {str(made.snapshot), str(made.checkpoint), str(made.engine), str(made.repository)}


def files(bucket: Bucket, ref: ArtifactRef) -> list[str]:
    beside = tuple(ref.folder + name for name in ("manifest.json", *NOTES))
    return [entry.key for entry in bucket.list(ref.folder) if not entry.key.startswith(beside)]


def test_no_release_of_a_retired_model_is_wanted(fleet: Fleet) -> None:
    gone, stays = fleet.rebuild(), fleet.rebuild("other", commit="b" * 40)
    fleet.release(gone)
    fleet.release(stays)
    bucket = fleet.store.bucket
    assert not {str(gone.engine), str(gone.repository)} & going(at_once(fleet))
    retire(bucket, "tiny", ["test"])
    young = survey(bucket, WEEK)
    assert going(young) == set() and young.kept[gone.engine] == "younger than the grace time"
    found = at_once(fleet)
    assert going(found) == names(gone) | {str(stays.snapshot), str(stays.checkpoint)}
    let_go(fleet, found)
    # What it was is still told, and a pin or a rebuild would have kept it.
    root = lineage(bucket, find(bucket, "tiny@1", "test"))
    assert {str(gone.snapshot), str(gone.engine), "test/tiny@1"} <= root.entities.keys()
    assert fleet.store.look_up(gone.engine).problem == "its files were collected"


def test_a_candidate_that_brings_a_retired_model_back_is_wanted(fleet: Fleet) -> None:
    fleet.release(fleet.rebuild())
    retire(fleet.store.bucket, "tiny", ["test"])
    again = fleet.rebuild(slots=8)
    number = fleet.release(again, public=False)
    fleet.target.move("tiny", lambda current: current.with_candidate(number))
    assert {again.engine, again.repository} == at_once(fleet).kept.keys()


def test_only_what_a_release_reaches_stays(fleet: Fleet) -> None:
    live, previous, candidate, old, lost = (fleet.rebuild(tensorrt_llm=f"1.0.{number}") for number in range(5))
    for made in (old, previous, live):
        fleet.release(made)
    number = fleet.release(candidate, public=False)
    fleet.target.move("tiny", lambda current: current.with_candidate(number))

    before = {(entry.key, entry.etag) for entry in fleet.store.bucket.list("")}
    found = at_once(fleet)
    # An engine needs neither its checkpoint nor its snapshot, and the old release is neither live nor previous.
    kept = {str(ref) for made in (live, previous, candidate) for ref in (made.repository, made.engine)}
    everything = set[str]().union(*(names(made) for made in (live, previous, candidate, old, lost)))
    assert going(found) == everything - kept
    assert {str(ref) for ref in found.kept} == kept
    assert found.kept[live.repository] == "release test/tiny@3 is live"
    assert found.kept[live.engine] == "release test/tiny@3 is live, and needs it"
    assert any(str(lost.engine) in line and "nothing uses it" in line for line in survey_lines(found))
    assert before == {(entry.key, entry.etag) for entry in fleet.store.bucket.list("")}  # a survey changes nothing

    assert let_go(fleet, found) == []
    for made in (live, previous, candidate):
        assert fleet.store.find(made.repository) is not None and fleet.store.find(made.engine) is not None
    gone = fleet.store.look_up(lost.engine)
    assert gone.problem == "its files were collected" and files(fleet.store.bucket, lost.engine) == []
    assert going(at_once(fleet)) == set()
    # Made again, it is an artifact like any other.
    again = fleet.rebuild(tensorrt_llm="1.0.4")
    assert again == lost and fleet.store.find(lost.engine) is not None


def test_a_release_that_was_collected_is_no_way_back(fleet: Fleet) -> None:
    old, previous, live = (fleet.rebuild(tensorrt_llm=f"1.0.{number}") for number in range(3))
    for made in (old, previous, live):
        fleet.release(made)
    assert let_go(fleet, at_once(fleet)) == []
    before = fleet.target.current("tiny")
    with pytest.raises(UsageError) as refused:
        roll_back(fleet.target, "tiny", 1)
    assert refused.value.code == "release-not-in-store" and "collected" in refused.value.message
    engine = fleet.store.need(previous.engine)
    fleet.store.bucket.delete(f"{previous.engine.folder}{engine.manifest.attempt}/data.bin")
    with pytest.raises(UsageError) as refused:
        roll_back(fleet.target, "tiny")
    assert refused.value.code == "release-not-in-store" and "'data.bin'" in refused.value.message
    assert fleet.target.current("tiny") == before


def test_what_a_release_was_compared_with_stays_as_long_as_that_does(fleet: Fleet) -> None:
    made, bucket = fleet.rebuild(), fleet.store.bucket
    checkpoint = Identity(fleet.store.need(made.checkpoint).manifest.identity)
    used, unused = (
        fleet.publish(
            "reference", "tiny", Identity.of("reference", 1, inputs={"checkpoint": checkpoint}, fields=fields)
        )
        for fields in ({"positions": 4}, {"positions": 5})
    )
    number = fleet.release(made)
    evidence = Evidence(reference=str(used))
    record = GateRecord(gate="agreement", kind="agreement", candidate=number, live=None, evidence=evidence)
    GateRecords(fleet.target, "tiny", number).create(record)
    found = at_once(fleet)
    assert found.kept[used] == "release test/tiny@1 is live, and was compared with it"
    assert str(unused) in going(found) and str(made.checkpoint) in going(found)
    note_use(bucket, "tiny", [unused], "some-run")
    assert unused in at_once(fleet).kept
    versions = [json.loads(stored.body)["schema_version"] for stored in map(bucket.get, uses(bucket)) if stored]
    assert versions == [3]
    # What it was compared with is made again where nobody knows any more; nothing else is lost.
    bucket.put(f"{fleet.target.prefix}tiny/{number}/gates/agreement.json", b"[]")
    assert str(used) in going(at_once(fleet)) and made.engine in at_once(fleet).kept


def uses(bucket: Bucket) -> list[str]:
    return [entry.key for entry in bucket.list("uses/")]


def test_the_grace_time(fleet: Fleet) -> None:
    made = fleet.rebuild()
    found = survey(fleet.store.bucket, WEEK)
    assert going(found) == set() and set(found.kept.values()) == {"younger than the grace time"}
    fleet.release(made, public=False)
    fleet.target.move("tiny", lambda current: Current())
    assert survey(fleet.store.bucket, WEEK).kept[made.engine].endswith("is younger than the grace time, and needs it")
    assert going(at_once(fleet)) == names(made)


def test_what_is_pinned_used_leased_or_loaded_stays(fleet: Fleet) -> None:
    bucket = fleet.store.bucket
    pinned, used, leased, loaded, by_number = (
        fleet.rebuild(f"m{number}", commit=str(number) * 40) for number in range(5)
    )
    pin(bucket, pinned.checkpoint, "for the paper")
    note_use(bucket, "m1", [used.snapshot, used.checkpoint], "some-run")
    fleet.release(loaded)
    fleet.target.move("m3", lambda current: Current())
    fleet.target.report(
        NodeReport(
            node="one",
            target="test",
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=1,
            memory_available_bytes=1,
            models={"m3": ModelReport(public=None, releases={1: ReleaseReport(state="ready")})},
        )
    )
    fleet.release(by_number)
    fleet.target.move("m4", lambda current: Current())
    release = ReleaseRef("test", "m4", 1)
    pin(bucket, release)
    with held(bucket, leased.engine.identity, "some-run", 60):
        found = at_once(fleet)
    expected = {
        pinned.checkpoint: "pinned",
        used.snapshot: "a run uses it, or did within the grace time",
        used.checkpoint: "a run uses it, or did within the grace time",
        loaded.repository: "release test/m3@1 is loaded on node 'one'",
        loaded.engine: "release test/m3@1 is loaded on node 'one', and needs it",
        by_number.repository: "release test/m4@1 is pinned",
        by_number.engine: "release test/m4@1 is pinned, and needs it",
    }
    for ref, why in expected.items():
        assert found.kept[ref] == why
    assert found.kept[leased.engine] == "a run is making it"
    assert unpin(bucket, pinned.checkpoint) and unpin(bucket, release) and not unpin(bucket, release)
    assert {str(pinned.checkpoint), str(by_number.engine)} <= going(at_once(fleet))
    with pytest.raises(UsageError) as refused:
        pin(bucket, PublicName("test", "m4"))
    assert refused.value.code == "usage" and "m4@N" in refused.value.hint


def test_what_runs_left_behind(fleet: Fleet) -> None:
    bucket, made = fleet.store.bucket, fleet.rebuild()
    fleet.release(made)
    committed = fleet.store.need(made.engine)
    bucket.put(f"{made.engine.folder}lost/data.bin", b"an attempt that came second")
    torn = f"artifacts/engine/{'0' * 64}/torn/data.bin"
    bucket.put(torn, b"an attempt of a killed run")
    bucket.put(f"{made.engine.folder}damaged/x.json", b"{}")
    bucket.put("leases/dead.json", b'{"schema": 1, "holder": "dead", "nonce": "1"}')
    note_use(bucket, "tiny", [made.checkpoint], "a run of last year")
    upload = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{bucket.prefix}{torn}.part")["UploadId"]
    bucket.client.upload_part(
        Bucket=bucket.name, Key=f"{bucket.prefix}{torn}.part", UploadId=upload, PartNumber=1, Body=b"x" * 1000
    )
    # Attempts, uploads, uses and leases of this second count as those of runs that were killed yesterday.
    found = survey(bucket, 0, running_seconds=0, expired_seconds=0)
    uses = {name for name in going(found) if name.startswith("uses/tiny/")}
    assert len(uses) == 1
    assert going(found) - uses == {
        f"{made.engine}/lost",
        f"engine/{'0' * 64}/torn",
        f"{made.engine.folder}damaged/x.json",
        "leases/dead.json",
        str(made.checkpoint),
        str(made.snapshot),
    }
    assert [item.key for item in found.uploads] == [f"{torn}.part"]
    assert let_go(fleet, found) == []
    assert fleet.store.find(made.engine) == committed
    left = {entry.key for entry in bucket.list("") if not entry.key.startswith(("targets/", "artifacts/repository"))}
    assert left == {
        "leases/collect-garbage.json",
        *(ref.folder + "manifest.json" for ref in (made.snapshot, made.checkpoint, made.engine)),
        f"{made.snapshot.folder}outputs/{made.checkpoint}.json",
        f"{made.checkpoint.folder}outputs/{made.engine}.json",
        f"{made.engine.folder}outputs/{made.repository}.json",
        *(f"{made.engine.folder}{committed.manifest.attempt}/{file.path}" for file in committed.manifest.files),
    }
    assert list(bucket.unfinished_uploads("")) == []


def test_what_runs_are_at_work_on_is_no_leftover(fleet: Fleet) -> None:
    bucket = fleet.store.bucket
    torn = ArtifactRef("engine", "0" * 64)
    bucket.put(f"{torn.folder}attempt/data.bin", b"half of it")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{bucket.prefix}{torn.folder}attempt/other.bin")
    with held(bucket, torn.identity, "some-run", 60):
        found = at_once(fleet)
    assert found.garbage == [] and found.uploads == []


def test_a_lease_that_was_taken_after_the_survey_stays(fleet: Fleet) -> None:
    bucket = fleet.store.bucket
    bucket.put("leases/dead.json", b'{"schema": 1, "holder": "dead", "nonce": "1"}')
    bucket.put("leases/gone.json", b'{"schema": 1, "holder": null, "nonce": "1"}')
    found = survey(bucket, 0, running_seconds=0, expired_seconds=0)
    assert going(found) == {"leases/dead.json", "leases/gone.json"}
    with held(bucket, "dead", "some-run", 0.5):
        assert let_go(fleet, found) == ["leases/dead.json"]
        assert Watch(bucket, "dead", 60).holder() == "some-run"
    assert bucket.get("leases/gone.json") is None


def test_an_upload_that_is_gone_on_with_after_the_survey_stays(fleet: Fleet) -> None:
    bucket = fleet.store.bucket
    torn = ArtifactRef("engine", "0" * 64)
    bucket.put(f"{torn.folder}attempt/data.bin", b"half of it")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{bucket.prefix}{torn.folder}attempt/other.bin")
    # However short the grace time, an upload that was killed within a day may be gone on with.
    assert going(survey(bucket, 0, running_seconds=0)) == set() and not survey(bucket, 0, running_seconds=0).uploads
    found = survey(bucket, 0, running_seconds=0, expired_seconds=0)
    assert going(found) == {f"{torn}/attempt"} and found.uploads
    found = dataclasses.replace(found, running_seconds=60.0)
    with held(bucket, torn.identity, "some-run", 60):
        assert let_go(fleet, found) == [f"{torn}/attempt"]
    assert bucket.get(f"{torn.folder}attempt/data.bin") is not None
    assert list(bucket.unfinished_uploads(torn.folder))


def test_what_became_wanted_after_the_survey_is_kept(fleet: Fleet) -> None:
    made, other = fleet.rebuild(), fleet.rebuild(slots=8)
    found = at_once(fleet)
    fleet.release(made)
    note_use(fleet.store.bucket, "tiny", [other.repository], "a run that has just begun")
    assert set(let_go(fleet, found)) == {str(made.repository), str(made.engine), str(other.repository)}
    for ref in (made.repository, made.engine, other.repository):
        assert fleet.store.find(ref) is not None
    assert fleet.store.find(made.checkpoint) is None


def test_what_was_replaced_after_the_survey_is_kept(fleet: Fleet) -> None:
    made = fleet.rebuild()
    found = at_once(fleet)
    bucket, key = fleet.store.bucket, made.engine.folder + "manifest.json"
    before = bucket.get(key)
    assert before is not None
    replaced = json.loads(before.body) | {"attempt": "another"}

    # Exactly between the look at the manifest and the mark.
    class Racing(Bucket):
        def replace(self, key: str, body: bytes, etag: str) -> str:
            if key == made.engine.folder + "manifest.json":
                self.put(key, json.dumps(replaced).encode())
            return super().replace(key, body, etag)

    racing = Racing(bucket.name, bucket.prefix, bucket.endpoint)
    assert [item.name for item in collect(racing, found, "test", 5)] == [str(made.engine)]
    after = bucket.get(key)
    assert after is not None and json.loads(after.body)["state"] == "present"
    assert len(files(bucket, made.engine)) == 2


def test_a_collection_killed_after_marking_loses_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fleet.rebuild()
    found = at_once(fleet)
    fleet.release(made)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collect_module, "reached", killed)
        with pytest.raises(KeyboardInterrupt):
            let_go(fleet, found)
    assert fleet.store.find(made.engine) is None  # marked, though a release wants it by now
    again = at_once(fleet)
    assert set(again.restored) == {made.repository, made.engine}
    assert let_go(fleet, again) == []
    assert fleet.store.find(made.repository) is not None and fleet.store.find(made.engine) is not None
    # The others were marked and had their files still: the second collection ends what the first began.
    assert files(fleet.store.bucket, made.checkpoint) == []


def test_where_a_live_release_is_unclear_nothing_goes(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    fleet.store.bucket.put(made.repository.folder + "manifest.json", b"{")
    with pytest.raises(ArtifactDamaged) as caught:
        at_once(fleet)
    assert caught.value.code == "artifact-damaged" and str(made.repository) in caught.value.message
    assert fleet.store.find(made.engine) is not None


def test_builds_beside_collections(fleet: Fleet) -> None:
    """Rebuilds that note their use and then find or make everything, while collections without grace run."""
    stop, errors = threading.Event(), list[BaseException]()

    def collecting() -> None:
        try:
            while not stop.is_set():
                collect(fleet.store.bucket, at_once(fleet), "test", 5)
        except BaseException as error:
            errors.append(error)

    collector = threading.Thread(target=collecting)
    expected = fleet.rebuild("expected")  # the identities, which are the same for each model
    collector.start()
    try:
        for number in range(6):
            model = f"model{number % 2}"
            refs = [expected.engine, expected.repository]
            note_use(fleet.store.bucket, model, refs, "some-run")
            fleet.rebuild(model)
            for ref in refs:
                artifact = fleet.store.need(ref)
                for file in artifact.manifest.files:
                    fleet.store.read(artifact, file.path)
    finally:
        stop.set()
        collector.join()
    assert errors == []
