"""A home that an earlier version has left is read by every later one.

`home-060e017.json` holds the records and manifests that commit 060e017 wrote: `make run`, then q4_0, a rollback and two
pins; and one of each other kind of record. `home-060e017-answers.json` holds what its commands answered of them. Both
are frozen. `tests/upgrade.py` does the same with the whole home, weights and servers included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.explain import lineage_text, why_text
from tasks.explain.formats import FORMATS
from tasks.explain.lineage import lineage
from tasks.explain.releases import releases
from tasks.explain.why import why
from tasks.finetuned.arrivals import read_arrival, undecided
from tasks.finetuned.records import newer_ones, with_newest
from tasks.garbage.collect import survey
from tasks.steps.promote import roll_back
from tasks.store.inventory import everything, manifests
from tasks.store.lease import holder_of
from tasks.targets.references import find
from tasks.targets.target import Target
from tasks.trtllm.images import known_report
from tasks.watch.record import read_record
from tests.tasks.steps.test_identities import MODELS
from tests.upgrade import without_new_fields

FIXTURES = Path(__file__).parent / "fixtures"
RECORDS: dict[str, str] = json.loads((FIXTURES / "home-060e017.json").read_text())
ANSWERS: dict[str, Any] = json.loads((FIXTURES / "home-060e017-answers.json").read_text())
MODEL = "smollm2-135m"

FORMAT_OF = {
    "artifacts": "manifest",
    "events": "event",
    "leases": "lease",
    "pins": "pin",
    "toolchains": "toolchain",
    "uses": "use",
    "release-watch.json": "watch",
}


def format_of(key: str) -> str:
    parts = key.split("/")
    if parts[0] == "targets":
        return "node" if parts[2] == "nodes" else parts[-1].removesuffix(".json")
    if parts[0] == "finetuned":
        return "weights" if parts[-1] == "current.json" else "finetuned"
    return FORMAT_OF[parts[0]]


@pytest.fixture
def home(bucket: Bucket) -> Bucket:
    for key, body in RECORDS.items():
        bucket.put(key, body.encode())
    return bucket


@pytest.mark.parametrize("key", [key for key in RECORDS if not key.endswith("limits.json")])
def test_each_record_is_read_and_says_the_same_when_it_is_written(key: str) -> None:
    record = FORMATS[format_of(key)].model_validate_json(RECORDS[key])
    written, was = record.model_dump(mode="json", by_alias=True), json.loads(RECORDS[key])
    assert without_new_fields(written, was) == was


def test_every_format_is_among_them() -> None:
    # Identity documents are part of manifests; events had no numbers, models no aliases and no gates but their prompts,
    # repositories no former names; nobody approved, shared traffic, watched, noted moves of a name, made a reference,
    # retired a model, went in waves, kept what the fleet's records said or published a catalogue.
    assert {format_of(key) for key in RECORDS if not key.endswith("limits.json")} == FORMATS.keys() - {
        "aliases",
        "approval",
        "approval-request",
        "catalogue",
        "fleet",
        "gate",
        "identity",
        "move",
        "published",
        "reference",
        "renamed",
        "retirement",
        "sequence",
        "shift",
        "traffic",
        "watched",
        "watching",
        "wave",
        "waves",
    }


def test_a_record_without_a_required_field_is_not_read() -> None:
    broken = json.loads(RECORDS[f"targets/local/{MODEL}/1/intent.json"])
    del broken["repository"]
    with pytest.raises(ValidationError):
        FORMATS["intent"].model_validate(broken)


def test_releases_are_told_as_before(home: Bucket) -> None:
    found = releases(Target(home, "local"), MODEL)
    told = {**found.document(), "nodes": {}}
    assert without_new_fields(told, ANSWERS["releases"]) == ANSWERS["releases"]


@pytest.mark.parametrize("text", list(ANSWERS["lineage"]))
def test_lineage_is_told_as_before(home: Bucket, text: str) -> None:
    assert lineage_text.document(lineage(home, find(home, text, "local"))) == ANSWERS["lineage"][text]


@pytest.mark.parametrize(("text", "answer"), [(f"{MODEL}@2", "why"), ("5871eeacc0ef", "why_artifact")])
def test_why_is_told_as_before(home: Bucket, text: str, answer: str) -> None:
    told = why_text.document(why(home, find(home, text, "local")))
    assert without_new_fields(told, ANSWERS[answer]) == ANSWERS[answer]


def test_artifacts_are_found_and_what_is_pinned_or_used_stays(home: Bucket) -> None:
    stored = everything(home)
    assert len(manifests(home, [item.ref for item in stored])) == 6
    kept = survey(home, 0).kept
    assert {ref.kind for ref in kept} == {"engine"}  # of the others the fixture has no files
    assert survey(home, 0).garbage == []


def test_events_weights_versions_and_images_count_as_before(home: Bucket) -> None:
    model = MODELS["llama3-8b-instruct"].model_copy(update={"accepts": ("s3://training/llama3-8b/**",)})
    changed, finetuned = with_newest(home, model)
    assert finetuned is not None and (finetuned.revision, finetuned.adapter) == ("b" * 64, True)
    assert (
        changed.adapter == "s3://training/llama3-8b/adapter-1" and changed.recipe.model_dump()["quantization"] == "fp8"
    )
    proven = newer_ones(home, model, None)
    assert proven is not None and proven.revision == "a" * 64
    refused = read_arrival(home, "44444444-4444-4444-8444-444444444444")
    assert refused is not None and (refused.state, refused.code) == ("refused", "event-model")
    assert list(undecided(home, 0)) == []
    watched, _ = read_record(home)
    assert watched.followed["llama3-8b-instruct"].version == "1.2.1" and watched.attempts["llama3-70b-instruct"].over
    report = known_report(home, "sha256:" + "d" * 64)
    assert report is not None and report.tensorrt == "10.14.1.48"


def test_released_leases_have_no_holder() -> None:
    leases = {key: holder_of(body.encode()) for key, body in RECORDS.items() if key.startswith("leases/")}
    assert len(leases) == 7 and set(leases.values()) == {None}


def test_a_rollback_asks_for_the_weights_that_the_fixture_has_none_of(home: Bucket) -> None:
    with pytest.raises(UsageError) as caught:
        roll_back(Target(home, "local"), MODEL, 2)
    assert caught.value.code == "release-not-in-store"
    assert Target(home, "local").current(MODEL)[0].public == 1
