from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from infra.s3.bucket import Bucket
from tasks.models.spec import Model
from tasks.steps.context import Context
from tasks.steps.convert import convert
from tasks.steps.plan import Plan
from tasks.steps.workspace import Workspace
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.reporter import Reporter

PEFT = Path(__file__).parents[1] / "lora" / "peft"


@pytest.mark.parametrize(
    ("base", "source", "warned"),
    [
        ("acme/other", "hf://some/llama@main", True),
        ("Some/Llama", "hf://some/llama@main", False),
        ("/home/somebody/llama", "hf://some/llama@main", False),
        ("./llama", "hf://some/llama@main", False),
        (None, "hf://some/llama@main", False),
        ("acme/other", "s3://bucket/llama", False),
    ],
)
def test_an_adapter_of_another_base_is_merged_with_a_warning(
    base: str | None, source: str, warned: bool, bucket: Bucket, tmp_path: Path
) -> None:
    runtime = {"tensorrt_llm": "1.3.0", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
    model = Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": source},
            "adapter": "hf://some/adapter@main",
            "recipe": {"kind": "llmapi", "runtime": runtime},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )
    plan = Plan.of(model, Identity({"source": source}), Identity({"source": base}))
    workspace = Workspace(tmp_path / "work")
    for ref, folder in zip(plan.snapshots.values(), (PEFT / "base", PEFT / "patterns"), strict=True):
        shutil.copytree(folder, workspace.folder(ref))
    (workspace.folder(plan.snapshots["snapshot"]) / "tokenizer.json").write_text("{}")
    config = workspace.folder(plan.snapshots["adapter"]) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))

    said: list[str] = []
    done = convert(Context(ArtifactStore(bucket), workspace, "", 5.0, Reporter(say=said.append)), plan)
    assert done.artifact is not None
    assert ["acme/other" in line for line in said if source in line] == [True] * warned
