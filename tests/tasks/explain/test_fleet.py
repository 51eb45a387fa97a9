"""The fleet at a glance, from a real store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.httpsession import URLLib3Session
from packaging.version import Version

from infra.images import Image
from infra.s3.bucket import Bucket
from tasks.explain.fleet import read_fleet
from tasks.explain.fleet_view import Fleet, ModelRow, Run
from tasks.explain.seen_records import KEY, SeenRecords
from tasks.finetuned.records import TunedWeights, accept
from tasks.models.catalogue import Catalogue
from tasks.models.spec import Model
from tasks.steps.retire import retire
from tasks.targets.approval import Approval, ApprovalRequest
from tasks.targets.approvals import Approvals
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.traffic import Shift, shift
from tasks.targets.watch_record import Watching, WatchOutcome, WatchRecords
from tasks.watch.record import FailedRebuilds, Followed, WatchRecord, move_record, subject_of
from tasks.watch.verdict import Offer


def model(name: str = "tiny", **changes: Any) -> Model:
    runtime = {"tensorrt_llm": "1.1.0", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
    limits = {"max_input_len": 64, "max_seq_len": 128, "max_batch_size": 4, "max_num_tokens": 128}
    document: dict[str, Any] = {
        "name": name,
        "source": {"uri": "hf://org/repo@main"},
        "recipe": {"kind": "trt-engine", "runtime": runtime, **limits, **changes.pop("recipe", {})},
        "targets": ["test"],
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 8, "expect": {"min_tokens": 1}}],
    }
    return Model.model_validate({**document, **changes})


def catalogue(*models: Model, broken: tuple[str, ...] = ()) -> Catalogue:
    return Catalogue({each.name: each for each in models}, {name: (f"{name}.yaml:1: is empty",) for name in broken})


class House:
    """A target whose models have releases, and nodes that report."""

    def __init__(self, bucket: Bucket) -> None:
        self.target = Target(bucket, "test")

    def release(self, of: Model, state: Any = "passed", *, public: bool = True, planned: bool = True) -> int:
        recipe: dict[str, Any] = of.recipe.model_dump(mode="json")
        if planned:  # what a rebuild fills in
            recipe = {**recipe, "architecture": "LlamaForCausalLM"}
            recipe["runtime"] = {**recipe["runtime"], "tensorrt": "10.11.0"} if "runtime" in recipe else None

        def intent(number: int) -> Intent:
            return Intent(
                model=of.name,
                release=number,
                repository=f"repository/{'0' * 64}",
                digest="d",
                recipe=recipe,
                serving=of.serving.model_dump(mode="json"),
                source=of.origin,
                adapters=dict(of.adapters),
                flow_run="",
            )

        number = self.target.reserve(of.name, intent).release
        if state is not None:
            self.target.conclude(
                of.name, Result(release=number, state=state, reason="" if state == "passed" else "why")
            )
        if public:
            self.target.move(of.name, lambda current: current.promoted(number))
        return number

    def node(self, name: str, releases: dict[str, int], **more: Any) -> None:
        models = {
            name: ModelReport(public=number, releases={number: ReleaseReport(state="ready")}, **more)
            for name, number in releases.items()
        }
        report = NodeReport(
            node=name,
            target="test",
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=1,
            memory_available_bytes=1,
            models=models,
        )
        self.target.report(report)

    def look(self, *models: Model, broken: tuple[str, ...] = (), **options: Any) -> Fleet:
        return read_fleet(self.target.bucket, catalogue(*models, broken=broken), **options)

    def row(self, *models: Model, **options: Any) -> ModelRow:
        (row,) = self.look(*models, **options).models
        return row


@pytest.fixture
def house(bucket: Bucket) -> House:
    return House(bucket)


def test_what_is_live_and_where(house: House) -> None:
    house.release(model())
    number = house.release(model())
    assert house.row(model()).states == ("down",)
    house.node("one", {"tiny": number})
    house.node("two", {"tiny": 1}, error="no memory")
    row = house.row(model())
    assert (row.release, row.kind, row.runtime, row.verdict) == (2, "trt-engine", "1.1.0", "passed")
    assert (row.nodes_ready, row.nodes, row.states) == (1, 2, ("degraded", "alert"))
    assert row.alerts == ("node two: no memory",) and not row.stale and row.newest is None
    assert row.age_s is not None and 0 <= row.age_s < 60
    house.node("two", {"tiny": number})
    assert house.row(model()).states == ("live",)
    assert [node.state for node in house.look().nodes] == ["alive", "alive"]
    # Nobody has heard of them for so long.
    silent = house.look(model(), node_lifetime_s=-1)
    assert [node.state for node in silent.nodes] == ["silent", "silent"]
    assert (silent.models[0].nodes_ready, silent.models[0].nodes, silent.models[0].serving) == (0, 2, "down")


def test_a_retired_model_is_shown_to_who_asks_and_while_it_comes_back(house: House) -> None:
    house.release(model())
    retire(house.target.bucket, "tiny", ["test"])
    for files in ((), (model(),)):
        assert house.look(*files).only().models == ()
        (row,) = house.look(*files).only(state="retired").models
        assert (row.serving, row.release, row.alerts) == ("retired", None, ())
    running = Run("1", "rebuild", "tiny", "Running", 1.0)
    assert len(house.look(model(), runs=(running,)).only().models) == 1
    number = house.release(model(), None, public=False)
    house.target.move("tiny", lambda current: current.with_candidate(number))
    assert [row.states for row in house.look(model()).only().models] == [("retired", "candidate")]
    house.target.move("tiny", lambda current: current.promoted(number))
    assert house.row(model()).states == ("down",)


def test_files_and_releases_without_each_other(house: House) -> None:
    number = house.release(model())
    house.node("one", {"tiny": number})
    assert house.row().states == ("live", "alert", "no-file") and house.row().file == "missing"
    assert "`enginehouse retire tiny`" in house.row().alerts[0]
    broken = house.row(broken=("tiny",))
    assert broken.states == ("live", "alert", "broken-file") and broken.alerts == ("tiny.yaml:1: is empty",)
    rows = house.look(model(), model("new"), broken=("other",)).models
    assert [(row.model, row.target, row.serving) for row in rows] == [
        ("new", "test", "never"),
        ("other", "", "never"),
        ("tiny", "test", "live"),
    ]
    (elsewhere, here) = house.look(model(targets=["east"])).models
    assert (elsewhere.target, elsewhere.states, elsewhere.file) == ("east", ("never",), "there")
    assert here.alerts == ("its file does not name the target test",)
    # What is neither live nor wanted is history.
    house.target.move("tiny", lambda current: current.model_copy(update={"public": None}))
    assert house.look().models == ()


@pytest.mark.parametrize(
    ("changes", "what", "why"),
    [
        ({"recipe": {"max_batch_size": 8}}, "file", "max_batch_size: 4 → 8"),
        ({"serving": {"slots": 4}}, "file", "serving.slots: 8 → 4"),
        ({"source": {"uri": "hf://org/other@main"}}, "weights", "its file names hf://org/other@main"),
        (
            {"recipe": {"runtime": {"tensorrt_llm": "1.2.0", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}}},
            "version",
            "TensorRT-LLM 1.1.0 → 1.2.0",
        ),
    ],
)
def test_what_is_stale_and_why(house: House, changes: dict[str, Any], what: str, why: str) -> None:
    house.release(model())
    row = house.row(model(**changes))
    assert [(each.what, each.why) for each in row.stale] == [(what, why)] and "stale" in row.states
    house.release(model(**changes))
    assert house.row(model(**changes)).stale == ()


def test_versions_that_the_policy_accepts(house: House) -> None:
    offered = [Offer(Version(text), image=Image(f"triton:{text}", Version(text))) for text in ("1.2.1", "1.1.0")]
    follows = model(updates={"policy": "stable"})
    house.release(follows)
    assert house.row(model(), offered=offered).stale == ()  # pinned
    (reason,) = house.row(follows, offered=offered).stale
    assert reason.what == "version" and "1.2.1" in reason.why
    move_record(
        house.target.bucket,
        lambda _: WatchRecord(
            followed={"tiny": Followed(version="1.2.0", flow_run="")},
            attempts={
                "tiny": FailedRebuilds(
                    version="1.2.1", subject=subject_of(follows), count=1, over=True, reason="no space", flow_run=""
                )
            },
        ),
    )
    row = house.row(follows)
    assert [each.why for each in row.stale] == ["TensorRT-LLM 1.1.0 → 1.2.0"]
    assert row.alerts == ("its rebuild with TensorRT-LLM 1.2.1 failed: no space",)


def test_weights_of_an_event(house: House) -> None:
    takes = model(accepts=["s3://weights/**"])
    house.release(takes)
    accept(
        house.target.bucket,
        TunedWeights(
            model="tiny",
            revision="r",
            asked="s3://weights/1",
            source="s3://weights/1",
            file_source=takes.origin,
            event="e",
        ),
    )
    (reason,) = house.row(takes).stale
    assert (reason.what, reason.why) == ("weights", "an event brought s3://weights/1")


def test_what_came_after_the_live_release(house: House) -> None:
    house.release(model())
    number = house.release(model(), "refused", public=False)
    row = house.row(model())
    assert row.newest is not None and (row.newest.release, row.newest.state, row.newest.reason) == (2, "refused", "why")
    assert "refused" in row.states
    number = house.release(model(), None, public=False)
    house.target.move("tiny", lambda current: current.with_candidate(number))
    assert "candidate" in house.row(model()).states
    approvals = Approvals(house.target, "tiny", number)
    approvals.ask(ApprovalRequest(release=number, timeout_s=60))
    house.target.conclude("tiny", Result(release=number, state="passed"))
    assert "waiting" in house.row(model()).states
    approvals.decide(Approval(release=number, state="rejected", by="eve"))
    row = house.row(model())
    assert row.newest is not None and row.newest.state == "refused" and "eve" in row.newest.reason


def test_a_candidate_that_its_canary_refused_is_refused_as_in_the_list_of_releases(house: House) -> None:
    house.release(model())
    number = house.release(model(), "passed", public=False)
    found = Shift(release=number, strategy="canary", state="refused", reason="late first tokens", share=0.1)
    shift(house.target, "tiny", number).create(found)
    newest = house.row(model()).newest
    assert newest is not None and (newest.state, newest.reason) == ("refused", "late first tokens")


def test_the_watch_over_the_live_release(house: House) -> None:
    number = house.release(model())
    watches = WatchRecords(house.target, "tiny")
    watches.begin(Watching(release=number))
    assert house.row(model()).watch == "watching"
    watches.conclude(WatchOutcome(release=number, state="failing", reason="slow"))
    row = house.row(model())
    assert row.watch == "failing" and "slow" in row.alerts[0]


def test_records_that_cannot_be_read_cost_their_own_model(house: House) -> None:
    house.release(model())
    house.release(model("other"))
    bucket = house.target.bucket
    bucket.put("targets/test/tiny/current.json", b"{")
    bucket.put("targets/test/other/1/result.json", json.dumps({"schema_version": 99}).encode())
    bucket.put("targets/test/nodes/one.json", b"{")
    fleet = house.look(model(), model("other"))
    other, tiny = fleet.models
    assert tiny.release is None and "targets/test/tiny/current.json" in tiny.alerts[0]
    assert other.release == 1 and other.verdict == "" and "99" in other.alerts[0]
    assert [node.state for node in fleet.nodes] == ["unreadable"]
    of_another = bucket.get("targets/test/other/1/intent.json")
    assert of_another is not None
    bucket.put("targets/test/tiny/current.json", b'{"public": 1}')
    bucket.put("targets/test/tiny/1/intent.json", of_another.body)
    tiny = house.look(model(), model("other")).models[1]
    assert tiny.release == 1 and "that of other release 1" in tiny.alerts[0] and not tiny.stale


def test_filters_and_runs(house: House) -> None:
    labelled, plain = model("a", labels={"team": "search", "tier": "gold"}), model("b", targets=["test", "east"])
    run = Run("id", "rebuild", "b", "Running", 3.0)
    fleet = house.look(labelled, plain, runs=(run,))
    assert [row.model for row in fleet.only(labels={"team": "search"}).models] == ["a"]
    assert fleet.only(labels={"team": "search", "tier": "tin"}).models == ()
    assert [row.target for row in fleet.only(target="east").models] == ["east"]
    assert [row.model for row in fleet.only(state="running", target="test").models] == ["b"]
    assert fleet.document()["runs"] and house.look(plain).document()["runs"] is None
    json.dumps(fleet.document())


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many requests of each method went to the store."""
    count: Counter[str] = Counter()
    send = URLLib3Session.send

    def counting(session: URLLib3Session, request: Any) -> Any:
        count[request.method] += 1
        return send(session, request)

    monkeypatch.setattr(URLLib3Session, "send", counting)
    yield count


def test_requests_do_not_grow_with_the_fleet(house: House, requests: Counter[str]) -> None:
    models = [model(f"m{number}") for number in range(12)]
    for each in models:
        house.release(each)
    for node in ("one", "two"):
        house.node(node, {each.name: 1 for each in models})
    bucket, looks = house.target.bucket, list[Fleet]()
    for changed in (False, False, True, False):
        if changed:
            house.release(models[0])
        requests.clear()
        seen = SeenRecords.load(bucket)
        looks.append(house.look(*models, seen=seen))
        seen.keep()
        if len(looks) == 1:
            continue
        # What was kept, two listings, two nodes and the watch's record; and three records and the keeping of a change.
        assert requests == ({"GET": 9, "PUT": 1} if changed else {"GET": 6})
    assert [row.states for row in looks[1].models] == [row.states for row in looks[0].models]
    assert looks[3].models[0].release == 2


def test_what_was_seen_counts_with_its_etag_alone(house: House) -> None:
    house.release(model())
    bucket = house.target.bucket
    for wrong in (
        b"{",
        b'{"schema_version": 99}',
        b'{"records": {"targets/test/tiny/current.json": {"etag": "", "record": {}}}}',
    ):
        bucket.put(KEY, wrong)
        assert house.look(model(), seen=SeenRecords.load(bucket)).models[0].release == 1
    seen = SeenRecords.load(bucket)
    house.look(model(), seen=seen)
    seen.keep()
    house.release(model())
    assert house.look(model(), seen=SeenRecords.load(bucket)).models[0].release == 2
    assert house.look(model(), seen=seen.again()).models[0].release == 2


def test_who_may_only_read_looks_all_the_same(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.errors import StoreError

    def refused(bucket: Bucket, key: str, body: bytes) -> str:
        raise StoreError("no", code="store-denied")

    house.release(model())
    monkeypatch.setattr(Bucket, "put", refused)
    seen = SeenRecords(house.target.bucket)
    assert house.look(model(), seen=seen).models
    seen.keep()
