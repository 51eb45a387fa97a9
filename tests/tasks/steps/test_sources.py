"""Sources of each kind, from their address to the checkpoint in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.s3.bucket import Bucket
from tasks.gguf.conversion import dequantize
from tasks.models.spec import Model
from tasks.sources.resolved import NO_ACCESS, Access
from tasks.steps.context import Context, Done
from tasks.steps.convert import convert
from tasks.steps.fetch import fetch
from tasks.steps.resolve import resolve_weights
from tasks.steps.workspace import Workspace
from tasks.store.artifact_store import ArtifactStore
from tests.tasks.gguf.small_models import write
from tests.tasks.gguf.test_split import CONTENT, PARTS
from tests.tasks.sources.hub_server import Hub
from tests.tasks.sources.ngc_server import Ngc
from tests.tasks.sources.test_ngc import use


def served(uri: str, **source: object) -> Model:
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": uri, **source},
            "recipe": {"kind": "llamacpp", "dtype": "float16"},
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
