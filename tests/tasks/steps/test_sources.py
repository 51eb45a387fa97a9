"""Sources of each kind, from their address to the checkpoint in the store."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.errors import EnginehouseError
from infra.s3.bucket import Bucket
from tasks.gguf.conversion import dequantize
from tasks.models.spec import Model
from tasks.sources.resolved import NO_ACCESS, Access
from tasks.steps.context import Context, Done
from tasks.steps.convert import convert
from tasks.steps.export import export
from tasks.steps.fetch import fetch
from tasks.steps.resolve import resolve_weights
from tasks.steps.workspace import Workspace
from tasks.store.artifact_store import ArtifactStore
from tasks.store.reporter import Reporter
from tests.standin import exporter
from tests.tasks.gguf.small_models import write
from tests.tasks.gguf.test_split import CONTENT, PARTS
from tests.tasks.sources.hub_server import Hub
from tests.tasks.sources.ngc_server import Ngc
from tests.tasks.sources.test_ngc import use

LLAMACPP = {"kind": "llamacpp", "dtype": "float16"}
LLMAPI = {"kind": "llmapi", "runtime": {"tensorrt_llm": "1.3.0", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}}


def tiny_safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"abcd"


def served(uri: str, recipe: Mapping[str, Any] = LLAMACPP, **source: Any) -> Model:
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": uri, **source},
            "recipe": recipe,
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def checkpoint(bucket: Bucket, folder: Path, model: Model, access: Access = NO_ACCESS) -> bytes:
    """Bring a model to its checkpoint, and again, which finds all of it. Returns the checkpoint's bytes."""
    store = ArtifactStore(bucket)

    def run(work: str) -> list[Done]:
        weights = resolve_weights(model, access)
        plan = weights.plan(model)
        context = Context(store, Workspace(folder / work), "run", 30)
        return [fetch(context, plan, weights.source, access), convert(context, plan)]

    assert [done.cached for done in run("once")] == [False, False]
    *_, again = run("again")
    assert again.cached and again.artifact is not None
    store.download(again.artifact, folder / "checkpoint", lambda done, total: None)
    return (folder / "checkpoint" / "model.gguf").read_bytes()


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, bytes]:
    """A model in three files."""
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "model.gguf", CONTENT, tensors_per_part=2)
    return {name: (folder / name).read_bytes() for name in PARTS}


def whole_checkpoint(folder: Path) -> bytes:
    """The checkpoint of the same model in one file."""
    whole = write(folder / "whole.gguf", CONTENT)
    dequantize(whole, folder / "expected.gguf", "float16", lambda done, total: None)
    return (folder / "expected.gguf").read_bytes()


def test_a_split_gguf_on_this_machine(bucket: Bucket, parts: dict[str, bytes], tmp_path: Path) -> None:
    model = served(f"file://{tmp_path}/parts/{PARTS[0]}")
    assert checkpoint(bucket, tmp_path, model) == whole_checkpoint(tmp_path)


def test_a_split_gguf_of_the_hub_whose_repository_was_renamed(
    bucket: Bucket, hub: Hub, parts: dict[str, bytes], tmp_path: Path
) -> None:
    hub.push("other/new", {"README.md": b"Quantized.", **{f"Q4_1/{name}": data for name, data in parts.items()}})
    hub.renamed["org/base"] = "other/new"
    model = served("hf://org/base@main", include=[f"Q4_1/{PARTS[0]}"])
    assert checkpoint(bucket, tmp_path, model, Access(hub_endpoint=hub.url)) == whole_checkpoint(tmp_path)


def test_a_model_of_ngc(
    bucket: Bucket, parts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ngc() as ngc:
        use(ngc, monkeypatch)
        ngc.upload("nvidia/nemo/tiny", "1.0", parts)
        ngc.truncated = 2
        assert checkpoint(bucket, tmp_path, served("ngc://nvidia/nemo/tiny@latest")) == whole_checkpoint(tmp_path)


@pytest.mark.parametrize(("form", "folder"), [("megatron", "iter_0000100/"), ("megatron", ""), ("nemo2", "")])
def test_a_checkpoint_of_a_training_framework_is_exported_first(
    bucket: Bucket, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, folder: str
) -> None:
    tools = {"megatron": "megatron-bridge==0.6.0", "nemo2": "nemo-toolkit==2.5.0"}
    made = exporter.make(tmp_path / "tool", *tools[form].split("=="))
    monkeypatch.setenv("ENGINEHOUSE_EXPORTER", made.python)
    monkeypatch.setenv("ENGINEHOUSE_EXPORTER_CHECKOUT", made.checkout)
    monkeypatch.setenv("NGC_API_KEY", "no tool sees it")
    weights = tiny_safetensors()
    commit = hub.push("org/trained", exporter.checkpoint(form, weights, folder))
    # The Hub's own Llama and DeepSeek have pickles and code, which nobody reads here.
    others = {"original/consolidated.00.pth": b"pickle", "modeling_base.py": b"pass", "model.safetensors": weights}
    index = {"model.safetensors.index.json": json.dumps({"weight_map": {"w": "model.safetensors"}}).encode()}
    hub.push("org/base", exporter.reference() | others | index)
    source: dict[str, Any] = {"form": form, "exporter": tools[form], "trust": ["pickle"]}
    like = {"like": "hf://org/base@main"} if form == "megatron" else {}
    model = served(f"hf://org/trained@{commit}", recipe=LLMAPI, **source, **like)
    access, store = Access(hub_endpoint=hub.url), ArtifactStore(bucket)
    said: list[str] = []

    def run(work: str) -> list[Done]:
        found = resolve_weights(model, access)
        plan = found.plan(model)
        context = Context(store, Workspace(tmp_path / work), "run", 30, Reporter(say=said.append))
        fetched = [fetch(context, plan, each, access) for each in found]
        return [*fetched, export(context, plan, found.exported), convert(context, plan)]

    assert not any(done.cached for done in run("once"))
    *_, exported, converted = again = run("again")
    assert all(done.cached for done in again)
    assert exported.artifact is not None and converted.artifact is not None
    taken = {file.path for file in exported.artifact.manifest.files}
    assert taken == {"config.json", "model.safetensors", "tokenizer.json"}
    store.download(exported.artifact, tmp_path / "hf", lambda done, total: None)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == weights
    assert set(exported.artifact.manifest.inputs) == {"checkpoint", *like}
    assert converted.artifact.manifest.inputs["snapshot"] == str(exported.artifact.ref)
    assert sum("hf" in line and ("export" in line or "nemo2_to_hf" in line) for line in said) == 1


def test_an_export_that_fails_says_why(
    bucket: Bucket, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exporter.make(tmp_path / "tool", "megatron-bridge", "0.6.0")
    monkeypatch.setenv("ENGINEHOUSE_EXPORTER", made.python)
    monkeypatch.setenv("ENGINEHOUSE_EXPORTER_CHECKOUT", made.checkout)
    commit = hub.push("org/trained", exporter.checkpoint("megatron", tiny_safetensors()))
    hub.push("org/base", {**exporter.reference(), "config.json": b"[1, 2"})
    hub.push("org/fine", exporter.reference())
    access = Access(hub_endpoint=hub.url)

    def code(like: str, tool: str) -> str:
        model = served(
            f"hf://org/trained@{commit}", recipe=LLMAPI, form="megatron", exporter=tool, like=like, trust=["pickle"]
        )
        found = resolve_weights(model, access)
        plan = found.plan(model)
        context = Context(ArtifactStore(bucket), Workspace(tmp_path / "work"), "run", 30)
        with pytest.raises(EnginehouseError) as caught:
            for each in found:
                fetch(context, plan, each, access)
            export(context, plan, found.exported)
        return caught.value.code

    assert code("hf://org/base@main", "megatron-bridge==0.6.0") == "untrusted-content"
    assert code("hf://org/fine@main", "megatron-bridge==0.6.2") == "runtime-differs"
    hub.push("org/fine", {**exporter.reference(), "config.json": b"{}"})
    broken = Path(made.checkout) / "scripts" / "conversion" / "run_conversion.py"
    broken.write_text("raise SystemExit('no bridge for this architecture')")
    assert code("hf://org/fine@main", "megatron-bridge==0.6.0") == "export-failed"
