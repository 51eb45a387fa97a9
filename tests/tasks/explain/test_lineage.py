"""Lineage, names and `why`, read from a real store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest
from pydantic import JsonValue

from infra.errors import UsageError
from infra.s3.bucket import Bucket, StoredObject
from tasks.explain.lineage import lineage
from tasks.explain.lineage_text import document, mermaid, tree
from tasks.explain.releases import releases
from tasks.explain.why import why
from tasks.explain.why_text import became, lines, summary
from tasks.explain.why_text import document as why_document
from tasks.store.artifact import ArtifactRef
from tasks.store.notes import note_output, note_release
from tasks.targets.approval import Approval, ApprovalRequest
from tasks.targets.approvals import Approvals
from tasks.targets.gate_record import Verdict
from tasks.targets.references import PublicName, ReleaseRef, find
from tasks.targets.release import Result
from tasks.targets.traffic import Shift, shift
from tasks.targets.watch_record import WatchOutcome, WatchRecords

if TYPE_CHECKING:
    from tests.fleet import Fleet


def test_names(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.rebuild("other")
    fleet.release(made)
    bucket = fleet.store.bucket
    assert find(bucket, str(made.engine), "test") == made.engine
    for text in (f"engine/{made.engine.identity[:8]}", f"engine/tiny/{made.engine.identity[:8]}"):
        assert find(bucket, text, "test") == made.engine
    assert find(bucket, "tiny@1", "test") == find(bucket, "tiny--r1", "test") == ReleaseRef("test", "tiny", 1)
    assert find(bucket, "tiny", "test") == PublicName("test", "tiny")
    assert find(bucket, made.snapshot.identity[:10], "test") == made.snapshot  # which both models share
    bucket.put(f"artifacts/checkpoint/{made.snapshot.identity[:10]}{'0' * 54}/manifest.json", b"{}")
    with pytest.raises(UsageError) as caught:
        find(bucket, made.snapshot.identity[:10], "test")
    assert caught.value.code == "reference-ambiguous"
    for unknown in ("nothing", "engine/tiny/ffff", "plan/tiny/1", "a/b", "engine//", "0123456789ab", "other"):
        with pytest.raises(UsageError) as caught:
            find(bucket, unknown, "test")
        assert caught.value.code == "reference-unknown", unknown
    with pytest.raises(UsageError) as caught:
        find(bucket, "tiny@7", "test")
    assert caught.value.code == "release-missing"


def test_a_tree_up_and_down(fleet: Fleet) -> None:
    first = fleet.rebuild()
    second = fleet.rebuild(tensorrt_llm="1.2.1")  # same snapshot, everything else rebuilt
    assert first.snapshot == second.snapshot and first.checkpoint != second.checkpoint
    fleet.release(first)
    fleet.release(second)

    found = lineage(fleet.store.bucket, find(fleet.store.bucket, "tiny", "test"))
    printed = list(tree(found))
    assert printed[0] == "public name test/tiny"
    words = [line.strip(" └├│─").split()[0] for line in printed]
    assert words == ["public", "made", "release", "repository", "engine", "checkpoint", "snapshot", "source", "used"]
    assert str(second.engine).removeprefix("engine/") in printed[4] and str(first.engine) not in "".join(printed)
    assert printed[-1] == "used by: nothing"

    down = lineage(fleet.store.bucket, first.snapshot)
    kinds = [entity.kind for entity in down.entities.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "source": 1,
        "snapshot": 1,
        "checkpoint": 2,
        "engine": 2,
        "repository": 2,
        "release": 2,
        "public": 1,
    }
    printed = list(tree(down))
    assert "made from" in printed and "used by" in printed
    assert any("release test/tiny@1  previous" in line for line in printed)
    assert any("release test/tiny@2  live" in line for line in printed)

    one = lineage(fleet.store.bucket, first.engine)
    assert str(second.engine) not in one.entities and str(ReleaseRef("test", "tiny", 1)) in one.entities


def test_a_release_is_what_the_list_of_releases_says(fleet: Fleet) -> None:
    """Its gates passed it, and then its canary refused it, or a person did."""
    for slots in (1, 2, 3, 4):
        fleet.release(fleet.rebuild(slots=slots), public=slots == 1)
    canary = Shift(release=2, strategy="canary", state="refused", reason="too slow", share=0.5)
    shift(fleet.target, "tiny", 2).create(canary)
    asked = Approvals(fleet.target, "tiny", 3)
    asked.ask(ApprovalRequest(release=3, timeout_s=60, flow_run="some-run"))
    asked.decide(Approval(release=3, state="rejected", by="ann@desk"))
    found = lineage(fleet.store.bucket, PublicName("test", "tiny"))
    whole = lineage(fleet.store.bucket, fleet.rebuild(slots=1).snapshot)
    listed = {row.intent.release: row.standing.word for row in releases(fleet.target, "tiny").rows}
    assert listed == {1: "live", 2: "refused", 3: "refused", 4: "passed"}
    stated = {name: each.facts["state"] for name, each in whole.entities.items() if each.kind == "release"}
    assert stated == {f"test/tiny@{number}": word for number, word in listed.items()}
    assert found.entities["test/tiny@1"].facts["state"] == "live"


def test_what_was_made_from_an_artifact_is_read_and_nothing_else(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    for number in range(5):
        fleet.release(fleet.rebuild("other", commit=f"{number:040x}"))
    read: list[str] = []
    get = Bucket.get

    def noted(bucket: Bucket, key: str) -> StoredObject | None:
        read.append(key)
        return get(bucket, key)

    monkeypatch.setattr(Bucket, "get", noted)
    found = lineage(fleet.store.bucket, made.engine)
    assert set(map(str, (made.snapshot, made.checkpoint, made.engine, made.repository))) < found.entities.keys()
    manifests = {key.removesuffix("/manifest.json") for key in read if key.startswith("artifacts/")}
    assert manifests == {f"artifacts/{ref}" for ref in (made.snapshot, made.checkpoint, made.engine, made.repository)}
    assert {key.split("/")[2] for key in read if key.startswith("targets/")} == {"tiny"}


def test_what_was_noted_and_never_made_is_in_no_lineage(fleet: Fleet) -> None:
    made = fleet.rebuild()
    note_output(fleet.store.bucket, ArtifactRef("repository", "0" * 64), [made.engine])
    note_release(fleet.store.bucket, made.repository, "test", "tiny")
    assert lineage(fleet.store.bucket, made.engine).outputs(str(made.engine)) == [str(made.repository)]
    assert lineage(fleet.store.bucket, made.repository).outputs(str(made.repository)) == []


def test_a_tree_of_what_is_gone(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.store.bucket.put(made.checkpoint.folder + "manifest.json", b"{")
    found = lineage(fleet.store.bucket, made.engine)
    assert found.entities[str(made.checkpoint)].facts == {"state": "without a manifest"}
    assert str(made.snapshot) not in found.entities
    assert lineage(fleet.store.bucket, made.checkpoint).outputs(str(made.checkpoint)) == [str(made.engine)]


def test_json_and_mermaid(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    found = lineage(fleet.store.bucket, made.engine)
    printed = json.loads(json.dumps(document(found)))
    by_name = {entity["name"]: entity for entity in printed["things"]}
    assert printed["root"] == str(made.engine)
    assert by_name[str(made.engine)]["inputs"] == [str(made.checkpoint)]
    assert by_name[str(made.engine)]["run"] == "some-run"
    drawn = mermaid(found).splitlines()
    assert drawn[0] == "graph TD"
    assert f'  n0["source<br/>hf repository=org/tiny commit={"a" * 40}"]' in drawn
    assert f'  n3["engine<br/>{made.engine.identity[:12]}"]' in drawn
    assert "  n2 --> n3" in drawn and drawn[-1] == "  style n3 stroke-width:3px"


def test_why_in_words(fleet: Fleet) -> None:
    fleet.release(fleet.rebuild())
    fleet.release(fleet.rebuild(quantization="nvfp4"), passed=False, public=False)  # refused: nobody compares with it
    fleet.release(fleet.rebuild(tensorrt_llm="1.2.1"))
    bucket = fleet.store.bucket
    found = why(bucket, find(bucket, "tiny", "test"))
    assert (found.old, found.new) == ("test/tiny@1", "test/tiny@3")
    assert summary(found) == (
        "TensorRT-LLM 1.1.0 → 1.2.1; weights, recipe, GPU, serving settings and serving code unchanged"
    )
    printed = [line.split("  ")[-1].strip() for line in lines(found)]
    assert "because of what it is made from" in printed  # the repository
    assert printed[-1] == "the same"  # the snapshot
    steps = cast("list[dict[str, JsonValue]]", why_document(found)["steps"])
    assert [step["made_anew"] for step in steps] == [True, True, True, False]

    verdict = Verdict(gate="own", kind="agreement", state="passed", reason="r", samples=9)
    judged = Result(release=3, state="passed", gates=(verdict,))
    outcome = WatchOutcome(release=3, state="healthy", reason="w", seconds=1800)
    told = [line.strip() for line in became(judged, outcome)]
    assert told == ["passed own, 9 samples: r", "watched for 30 min, healthy: w"]
    WatchRecords(fleet.target, "tiny").conclude(outcome)
    found = why(bucket, find(bucket, "tiny", "test"))
    assert [*lines(found)][-1].strip() == told[-1]
    assert cast("dict[str, JsonValue]", why_document(found)["watch"])["state"] == "healthy"


def test_why_of_several_fields(fleet: Fleet) -> None:
    first = fleet.rebuild()
    second = fleet.rebuild(commit="b" * 40, quantization="nvfp4", gpu="NVIDIA B200", slots=8)
    bucket = fleet.store.bucket
    assert summary(why(bucket, second.repository, first.repository)) == (
        f"weights: commit {'a' * 12}… → {'b' * 12}…; recipe: quantization fp8 → nvfp4; GPU NVIDIA H200 → NVIDIA B200; "
        "serving settings: slots 4 → 8; serving code and TensorRT-LLM unchanged"
    )
    # Of an artifact, what came before it is the last one of its kind and model.
    assert why(bucket, second.engine) == why(bucket, second.engine, first.engine)
    with pytest.raises(UsageError) as caught:
        why(bucket, first.engine)
    assert caught.value.code == "nothing-before"


def test_an_adapter(fleet: Fleet) -> None:
    plain, one, other = (fleet.rebuild(adapter=commit) for commit in (None, "b" * 40, "c" * 40))
    bucket = fleet.store.bucket
    found = lineage(bucket, one.engine)
    assert [entity.kind for entity in found.entities.values()].count("source") == 2
    assert any(line.endswith(f"source hf repository=org/lora commit={'b' * 40}") for line in tree(found))

    assert summary(why(bucket, other.engine, one.engine)).startswith(
        f"weights: adapter.commit {'b' * 12}… → {'c' * 12}…; recipe, GPU"
    )
    for new, old in ((one, plain), (plain, one)):
        (change,) = why(bucket, new.engine, old.engine).changes
        assert (change.subject, change.field) == ("weights", "adapter")


def test_why_where_only_the_bytes_differ(fleet: Fleet) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    fleet.release(made)
    bucket = fleet.store.bucket
    found = why(bucket, find(bucket, "tiny@2", "test"))
    assert found.changes == () and summary(found).endswith("serving code and TensorRT-LLM unchanged")
