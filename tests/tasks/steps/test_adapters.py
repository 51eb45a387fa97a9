"""Adapters that requests choose, from their source to the repository of a release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StepFailed
from infra.s3.bucket import Bucket
from tasks.gguf.limits import model_limits
from tasks.models.source import Source
from tasks.models.spec import Model
from tasks.serving.settings import ServingSettings
from tasks.steps.assemble import assemble
from tasks.steps.context import Context
from tasks.steps.fetch import fetch, snapshot_identity
from tasks.steps.plan import Plan
from tasks.steps.resolve import ResolvedWeights, resolve_weights
from tasks.steps.workspace import Workspace
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.reporter import Reporter
from tests.tasks.lora.small_adapters import write_adapter
from tests.tasks.lora.test_requested import QUERY, write_gguf

RUNTIME = {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 1}


def context(bucket: Bucket, folder: Path, said: list[str] | None = None) -> Context:
    reporter = Reporter(say=(said if said is not None else list[str]()).append)
    return Context(ArtifactStore(bucket), Workspace(folder), "", 5.0, reporter)


def planned(recipe: dict[str, Any], source: str, adapters: dict[str, Path]) -> tuple[Plan, ResolvedWeights]:
    model = Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": source},
            "recipe": recipe,
            "adapters": {name: f"file://{folder}" for name, folder in adapters.items()},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )
    # The hub that such a source names is nowhere.
    local = Source(uri=source if source.startswith("file://") else next(iter(model.adapters.values())))
    weights = resolve_weights(model.model_copy(update={"source": local}))
    return weights.plan(model), weights


def test_a_release_is_made_of_the_engine_and_its_adapters(bucket: Bucket, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    write_gguf(engine / "model.gguf", context_length=512, embedding_length=16, vocab_size=8)
    limits = vars(model_limits(engine / "model.gguf")) | {"has_chat_template": True}
    (engine / "limits.json").write_text(json.dumps(limits))
    adapters = {
        name: write_adapter(tmp_path / name, QUERY, layers=1, seed=at) for at, name in enumerate(("sql", "chat"))
    }
    recipe = {"kind": "llamacpp"}
    plan, weights = planned(recipe, f"file://{engine}/model.gguf", adapters)
    here = context(bucket, tmp_path / "work")
    here.store.publish(plan.engine_ref, plan.engine, engine, inputs={}, producer=here.producer("build"))
    for resolved in weights:
        fetch(here, plan, resolved)
    made = assemble(here, plan).artifact
    assert made is not None and assemble(here, plan).cached
    assert set(made.manifest.inputs) == {"engine", "adapter.chat", "adapter.sql"}
    assert made.manifest.inputs["adapter.sql"] == f"snapshot/{snapshot_identity(weights.adapters['sql']).digest}"
    files = {file.path for file in made.manifest.files}
    assert {f"llm/1/adapters/{name}/adapter.gguf" for name in adapters} < files
    settings = ServingSettings.from_json(here.store.read(made, "llm/1/serving.json").decode())
    assert settings.adapters == ("chat", "sql")
    # Another adapter is another release of the same engine.
    changed = write_adapter(tmp_path / "sql", QUERY, layers=1, seed=7)
    again, _ = planned(recipe, f"file://{engine}/model.gguf", {**adapters, "sql": changed})
    assert (again.engine, again.repository) == (plan.engine, again.repository) and again.repository != plan.repository


def test_an_adapter_that_no_engine_takes_is_refused_when_it_was_fetched(bucket: Bucket, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = {"kind": "trt-engine", "runtime": RUNTIME, "lora": {"target_modules": ["attn_q"], "max_rank": 8}}
    adapters = {"sql": write_adapter(tmp_path / "sql", QUERY, layers=1, seed=1, rank=16)}
    plan, weights = planned(recipe, "hf://some/llama@main", adapters)
    for _ in ("fetched", "found in the store"):
        with pytest.raises(StepFailed) as caught:
            fetch(context(bucket, tmp_path / "work", said), plan, weights.adapters["sql"])
        assert caught.value.code == "adapter-unfit" and "rank is 16" in caught.value.message
    # The same files as a model's own weights are no business of the check.
    assert fetch(context(bucket, tmp_path / "work"), replace(plan, adapters={}), weights.adapters["sql"]).artifact


def test_an_adapter_that_nobody_can_merge_is_refused_when_it_was_fetched(bucket: Bucket, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sql", QUERY, layers=1, seed=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    plan, weights = planned({"kind": "llamacpp"}, "hf://some/llama@main", {"sql": folder})
    adapter = weights.adapters["sql"]
    merging = ResolvedWeights(weights.source, adapter).plan(plan.model.model_copy(update={"adapters": {}}))
    with pytest.raises(StepFailed) as caught:
        fetch(context(bucket, tmp_path / "work"), merging, adapter)
    assert caught.value.code == "adapter-unfit" and "IA3" in caught.value.message


def test_what_is_small_is_fetched_before_what_takes_hours(tmp_path: Path) -> None:
    adapters = {"sql": write_adapter(tmp_path / "sql", QUERY, layers=1, seed=1)}
    _, weights = planned({"kind": "llamacpp"}, "hf://some/llama@main", adapters)
    assert [*replace(weights, adapter=weights.adapters["sql"])][-1] is weights.source
    assert next(iter(weights)) is weights.adapters["sql"]


@pytest.mark.parametrize(
    ("base", "warned"), [("acme/other", True), ("Some/Llama", False), ("/home/somebody/llama", False), (None, False)]
)
def test_an_adapter_of_another_base_is_taken_with_a_warning(
    base: str | None, warned: bool, bucket: Bucket, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = write_adapter(tmp_path / "sql", QUERY, layers=1, seed=1, base_model_name_or_path=base)
    plan, weights = planned({"kind": "llamacpp"}, "hf://some/llama@main", {"sql": folder})
    fetch(context(bucket, tmp_path / "work", said), plan, weights.adapters["sql"])
    assert ["acme/other" in line for line in said if "hf://some/llama@main" in line] == [True] * warned


def test_of_a_large_file_the_beginning_is_read(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "large").write_bytes(b"beginning" + bytes(91))
    here, identity = context(bucket, tmp_path / "work"), Identity({"source": "large"})
    artifact = here.store.publish(
        ArtifactRef("engine", identity.digest), identity, folder, inputs={}, producer=here.producer("build")
    )
    for most in (9, 100):
        found = here.store.read_beginning(artifact, "large", tmp_path / "copy", most)
        assert found.read_bytes() == b"beginning" + bytes(91)
