"""What versions mean for models, and in which order models move: without servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from packaging.version import Version
from pydantic import ValidationError

from infra.images import Image
from infra.package_index import Published
from tasks.models.spec import Model
from tasks.models.updates import Updates
from tasks.watch.record import FailedRebuilds, Followed, WatchRecord, subject_of
from tasks.watch.verdict import Offer, Row, judge, offers, version_in_use
from tasks.watch.waves import RebuildRun, Start, due, next_wave, run_key, settled, tried_again


def model(name: str = "tiny", version: str = "1.1.0", kind: str = "trt-engine", **changes: Any) -> Model:
    limits = {"max_input_len": 64, "max_seq_len": 128, "max_batch_size": 4, "max_num_tokens": 128}
    runtime = {"tensorrt_llm": version, "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
    recipe = changes.pop("recipe", {})
    document = {
        "name": name,
        "source": {"uri": "hf://org/repo@main"},
        "recipe": {"kind": kind, "runtime": runtime, **limits, **recipe},
        "updates": {"policy": "stable"},
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 8, "expect": {"min_tokens": 1}}],
    }
    return Model.model_validate({**document, **changes})


def offered(
    *versions: str, yanked: Mapping[str, str] | None = None, without: tuple[str, ...] = ()
) -> tuple[Offer, ...]:
    """Versions that all have an image, but those `without`."""
    images = {Version(v): Image(f"triton:{v}", Version(v)) for v in versions if v not in without}
    return offers([Published(Version(v), (yanked or {}).get(v)) for v in versions], images, avoid=("1.1.9",))


def verdicts(rows: tuple[Row, ...]) -> list[tuple[str, str]]:
    return [(row.version, row.verdict) for row in rows]


VERSIONS = ("1.0.0", "1.1.0", "1.1.9", "1.2.0", "1.2.1", "1.2.2", "1.3.0rc1", "1.3.0", "1.4.0rc1", "1.4.0rc2")


def test_each_version_down_to_the_one_to_take() -> None:
    rows = judge(model(), "1.1.0", offered(*VERSIONS, yanked={"1.2.2": "bad kernels"}, without=("1.2.1",)))
    assert verdicts(rows) == [
        ("1.4.0rc2", "held back"),
        ("1.3.0", "kind changes"),
        ("1.2.2", "held back"),
        ("1.2.1", "not yet available as image"),
        ("1.2.0", "rebuild"),
    ]
    reasons = {row.version: row.reason for row in rows}
    assert reasons["1.4.0rc2"] == "a pre-release, and the policy is stable"
    assert "kind llmapi takes this recipe" in reasons["1.3.0"]
    assert reasons["1.2.2"] == "withdrawn from the index: bad kernels"
    assert reasons["1.2.0"] == "in triton:1.2.0"


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ({"policy": "pinned"}, [("1.4.0rc2", "held back")]),
        (
            {"policy": "stable", "range": "<1.2"},
            [("1.4.0rc2", "held back"), ("1.3.0", "held back"), ("1.1.9", "held back")],
        ),
        ({"policy": "range", "range": "==1.2.*"}, [("1.4.0rc2", "held back"), ("1.2.2", "rebuild")]),
        ({"policy": "pre", "range": "<1.3"}, [("1.4.0rc2", "held back"), ("1.2.2", "rebuild")]),
    ],
)
def test_the_policy_of_the_file_decides(updates: dict[str, str], expected: list[tuple[str, str]]) -> None:
    assert verdicts(judge(model(updates=updates), "1.1.0", offered(*VERSIONS))) == expected


def test_the_llm_api_goes_on_where_engines_end() -> None:
    known = offered(*VERSIONS, "2.0.0")
    (row,) = judge(model(kind="llmapi"), "1.1.0", known)
    assert (row.version, row.verdict) == ("2.0.0", "rebuild")
    pre = model(kind="llmapi", updates={"policy": "pre", "range": "<2"})
    assert verdicts(judge(pre, "1.1.0", known))[-1] == ("1.4.0rc2", "rebuild")


def test_versions_that_cannot_make_it() -> None:
    unknown = judge(model(version="0.8.0"), "0.8.0", offered("0.99.0"))
    assert verdicts(unknown) == [("0.99.0", "unsupported")] and "options" in unknown[0].reason
    # int8_wo is for engines alone.
    weights = judge(model(recipe={"quantization": "int8_wo"}), "1.1.0", offered("1.3.0"))
    assert weights[0].verdict == "kind changes" and "int8_wo is for TensorRT engines alone" in weights[0].reason
    # The recipe passes plugin arguments that the newer release no longer has.
    (dropped,) = judge(model(version="0.12.0", recipe={"plugins": {"enable_xqa": True}}), "0.12.0", offered("0.16.0"))
    assert dropped.verdict == "unsupported" and "enable_xqa" in dropped.reason


def test_nothing_to_take() -> None:
    (newest,) = judge(model(), "1.1.0", offered("1.0.0", "1.1.0"))
    assert (newest.verdict, newest.version) == ("unaffected", "1.1.0")
    gguf = Model.model_validate(
        {
            "name": "gguf",
            "source": {"uri": "hf://org/repo@main"},
            "recipe": {"kind": "llamacpp", "quantization": "q8_0"},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 8, "expect": {"min_tokens": 1}}],
        }
    )
    assert version_in_use(gguf, None) is None
    assert judge(gguf, None, offered(*VERSIONS))[0].verdict == "unaffected"


def test_the_newer_of_file_and_watch_is_in_use() -> None:
    stable = model(version="1.1.0")
    assert version_in_use(stable, None) == "1.1.0"
    assert version_in_use(stable, "1.2.1") == "1.2.1"
    assert version_in_use(model(version="1.2.1"), "1.2.0") == "1.2.1"
    # Who pins a model, or narrows its range, has the last word.
    assert version_in_use(model(updates={"policy": "pinned"}), "1.2.1") == "1.1.0"
    assert version_in_use(model(updates={"policy": "stable", "range": "<1.2"}), "1.2.1") == "1.1.0"


@pytest.mark.parametrize(
    "updates",
    [
        {"policy": "range"},
        {"policy": "stable", "range": "new"},
        {"policy": "pinned", "canary": True},
        {"policy": "all"},
    ],
)
def test_updates_that_mean_nothing_are_mistakes(updates: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Updates.model_validate(updates)


class Fleet:
    """Five models that take 1.2.1, and what became of their rebuilds."""

    def __init__(self) -> None:
        self.models = {name: model(name) for name in ("a", "b", "d", "e")}
        self.models["c"] = model("c", updates={"policy": "stable", "canary": True})
        self.record, self.runs = WatchRecord(), dict[str, RebuildRun]()

    def watch(self, places: int = 2) -> list[Start]:
        """One pass; the rebuilds that it starts then run."""
        rows = self.due()
        self.record = settled(self.models, rows, self.record, self.runs)
        self.rows, starts = next_wave(self.models, self.due(), self.record, self.runs, places)
        self.runs |= {start.key: RebuildRun(f"run of {start.key}", "going") for start in starts}
        return starts

    def due(self) -> dict[str, Row]:
        table: dict[str, tuple[Row, ...]] = {}
        for name, each in self.models.items():
            followed = self.record.followed.get(name)
            table[name] = judge(each, version_in_use(each, followed and followed.version), offered("1.2.1"))
        return due(table)

    def end(self, name: str, state: Any, reason: str = "") -> None:
        (key,) = [key for key, run in self.runs.items() if key.startswith(f"watch:{name}:") and run.state == "going"]
        self.runs[key] = RebuildRun(self.runs[key].id, state, reason)


def names(starts: list[Start]) -> list[str]:
    return [start.model for start in starts]


def test_the_canary_first_then_the_rest_a_few_at_a_time() -> None:
    fleet = Fleet()
    assert names(fleet.watch()) == ["c"]
    assert "as the canary" in fleet.rows["c"].reason and "waits for the canary c" in fleet.rows["a"].reason
    assert names(fleet.watch()) == []
    fleet.end("c", "completed")
    assert names(fleet.watch()) == ["a", "b"]
    assert fleet.record.followed["c"].version == "1.2.1" and "c" not in fleet.rows
    assert names(fleet.watch(places=0)) == []
    fleet.end("b", "completed")
    assert names(fleet.watch(places=1)) == ["d"]
    for name in ("a", "d"):
        fleet.end(name, "completed")
    assert names(fleet.watch()) == ["e"]
    fleet.end("e", "completed")
    assert names(fleet.watch()) == [] and set(fleet.record.followed) == set("abcde")
    before = fleet.record
    assert names(fleet.watch()) == [] and fleet.record == before


def test_without_a_named_canary_it_is_the_first() -> None:
    fleet = Fleet()
    del fleet.models["c"]
    assert names(fleet.watch()) == ["a"]


def test_a_failed_canary_holds_all_back_until_asked_or_changed() -> None:
    fleet = Fleet()
    fleet.watch()
    fleet.end("c", "failed", "the gate refused it")
    assert names(fleet.watch()) == [] and names(fleet.watch()) == []
    assert {row.verdict for row in fleet.rows.values()} == {"held back"}
    assert fleet.rows["a"].reason == "the canary c failed: the gate refused it"
    assert len(fleet.runs) == 1

    fleet.record = tried_again(fleet.record, ["c"])
    assert names(fleet.watch()) == ["c"] and len(fleet.runs) == 2
    fleet.end("c", "failed", "still refused")
    assert names(fleet.watch()) == []
    # A corrected file is tried without being asked for.
    changed = fleet.models["c"].model_dump(by_alias=True)
    changed["serving"] = {"slots": 2}
    fleet.models["c"] = Model.model_validate(changed)
    assert names(fleet.watch()) == ["c"]


def test_what_crashed_is_tried_three_times() -> None:
    fleet = Fleet()
    for _ in range(3):
        assert names(fleet.watch()) == ["c"]
        fleet.end("c", "crashed", "its process is gone")
    assert names(fleet.watch()) == [] and "its process is gone" in fleet.rows["c"].reason
    assert len(set(fleet.runs)) == 3


def test_two_passes_at_once_ask_for_the_same_runs() -> None:
    fleet = Fleet()
    rows = fleet.due()
    once = next_wave(fleet.models, rows, fleet.record, {}, 2)[1]
    assert once == next_wave(fleet.models, rows, fleet.record, {}, 2)[1]
    # Both then write what they saw; the second write changes nothing.
    runs = {once[0].key: RebuildRun("1", "failed", "no")}
    first = settled(fleet.models, rows, fleet.record, runs)
    assert settled(fleet.models, rows, first, runs) == first


def test_models_that_are_gone_are_forgotten() -> None:
    gone = WatchRecord(
        followed={"old": Followed(version="1.2.1", flow_run="1")},
        attempts={"old": FailedRebuilds(version="1.2.1", subject="x", count=1, over=True, reason="", flow_run="1")},
    )
    kept = settled({"tiny": model()}, {}, gone, {})
    assert not kept.followed and not kept.attempts
    # One whose file cannot be read is not gone: mended, it would go back to the version that its file names.
    assert settled({"tiny": model()}, {}, gone, {}, {"old"}) == gone


def test_the_key_of_a_run_ignores_words_and_policy() -> None:
    row = Row("tiny", "1.1.0", "1.2.1", "rebuild", "")
    plain, worded = model(), model(description="new words", labels={"team": "search"}, updates={"policy": "pre"})
    assert run_key(plain, row, WatchRecord()) == run_key(worded, row, WatchRecord())
    assert subject_of(plain) != subject_of(model(version="1.0.0"))
