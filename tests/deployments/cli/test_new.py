"""`enginehouse new`: what it writes of repositories of the hub, `plan` accepts, and their GPUs hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from deployments.cli.main import main
from tasks.models.catalogue import load_model
from tests.tasks.sources.hub_server import Hub
from tests.tasks.weights.configs import CACHE_BYTES, text

CARD = b"---\nlanguage: en\nlicense: other\nlicense_name: tiny-community\n---\n# A model\n"
TEMPLATE = json.dumps({"chat_template": "{{ messages }}"}).encode()
GIB = 1 << 30


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name in ("HF_TOKEN", "ENGINEHOUSE_STORE", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(tmp_path / "models"))
    with Hub() as running:
        # The client reads HF_ENDPOINT when it is imported, which another test may have done.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        yield running


def push(hub: Hub, name: str, size: int, **files: bytes) -> None:
    """A repository with the configuration of a model that people serve, and weights that are listed as so large."""
    config, _ = CACHE_BYTES[name]
    weights = {"model.safetensors": bytes(2000), "config.json": text(config), "README.md": CARD}
    hub.push(f"org/{name}", {"tokenizer_config.json": TEMPLATE, **weights, **files})
    hub.repositories[f"org/{name}"].sizes["model.safetensors"] = size


@pytest.mark.parametrize(
    ("name", "gib", "gpu", "kind", "gpus"),
    [
        ("llama-3.1-8b", 15, "NVIDIA H200", "llmapi", 1),
        ("llama-3.3-70b", 131, "NVIDIA H200", "llmapi", 2),
        ("qwen2.5-7b", 14, "NVIDIA L40S", "llmapi", 1),
        ("qwen3-30b-a3b", 57, "H200 NVL", "llmapi", 1),
        ("mistral-7b", 14, "NVIDIA A10", "llmapi", 1),
        ("mixtral-8x7b", 87, "NVIDIA H100 80GB HBM3", "llmapi", 2),
        ("gemma-2-9b", 18, "NVIDIA H100 PCIe", "trt-engine", 1),
        ("deepseek-v3", 642, "NVIDIA H200", "llmapi", 8),
        ("gpt-oss-20b", 13, "NVIDIA B200", "llmapi", 1),
        ("falcon-7b", 14, "NVIDIA A100-SXM4-80GB", "trt-engine", 1),
        ("phi-4", 27, "NVIDIA H100 NVL", "llmapi", 1),
        ("qwen2.5-7b", 14, "", "transformers", 0),
    ],
)
def test_what_it_writes_is_planned_and_fits(
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    gib: int,
    gpu: str,
    kind: str,
    gpus: int,
) -> None:
    push(hub, name, gib * GIB)
    assert main(["new", f"hf://org/{name}", *(["--gpu", gpu] if gpu else []), "--json"]) == 0, capsys.readouterr().err
    made = json.loads(capsys.readouterr().out)
    assert made == {
        "model": name,
        "file": str(tmp_path / "models" / f"{name}.yaml"),
        "kind": kind,
        "licence": "tiny-community",
    }
    assert main(["plan", name, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["kind"] == kind and planned["source"] == f"hf://org/{name}@main"
    cache, model = planned["kv_cache"], load_model(tmp_path / "models" / f"{name}.yaml")
    assert model.serving.chat_template and model.description == f"org/{name}. Licence: tiny-community."
    assert not [note for note in cache["notes"] if "cannot be served" in note]
    if gpus:
        assert planned["runtime"]["gpus"] == gpus
        assert cache["tokens"] >= model.serving.slots * model.serving.context_tokens > 0


def test_every_block_says_why_and_a_file_is_never_written_over(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(hub, "llama-3.1-8b", 15 * GIB, **{"modeling.py": b"import os", "tokenizer_config.json": b"{}"})
    assert (
        main(["new", "hf://org/llama-3.1-8b@main", "--gpu", "NVIDIA H200", "--name", "small", "--target", "east"]) == 0
    )
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'models' / 'small.yaml'}\n" and "licence tiny-community" in printed.err
    written = (tmp_path / "models" / "small.yaml").read_text()
    for line in (
        "  # Nothing else of the repository is taken.",
        "  # The weights have no chat template: prompts go to the model as they come.",
        "  chat_template: false",
        "  # The model was made for 131072: more of them leave room for fewer requests.",
        "targets: [east]",
    ):
        assert f"{line}\n" in written
    assert "*.safetensors" in written and "$schema" not in written
    assert max(map(len, written.splitlines())) <= 120
    assert main(["new", "hf://org/llama-3.1-8b", "--name", "small"]) == 2
    assert "[model-exists]" in capsys.readouterr().err and (tmp_path / "models" / "small.yaml").read_text() == written


def test_gguf_is_for_llama_cpp(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("q4.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf")
    hub.push("org/Some_Model.GGUF", dict.fromkeys(names, b"GGUF" + bytes(2000)))
    (tmp_path / "model.schema.json").write_text("{}")  # as `enginehouse init` leaves it beside the folder
    assert main(["new", "hf://org/Some_Model.GGUF"]) == 0
    path = tmp_path / "models" / "some-model.gguf.yaml"
    assert path.read_text().startswith("# yaml-language-server: $schema=../model.schema.json\n#")
    model = load_model(path)
    assert (model.kind, model.source.include) == ("llamacpp", ("m-Q8_0-*-of-00002.gguf",))
    assert "unknown: its model card names none" in capsys.readouterr().err
    assert main(["plan", model.name]) == 0
    assert main(["new", "hf://org/Some_Model.GGUF", "--name", "other", "--gpu", "NVIDIA H200"]) == 2
    assert "[gguf-on-gpu]" in capsys.readouterr().err


def test_what_cannot_be_is_refused_and_nothing_is_written(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(hub, "llama-3.3-70b", 131 * GIB)
    push(hub, "glm-4-9b-0414", 18 * GIB)
    push(hub, "deepseek-v3", 642 * GIB)
    hub.push("org/gated", {"config.json": b"{}"}, gated=True)
    for arguments, code in (
        (("hf://org/nothing",), "source-missing"),
        (("hf://org/gated",), "source-gated"),
        (("s3://bucket/prefix",), "source-invalid"),
        (("hf://org/llama-3.3-70b", "--gpu", "H100"), "gpu-unknown"),
        (("hf://org/deepseek-v3", "--gpu", "NVIDIA L40S"), "gpu-too-small"),
        (("hf://org/glm-4-9b-0414", "--gpu", "NVIDIA H200"), "architecture-unfit"),
        (("hf://org/llama-3.3-70b", "--name", "No Name"), "spec-invalid"),
        (("hf://org/llama-3.3-70b", "--name", "a--r1", "--gpu", "NVIDIA H200"), "spec-invalid"),
    ):
        assert main(["new", *arguments]) == 2, arguments
        assert f"[{code}]" in (told := capsys.readouterr().err), told
    assert not any((tmp_path / "models").iterdir())
