"""From an engine to the LLM API under one public name: what is asked for, and what the release's record says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.errors import SpecError, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.releases import release_lines, releases
from tasks.models.overrides import Overridden, override
from tasks.models.recipe import LlmApiRecipe
from tasks.models.spec import Model
from tasks.targets.changes import changes
from tasks.targets.release import Intent, Result, changes_since
from tasks.targets.target import Target


def model(kind: str = "trt-engine", serving: dict[str, Any] | None = None, **recipe: Any) -> Model:
    hardware = {"gpu": "NVIDIA H200", "arch": "sm90", "gpus": 4}
    runtime = {"tensorrt_llm": "1.2.1", **hardware, **recipe.pop("runtime", {})}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": kind, **recipe} if kind == "llamacpp" else {"kind": kind, "runtime": runtime, **recipe},
            "serving": {} if serving is None else {"tensorrt_llm": serving},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def test_an_engines_recipe_becomes_one_for_the_llm_api() -> None:
    before = model(
        serving={
            "kv_cache_reuse": True,
            "queue_size": 7,
            "lora_cache": {"prefetch_folder": "/adapters", "host_bytes": 5},
        },
        quantization="fp8",
        lora={"target_modules": ["attn_q"], "max_rank": 8},
        plugins={"gemm_plugin": "auto"},
        extra_args={"build": ["--x"]},
    )
    asked = override(before, recipe={"kind": "llmapi", "tp_size": "2"}, tensorrt_llm="1.3.0")
    recipe, serving = asked.model.recipe, asked.model.serving.tensorrt_llm
    assert isinstance(recipe, LlmApiRecipe) and serving is not None and serving.lora_cache is not None
    assert (recipe.quantization, recipe.tp_size, recipe.runtime.tensorrt_llm) == ("fp8", 2, "1.3.0")
    assert recipe.llm_args == {
        "kv_cache_config": {"tokens_per_block": 64},
        "lora_config": {"lora_target_modules": ["attn_q"], "max_lora_rank": 8},
    }
    assert (serving.kv_cache_reuse, serving.queue_size, serving.lora_cache.host_bytes) == (True, None, 5)
    assert asked.lost == {
        "plugins": {"gemm_plugin": "auto"},
        "extra_args.build": ["--x"],
        "serving.tensorrt_llm.queue_size": 7,
        "serving.tensorrt_llm.lora_cache.prefetch_folder": "/adapters",
    }
    assert (asked.model.name, asked.model.prompts) == (before.name, before.prompts)
    assert override(before, recipe={"kind": "llmapi"}).model.recipe.model_dump()["runtime"]["tensorrt_llm"] == "1.2.1"


def test_what_is_asked_of_the_same_kind_loses_nothing() -> None:
    for overrides in ({"kind": "trt-engine", "tp_size": "2"}, {"tp_size": "2"}):
        asked = override(model(), recipe=overrides, tensorrt_llm="1.1.0")
        assert asked == Overridden(model(tp_size=2, runtime={"tensorrt_llm": "1.1.0"})) and asked.lost == {}


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("trt-engine", "llamacpp"), ("llmapi", "trt-engine"), ("llamacpp", "llmapi"), ("trt-engine", "onnx")],
)
def test_no_other_kind_changes(kind: str, asked: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(model(kind), recipe={"kind": asked})
    assert caught.value.code == "kind-changes" and kind in caught.value.message and asked in caught.value.message


def test_what_the_llm_api_cannot_do_is_told_with_a_way_on() -> None:
    old = model(runtime={"tensorrt_llm": "0.8.0"})
    with pytest.raises(SpecError) as caught:
        override(old, recipe={"kind": "llmapi"})
    assert "recipe.runtime: " in caught.value.message and "--runtime" in caught.value.hint
    assert override(old, recipe={"kind": "llmapi"}, tensorrt_llm="1.0.0").model.kind == "llmapi"

    with pytest.raises(SpecError) as caught:
        override(model(quantization="int8_wo"), recipe={"kind": "llmapi"}, tensorrt_llm="1.3.0")
    assert "recipe.quantization: int8_wo" in caught.value.message and "quantization" in caught.value.hint
    assert override(
        model(quantization="int8_wo"), recipe={"kind": "llmapi", "quantization": "fp8"}, tensorrt_llm="1.3.0"
    ).translation
    with pytest.raises(UsageError) as changes:
        override(model(quantization="int8_wo"), tensorrt_llm="1.3.0")
    assert changes.value.code == "kind-changes" and "recipe.quantization: int8_wo" in changes.value.hint

    with pytest.raises(SpecError) as caught:
        override(model(), recipe={"kind": "llmapi", "fused_mlp": "true"})
    assert "fused_mlp" in caught.value.message and "max_batch_size" in caught.value.hint


def test_changes_are_told_field_by_field() -> None:
    old: dict[str, Any] = {"a": 1, "gone": "x", "nested": {"deep": {"b": [1]}, "same": True}, "empty": {}, "none": None}
    new: dict[str, Any] = {"a": 2, "nested": {"deep": {"b": [1, 2], "c": False}, "same": True}, "none": []}
    assert [str(change) for change in changes(old, new)] == [
        "a: 1 → 2",
        "nested.deep.b: [1] → [1, 2]",
        "nested.deep.c: nothing → false",
        'gone: "x" → nothing',
    ]


def intent(release: int, asked: Overridden, live: Intent | None = None) -> Intent:
    recipe, serving = (part.model_dump(mode="json") for part in (asked.model.recipe, asked.model.serving))
    return Intent(
        model="tiny",
        release=release,
        repository=f"repository/{0:064x}",
        digest="d",
        recipe=recipe,
        serving=serving,
        changes=changes_since(live, recipe, serving),
        lost=dict(asked.lost),
        source="s",
        flow_run="",
    )


def test_the_record_of_the_move_says_what_changed_and_what_was_lost(bucket: Bucket) -> None:
    target = Target(bucket, "test")
    before = model(serving={"queue_size": 7}, fused_mlp=False)
    first = target.reserve("tiny", lambda number: intent(number, Overridden(before)))
    target.conclude("tiny", Result(release=1, state="passed"))
    moved = override(before, recipe={"kind": "llmapi", "max_batch_size": "32"}, tensorrt_llm="1.3.0")
    target.reserve("tiny", lambda number: intent(number, moved, first))
    found = releases(target, "tiny")
    row = found.rows[0].intent.model_dump(mode="json")
    assert row["lost"] == {"fused_mlp": False, "serving.tensorrt_llm.queue_size": 7}
    told = {change["field"]: (change["old"], change["new"]) for change in row["changes"]}
    assert told.pop("kind") == ("trt-engine", "llmapi")
    assert told.pop("runtime.tensorrt_llm") == ("1.2.1", "1.3.0")
    assert told.pop("max_batch_size") == (64, 32)
    assert told.pop("llm_args.kv_cache_config.tokens_per_block") == (None, 64)
    assert told.pop("serving.tensorrt_llm.queue_size") == (7, None)
    # Fields of engines alone.
    assert told.keys() < type(before.recipe).model_fields.keys() and all(new is None for _, new in told.values())
    lines = list(release_lines(found))
    assert "      changed max_batch_size: 64 → 32" in lines
    assert "      serving.tensorrt_llm.queue_size has no counterpart, and was 7" in lines


def test_records_of_the_version_before_can_be_read_and_compared(bucket: Bucket) -> None:
    target = Target(bucket, "test")
    recipe = {"kind": "llamacpp", "dtype": "float16", "quantization": "q8_0"}
    old = {"schema_version": 1, "model": "tiny", "release": 1, "repository": "r", "digest": "d", "recipe": recipe}
    old |= {"source": "s", "flow_run": "", "created": "2025-01-01T00:00:00Z"}
    bucket.create("targets/test/tiny/1/intent.json", json.dumps(old).encode())
    made = intent(2, Overridden(model("llamacpp", quantization="q4_0")), target.intent("tiny", 1))
    assert [str(change) for change in made.changes] == ['quantization: "q8_0" → "q4_0"']
    assert "quantization=q8_0" in next(iter(release_lines(releases(target, "tiny"))))
