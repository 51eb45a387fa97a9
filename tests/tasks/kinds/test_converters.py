"""Kind `trt-engine` of other architectures than Llama, with the stand-in toolchain: their converters, or no engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StepFailed, UsageError
from tasks.kinds.llmapi import LlmApiKind
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.spec import Model
from tasks.store.reporter import Reporter
from tests.standin import safetensors, toolchain, weights
from tests.standin.programs import build_engine, run_tool

QWEN: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_bias": None}
GEMMA_2: dict[str, Any] = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "query_pre_attn_scalar": 256}
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def model(version: str, **recipe: Any) -> Model:
    limits = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 128}
    runtime = {"tensorrt_llm": version, "gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 4}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/model@main"},
            "recipe": {"kind": "trt-engine", "runtime": runtime, **limits, **recipe},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


class Workshop:
    """A toolchain of one version, and folders to convert and build in."""

    def __init__(self, folder: Path, version: str, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.chain = toolchain.make(folder / "image", version)
        self.lines: list[str] = []
        patch.setenv("ENGINEHOUSE_TOOLCHAIN", self.chain.setting)

    def convert(self, made_for: Model, config: dict[str, Any]) -> Path:
        snapshot = weights.make(self.folder / "snapshot", **config)
        checkpoint, scratch = self.folder / "checkpoint", self.folder / "scratch"
        for folder in (checkpoint, scratch):
            folder.mkdir()
        TrtEngineKind(made_for).convert(snapshot, None, checkpoint, scratch, Reporter(say=self.lines.append))
        return checkpoint

    def build(self, made_for: Model, checkpoint: Path) -> dict[str, Any]:
        engine = self.folder / "engine"
        engine.mkdir()
        reporter = Reporter(say=self.lines.append)
        TrtEngineKind(made_for).build(checkpoint, engine, self.folder / "scratch", reporter)
        return json.loads((engine / "config.json").read_text())["pretrained_config"]


def stored(checkpoint: Path, rank: int = 0) -> dict[str, safetensors.Tensor]:
    return safetensors.read(checkpoint / f"rank{rank}.safetensors", sentences=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "config", "recipe", "script", "tensor"),
    [
        ("0.11.0", QWEN, {}, "examples/qwen/convert_checkpoint.py", "attention.qkv.bias"),
        (
            "1.0.0",
            {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
            {"architecture": "Qwen3ForCausalLM"},
            "examples/models/core/qwen/convert_checkpoint.py",
            "attention.q_layernorm.weight",
        ),
        (
            "0.9.0",
            {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "tie_word_embeddings": True},
            {"quantization": "int8_wo"},
            "examples/gemma/convert_checkpoint.py",
            "mlp.gate.per_channel_scale",
        ),
    ],
)
def test_each_architecture_by_its_own_converter(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    config: dict[str, Any],
    recipe: dict[str, Any],
    script: str,
    tensor: str,
) -> None:
    workshop = Workshop(tmp_path, version, monkeypatch)
    workshop.chain.install("flax", "h5py", "easydict")
    made_for = model(version, **recipe)
    checkpoint = workshop.convert(made_for, config)
    assert any(line.startswith(f"python3 {script} ") for line in workshop.lines)
    assert any(name.endswith(tensor) for name in stored(checkpoint))
    built = workshop.build(made_for, checkpoint)
    named = "QWenForCausalLM" if version == "0.11.0" else config["architectures"][0]
    assert built["architecture"] == named


@pytest.mark.slow
def test_experts_are_divided_between_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = Workshop(tmp_path, "0.12.0", monkeypatch)
    checkpoint = workshop.convert(model("0.12.0", tp_size=2, moe_tp_size=1, moe_ep_size=2), MIXTRAL)
    first, second = (stored(checkpoint, rank)["transformer.layers.0.mlp.fc.weight"] for rank in range(2))
    # Two of four experts each, whole: gate and up projection of 128 rows.
    assert first.shape == second.shape == (2, 256, 64) and first.data != second.data


@pytest.mark.parametrize("named", [None, "Qwen2ForCausalLM"])
def test_qwen_2_is_never_converted_as_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    workshop = Workshop(tmp_path, "0.9.0", monkeypatch)
    with pytest.raises((UsageError, ValueError)) as caught:
        workshop.convert(model("0.9.0", architecture=named), QWEN)
    text = str(caught.value)
    assert "TensorRT-LLM 0.9.0 builds no engines of Qwen2ForCausalLM" in text
    assert "kind trt-engine does from 0.10 to 1.2" in text and not workshop.lines


@pytest.mark.slow
def test_what_llamas_script_makes_of_qwen_2_fails_or_loses_its_biases(tmp_path: Path) -> None:
    """What happened before each architecture had its converter, as the stand-in shows it."""
    source = weights.make(tmp_path / "source", **QWEN)
    for version, fails in (("0.11.0", False), ("0.16.0", True)):
        folder = tmp_path / version
        folder.mkdir()
        chain = toolchain.make(tmp_path / f"image-{version}", version)
        arguments = ["--model_dir", str(source), "--output_dir", "checkpoint"]
        assert run_tool(chain, "convert_checkpoint.py", arguments, folder).returncode == 0
        assert not any(name.endswith("qkv.bias") for name in stored(folder / "checkpoint"))
        built = build_engine(chain, folder)
        assert (built.returncode != 0) == fails
        assert not fails or "has no attribute 'qwen_type'" in built.stderr


def test_recipe_and_weights_must_name_the_same_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = Workshop(tmp_path, "0.12.0", monkeypatch)
    with pytest.raises(UsageError) as caught:
        workshop.convert(model("0.12.0", architecture="LlamaForCausalLM"), QWEN)
    assert caught.value.code == "architecture-differs"
    assert "LlamaForCausalLM" in caught.value.message and "Qwen2ForCausalLM" in caught.value.message


def test_positions_that_a_version_does_not_scale_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama_3_1 = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}
    with pytest.raises(UsageError) as caught:
        Workshop(tmp_path / "old", "0.11.0", monkeypatch).convert(model("0.11.0"), llama_3_1)
    assert caught.value.code == "weights-unfit" and "llama3): 0.12 to 1.2 do" in caught.value.message
    assert Workshop(tmp_path / "new", "0.12.0", monkeypatch).convert(model("0.12.0"), llama_3_1).is_dir()


def test_weights_that_name_none_need_the_recipe_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = Workshop(tmp_path, "0.12.0", monkeypatch)
    nameless = weights.make(tmp_path / "nameless")
    config = json.loads((nameless / "config.json").read_text())
    (nameless / "config.json").write_text(json.dumps({**config, "architectures": None}))
    with pytest.raises(UsageError) as caught:
        TrtEngineKind(model("0.12.0")).convert(nameless, None, tmp_path, tmp_path, Reporter())
    assert caught.value.code == "architecture-unknown" and "recipe.architecture" in caught.value.hint
    assert not workshop.lines


def test_what_a_script_imports_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = Workshop(tmp_path, "0.12.0", monkeypatch)
    with pytest.raises(StepFailed) as caught:
        workshop.convert(model("0.12.0"), {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"})
    assert caught.value.code == "module-missing" and "flax" in caught.value.message
    assert "requirements.txt" in caught.value.hint


def test_quantize_makes_no_engine_that_the_builder_cannot_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(tmp_path, "0.12.0", monkeypatch)
    with pytest.raises(UsageError) as caught:
        workshop.convert(model("0.12.0", quantization="fp8"), GEMMA_2)
    assert caught.value.code == "architecture-unfit" and "from 0.13 to 1.2" in caught.value.message


def test_the_llm_api_refuses_what_it_does_not_load(tmp_path: Path) -> None:
    snapshot = weights.make(tmp_path / "snapshot", architectures=["FalconForCausalLM"], model_type="falcon")
    served = model("1.2.1")
    document = served.model_dump(by_alias=True)
    recipe = {"kind": "llmapi", "runtime": document["recipe"]["runtime"]}
    kind = LlmApiKind(Model.model_validate({**document, "recipe": recipe}))
    with pytest.raises(UsageError) as caught:
        kind.convert(snapshot, None, tmp_path / "checkpoint", tmp_path / "scratch", Reporter())
    assert caught.value.code == "architecture-unfit"
    assert "the LLM API of TensorRT-LLM 1.2.1 does not load FalconForCausalLM" in caught.value.message
