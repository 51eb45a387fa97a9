"""What events may name, and what the store makes of them: each weight once, the newest counts, refused ones do not."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.errors import EventRefused, SourceError
from infra.s3.bucket import Bucket
from tasks.finetuned.event import changed_by, pinned_source, read_event
from tasks.finetuned.moved_branches import Moved, moved
from tasks.finetuned.records import CurrentWeights, TunedWeights, accept, newer_ones, settle, waiting, with_newest
from tasks.finetuned.rejected import note_rejected
from tasks.finetuned.renamed import Renames
from tasks.lora.config import FILES
from tasks.models.overrides import override
from tasks.models.source import Source
from tasks.models.spec import Model
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.resolved import Access
from tasks.steps.fetch import snapshot_identity
from tasks.steps.resolve import resolve_weights, with_weights
from tasks.store.notes import note_model
from tasks.store.record import record_bytes
from tasks.targets.release import Intent
from tasks.targets.target import Target

if TYPE_CHECKING:
    from tests.fleet import Fleet
    from tests.tasks.sources.hub_server import Hub

COMMIT = "a" * 40


def model(
    uri: str = "hf://org/base@main", accepts: tuple[str, ...] = ("s3://weights/tiny/**",), **source: Any
) -> Model:
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": uri, **source},
            "accepts": accepts,
            "recipe": {"kind": "llamacpp"},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def changed(payload: dict[str, Any], to: Model) -> Model:
    model, uri = changed_by(read_event({"model": "tiny", **payload}), {"tiny": to})
    return override(model, source=uri).model


def code(payload: dict[str, Any], to: Model | None = None) -> str:
    with pytest.raises(EventRefused) as caught:
        changed(payload, to or model())
    assert caught.value.message
    return caught.value.code


def test_weights_are_another_revision_or_what_the_file_accepts() -> None:
    assert changed({"revision": "v2"}, model()).source.uri == "hf://org/base@v2"
    assert changed({"source": f"hf://org/base@{COMMIT}"}, model()).source.uri == f"hf://org/base@{COMMIT}"
    assert changed({"source": "s3://weights/tiny/run-7/"}, model()).source.uri == "s3://weights/tiny/run-7"
    for source in (
        "s3://weights/other/run-7",
        "s3://weights/tiny/../other",
        "hf://org/base-evil@main",
        "file:///etc/passwd",
        "pip://llm@1/x.gguf",
        "https://example.org/x.gguf",
        "s3://weights/tiny/run 7",
    ):
        assert code({"source": source}) == "event-source"
    assert code({"revision": "../../x"}) == "event-source"
    assert code({"revision": "main"}, model("s3://weights/base")) == "event-source"
    assert code({"revision": "main"}, model("file:///base.gguf")) == "event-source"


def test_options_are_those_of_the_command_line() -> None:
    recipe = changed({"revision": "main", "recipe": {"quantization": "q4_0"}}, model()).recipe
    assert recipe.model_dump()["quantization"] == "q4_0"
    assert code({"revision": "main", "recipe": {"quantization": "q9"}}) == "event-recipe"
    assert code({"revision": "main", "recipe": {"kind": "llmapi"}}) == "event-recipe"
    assert code({"revision": "main", "recipe": {"trust": "python"}}) == "event-recipe"


def test_trust_does_not_reach_to_other_weights() -> None:
    trusting = model(f"hf://org/base@{COMMIT}", include=("*.gguf",), trust=("python",))
    other = changed({"revision": "b" * 40}, trusting).source
    assert (other.trust, other.include) == ((), ("*.gguf",))


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"model": "tiny"},
        {"model": "tiny", "source": "s3://weights/tiny/x", "revision": "main"},
        {"model": "../tiny", "revision": "main"},
        {"model": "tiny", "revision": "main", "targets": ["prod"]},
        {"model": "tiny", "revision": ["main"]},
        {"model": "tiny", "revision": "main", "recipe": {"quantization": {"a": 1}}},
        {"model": "tiny", "revision": "x" * 20_000},
        {"model": "tiny", "source": "s3://weights/tiny/x", "branch": "main"},
        {"model": "tiny", "source": "s3://weights/tiny/x", "version": 3},
        {"model": "tiny", "source": "s3://weights/tiny/x", "series": "run", "version": 0},
    ],
)
def test_what_is_no_event_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(EventRefused) as caught:
        read_event(payload)
    assert caught.value.code == "event-malformed" and "source" in caught.value.hint and len(str(caught.value)) < 600


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(EventRefused) as caught:
        changed_by(read_event({"model": "other", "revision": "main"}), {"tiny": model()})
    assert caught.value.code == "event-model"


def finetuned(revision: str, event: str = "e1", **changes: Any) -> TunedWeights:
    source = f"s3://weights/tiny/{revision}"
    about = {"asked": source, "source": source, "file_source": "hf://org/base@main", "event": event}
    return TunedWeights.model_validate({"model": "tiny", "revision": revision, **about, **changes})


def refusal(bucket: Bucket, weights: TunedWeights) -> str:
    with pytest.raises(EventRefused) as caught:
        accept(bucket, weights)
    return caught.value.code


def taken(bucket: Bucket, to: Model | None = None) -> str:
    return with_newest(bucket, to or model())[0].source.uri


def test_the_same_weights_come_once(bucket: Bucket) -> None:
    first = finetuned("r1")
    assert accept(bucket, first) == accept(bucket, first) == first
    assert accept(bucket, finetuned("r1", "e2")).event == "e1"
    assert accept(bucket, finetuned("r2", "e2")).event == "e2"


def test_a_rebuild_takes_the_newest_until_its_gates_refuse_it(bucket: Bucket) -> None:
    assert with_newest(bucket, model()) == (model(), None) and waiting(bucket, model()) is None
    first = finetuned("r1", recipe={"quantization": "q4_0"}, order=1)
    accept(bucket, first)
    chosen, taken_weights = with_newest(bucket, model())
    assert (chosen.source.uri, taken_weights) == ("s3://weights/tiny/r1", first)
    assert chosen.recipe.model_dump()["quantization"] == "q4_0"
    assert (found := waiting(bucket, model())) is not None and found[0] == first
    settle(bucket, first, "passed")
    assert (found := waiting(bucket, model())) is not None and found[0] == first  # its run may die now
    settle(bucket, first, "live")
    assert waiting(bucket, model()) is None
    assert newer_ones(bucket, model(), first) is None and newer_ones(bucket, model(), None) == first
    accept(bucket, second := finetuned("r2", "e2", order=2))
    assert taken(bucket) == "s3://weights/tiny/r2"
    settle(bucket, first, "refused")  # of another run
    assert taken(bucket) == "s3://weights/tiny/r2"
    settle(bucket, second, "refused")
    assert taken(bucket) == "s3://weights/tiny/r1"
    accept(bucket, second)  # the run of its event had died, and the event is taken again
    assert taken(bucket) == "s3://weights/tiny/r1"

    # The file counts again once it names others.
    assert taken(bucket, model("hf://org/base@v2")) == "hf://org/base@v2"
    assert taken(bucket, model(accepts=("s3://weights/tiny/r2",))) == "hf://org/base@main"


def test_weights_that_a_person_rejected_are_not_brought_again(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(model().model_dump(mode="json", by_alias=True)))
    first, second = finetuned("r1", order=1), finetuned("r2", "e2", order=2)
    accept(bucket, first)
    accept(bucket, second)
    target = Target(bucket, "test")

    def intent(number: int) -> Intent:
        about: dict[str, Any] = {"repository": f"repository/{number:064x}", "digest": "d", "recipe": {}, "flow_run": ""}
        return Intent.model_validate({"model": "tiny", "release": number, "source": second.source, **about})

    target.reserve("tiny", intent)
    note_rejected(target, tmp_path, "tiny", 1, {"recipe": {"quantization": "q4_0"}})  # which may be to blame
    note_rejected(target, tmp_path / "gone", "tiny", 1, {})
    assert taken(bucket) == second.source
    note_rejected(target, tmp_path, "tiny", 1, {"recipe": {}, "runtime": ""})
    assert taken(bucket) == first.source


def test_two_events_at_once_end_with_the_one_that_came_last(bucket: Bucket) -> None:
    first, second = finetuned("r1", "e1", order=1), finetuned("r2", "e2", order=2)
    accept(bucket, second)
    accept(bucket, first)
    assert taken(bucket) == "s3://weights/tiny/r2"
    # The older one is not lost: it is the next to be tried.
    settle(bucket, second, "refused")
    assert taken(bucket) == "s3://weights/tiny/r1"


def test_an_event_that_is_taken_again_does_not_bring_older_weights_back(bucket: Bucket) -> None:
    accept(bucket, second := finetuned("r2", "e2", order=2))
    settle(bucket, second, "live")
    assert refusal(bucket, finetuned("r1", "e1", order=1)) == "event-overtaken"
    assert taken(bucket) == "s3://weights/tiny/r2"
    # Nor does another event of the same weights: they came first with that one.
    assert accept(bucket, finetuned("r1", "e3", order=3)).event == "e1"
    assert taken(bucket) == "s3://weights/tiny/r2"


def test_no_clock_has_a_part_in_the_order(bucket: Bucket) -> None:
    ahead, right = (datetime(2027, 1, 1, 12, minute, tzinfo=UTC) for minute in (10, 1))
    first = finetuned("r1", "e1", order=1, accepted=ahead)
    second = finetuned("r2", "e2", order=2, accepted=right)
    accept(bucket, first)
    accept(bucket, second)
    assert newer_ones(bucket, model(), second) is None
    settle(bucket, second, "live")
    assert newer_ones(bucket, model(), first) == second
    settle(bucket, first, "live")  # a run with older weights ends later
    assert newer_ones(bucket, model(), first) == second and taken(bucket) == "s3://weights/tiny/r2"


def test_weights_without_a_number_keep_their_order_and_are_older_than_those_with_one(bucket: Bucket) -> None:
    before, after = (datetime(2026, 11, 1, hour, tzinfo=UTC) for hour in (1, 2))
    old, later = finetuned("r1", "e1", accepted=before), finetuned("r2", "e2", accepted=after)
    bucket.put("finetuned/tiny/current.json", record_bytes(CurrentWeights(followed=old, proven=later)))
    assert taken(bucket) == "s3://weights/tiny/r2"  # the later worker had not looked
    bucket.put("finetuned/tiny/current.json", record_bytes(CurrentWeights(followed=later, proven=old)))
    assert taken(bucket) == "s3://weights/tiny/r2"
    assert (found := waiting(bucket, model())) is not None and found[0] == later
    accept(bucket, finetuned("r3", "e3", order=1))
    assert taken(bucket) == "s3://weights/tiny/r3"
    settle(bucket, finetuned("r3", "e3", order=1), "refused")
    assert taken(bucket) == "s3://weights/tiny/r2"


def test_a_version_never_takes_the_place_of_a_higher_one(bucket: Bucket) -> None:
    def version(number: int, order: int) -> TunedWeights:
        return finetuned(f"v{number}", f"e{number}", order=order, series="mlflow:tiny", version=number)

    accept(bucket, version(3, order=1))
    settle(bucket, version(3, order=1), "live")
    assert refusal(bucket, version(2, order=2)) == "event-overtaken"
    accept(bucket, other := finetuned("r1", "e9", order=3))
    settle(bucket, other, "live")
    assert refusal(bucket, version(1, order=4)) == "event-overtaken"  # though it came last of all
    assert taken(bucket) == "s3://weights/tiny/r1"
    # A higher version that came before a lower one is the newer one.
    accept(bucket, version(5, order=6))
    accept(bucket, version(6, order=5))
    assert taken(bucket) == "s3://weights/tiny/v6"


def test_what_a_branch_had_too_late_is_left_to_the_event_that_comes_with_it(bucket: Bucket) -> None:
    source = f"hf://org/base@{COMMIT}"
    accept(bucket, newer := finetuned("r2", "e2", order=2))
    settle(bucket, newer, "live")
    asked = {"asked": "hf://org/base@main", "source": source}
    assert refusal(bucket, finetuned("r1", "e1", order=1, **asked)) == "event-overtaken"
    accept(bucket, finetuned("r1", "e3", order=3, **asked))
    assert taken(bucket) == source


def test_an_adapter_is_merged_into_the_weights_of_the_file(bucket: Bucket, hub: Hub) -> None:
    access = Access(hub_endpoint=hub.url)
    to = model(accepts=("hf://org/*@**",), include=("*.gguf",))
    weights, config = b"\x02" + bytes(7) + b"{}", b'{"peft_type": "LORA"}'
    files = {"adapter_model.safetensors": weights, "adapter_config.json": config, "training_args.bin": b"pickle"}
    hub.push("org/lora", files)
    hub.push("org/whole", {"model.gguf": b"GGUF"})
    hub.push("org/half", {"adapter_config.json": config})

    adapted = with_weights(to, "hf://org/lora@main", access)
    assert (adapted.source, adapted.adapter) == (to.source, "hf://org/lora@main")
    instead = with_weights(adapted, "hf://org/whole@main", access)
    assert (instead.source.uri, instead.source.include, instead.adapter) == ("hf://org/whole@main", ("*.gguf",), None)
    with pytest.raises(SourceError) as caught:
        resolve_weights(with_weights(to, "hf://org/half@main", access), access)
    assert caught.value.code == "source-entry"

    hub.push("org/base", {"model.gguf": b"GGUF"})
    found = resolve_weights(adapted, access)
    assert [file.path for file in found.tuned.files] == ["adapter_config.json", "adapter_model.safetensors"]
    plan = found.plan(adapted)
    assert list(plan.snapshots) == ["snapshot", "adapter"]
    assert plan.snapshot == resolve_weights(to, access).plan(to).snapshot

    source = f"hf://org/lora@{COMMIT}"
    accept(bucket, weights := finetuned("r1", asked="hf://org/lora@main", source=source, adapter=True))
    chosen, taken = with_newest(bucket, to)
    assert (chosen.source, chosen.adapter, taken) == (to.source, source, weights)
    other = to.model_copy(update={"adapter": "hf://org/lora@v1"})
    assert with_newest(bucket, other) == (other, None)  # the file names another adapter now


def test_a_model_whose_file_names_an_adapter() -> None:
    tuned = model(accepts=()).model_copy(update={"adapter": "hf://org/lora@main"})
    event, models = {"model": "tiny"}, {"tiny": tuned}
    assert changed_by(read_event({**event, "revision": "v2"}), models)[1] == "hf://org/lora@v2"
    source = f"hf://org/lora@{COMMIT}"
    assert changed_by(read_event({**event, "source": source}), models)[1] == source
    # Its base alone would be served without what was tuned.
    assert code({"source": f"hf://org/base@{COMMIT}"}, tuned) == "event-source"


def test_a_branch_is_pinned_to_its_commit(bucket: Bucket) -> None:
    source = pinned_source("hf://org/base@main", {"commit": COMMIT})
    assert source == f"hf://org/base@{COMMIT}"
    assert pinned_source("s3://weights/tiny/x", {}) == "s3://weights/tiny/x"
    assert pinned_source("ngc://nvidia/tiny@latest", {"version": "1.0"}) == "ngc://nvidia/tiny@1.0"
    accept(bucket, finetuned("r1", asked="hf://org/base@main", source=source))
    assert with_newest(bucket, model())[0].source.uri == source


def test_a_branch_that_moved_is_found_once_it_was_never_built(fleet: Fleet, hub: Hub) -> None:
    def build(commit: str) -> None:
        source = Source(uri=f"hf://org/base@{commit}")
        identity = snapshot_identity(resolve(source, Access(hub_endpoint=hub.url)))
        note_model(fleet.store.bucket, fleet.publish("snapshot", "tiny", identity), "tiny")

    def found(*models: Model) -> list[Moved]:
        return list(moved(fleet.store.bucket, models, Access(hub_endpoint=hub.url)))

    def head(uri: str, tuned: bool = True) -> Moved:
        source = Source(uri=uri) if "lora" not in uri else Source(uri=uri, include=FILES)
        identity = snapshot_identity(resolve(source, Access(hub_endpoint=hub.url))).digest
        return Moved("tiny", uri, identity, tuned)

    weights = {"model.safetensors": b"\x00" * 8}
    first = hub.push("org/base", weights)
    ours = model().model_copy(update={"targets": ("test",)})
    assert found(ours) == []  # nobody serves it
    fleet.release(fleet.rebuild())
    build(first)
    assert found(ours) == []
    second = hub.push("org/base", weights | {"config.json": b"{}"})
    pinned = ours.model_copy(update={"source": Source(uri=f"hf://org/base@{first}")})
    gone = ours.model_copy(update={"source": Source(uri="hf://org/gone@main")})
    assert found(ours) == [head("hf://org/base@main")] and found(pinned, gone) == []
    build(second)
    assert found(ours) == []
    adapted = ours.model_copy(update={"adapter": "hf://org/lora@next"})
    fetched = hub.push("org/lora", weights | {"adapter_config.json": b"{}"}, reference="next")
    assert fetched and found(adapted) == []  # there is no adapter in it
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"\x00" * 8}
    hub.push("org/lora", files, reference="next")
    assert found(adapted) == [head("hf://org/lora@next")]
    hub.push("org/base", weights | {"config.json": b"{ }"})
    assert found(adapted) == [head("hf://org/base@main", tuned=False), head("hf://org/lora@next")]
    hub.unavailable = 99
    assert found(ours) == []


def test_an_event_may_say_where_its_sender_is_in_a_trace() -> None:
    payload: dict[str, Any] = {"model": "tiny", "revision": "v2"}
    assert "traceparent" not in read_event(payload).model_dump(exclude_none=True)
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    assert read_event({**payload, "traceparent": traceparent}).traceparent == traceparent
    with pytest.raises(EventRefused, match=r"traceparent: .*00-TRACE-SPAN-FLAGS"):
        read_event({**payload, "traceparent": "00-abc"})


def test_a_repository_that_the_hub_calls_otherwise_is_found_by_both_names(
    fleet: Fleet, hub: Hub, tmp_path: Path
) -> None:
    access = Access(hub_endpoint=hub.url)
    files = {"model.safetensors": struct.pack("<Q", 2) + b"{}", "config.json": b"{}"}
    hub.push("other/new", files)
    hub.renamed["org/base"] = "other/new"
    resolved = resolve(Source(uri="hf://org/base@main"), access)
    assert resolved.renamed == "other/new" and resolved.pin["repository"] == "org/base"
    assert {file.path for file in fetch(resolved, tmp_path, lambda done, total: None, access)} == set(files)
    assert not resolve(Source(uri="hf://other/new@main"), access).renamed

    renames, ours = Renames(fleet.store.bucket), model().model_copy(update={"targets": ("test",)})
    fleet.release(fleet.rebuild())
    assert [found.address for found in moved(fleet.store.bucket, [ours], access)] == ["hf://org/base@main"]
    assert renames.former("other/new") == ("org/base",) and renames.former("org/base") == ()
    assert "other/new" in renames.note_found(resolved)


def test_former_names_are_kept_in_order_and_within_a_bound(bucket: Bucket) -> None:
    renames = Renames(bucket)
    for number in range(30):
        renames.note(f"org/n{number}", f"org/n{number + 1}")
        renames.note(f"org/n{number}", f"org/n{number + 1}")
    assert renames.former("org/n3") == ("org/n2", "org/n1", "org/n0")
    assert renames.former("org/n30") == tuple(f"org/n{number}" for number in range(29, 9, -1))
    renames.note("org/n1", "org/n0")
    assert renames.former("org/n0") == ("org/n1",)
