"""`enginehouse assemble` with templates of our own; those of NVIDIA are in tests/tasks/triton/test_upstream.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from deployments.cli.assemble import assemble_upstream
from deployments.cli.main import main
from infra.errors import UsageError
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_model
from tasks.models.overrides import override
from tasks.models.recipe import TrtEngineRecipe
from tasks.triton.upstream_templates import MODELS
from tests.standin import engine as standin

message: Any = importlib.import_module("tritonclient.grpc.model_config_pb2")


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """As small as templates can be: the batch size everywhere, and what has to be known."""
    parameter = 'parameters: {{ key: "{key}" value: {{ string_value: "${{{value}}}" }} }}'
    values = {
        "preprocessing": {"tokenizer_dir": "tokenizer_dir", "instances": "preprocessing_instance_count"},
        "postprocessing": {"tokenizer_dir": "tokenizer_dir", "instances": "postprocessing_instance_count"},
        "tensorrt_llm": {
            "gpt_model_path": "engine_dir",
            "gpt_model_type": "batching_strategy",
            "decoupled": "decoupled_mode",
            "beams": "max_beam_width",
            "delay": "max_queue_delay_microseconds",
            "max_tokens_in_paged_kv_cache": "max_tokens_in_paged_kv_cache",
            "max_attention_window_size": "max_attention_window_size",
            "kv_cache_free_gpu_mem_fraction": "kv_cache_free_gpu_mem_fraction",
            "enable_kv_cache_reuse": "enable_kv_cache_reuse",
            "exclude_input_in_output": "exclude_input_in_output",
            "normalize_log_probs": "normalize_log_probs",
        },
        "tensorrt_llm_bls": {
            "instances": "bls_instance_count",
            "decoupled": "decoupled_mode",
            "accumulate_tokens": "accumulate_tokens",
        },
        "ensemble": {},
    }
    folder = tmp_path / "templates"
    for model in MODELS:
        (folder / model).mkdir(parents=True)
        lines = [f'name: "{model}"', "max_batch_size: ${triton_max_batch_size}"]
        lines += [parameter.format(key=key, value=value) for key, value in values[model].items()]
        (folder / model / "config.pbtxt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    recipe = load_model(CHECKOUT / "deployments/models/llama3-8b-by-hand.yaml").recipe
    assert isinstance(recipe, TrtEngineRecipe)
    standin.make(recipe, folder)
    return folder


def assemble(templates: Path, engine: Path, *changed: str, model: str = "llama3-8b-by-hand") -> int:
    tokenizer, output = engine.parent, engine.parent / "output"
    given = (
        "--layout",
        "upstream",
        "--templates",
        str(templates),
        "--engine",
        str(engine),
        "--tokenizer",
        str(tokenizer),
    )
    return main(["assemble", model, *given, "--runtime", "0.8.0", "--output", str(output), *changed])


def parameters(folder: Path) -> dict[str, str]:
    config = text_format.Parse((folder / "config.pbtxt").read_text(), message.ModelConfig())
    assert config.max_batch_size == 64
    return {key: value.string_value for key, value in config.parameters.items()}


def test_the_published_values_by_the_models_file(
    templates: Path, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assemble(templates, engine) == 0
    output = engine.parent / "output"
    assert capsys.readouterr().out.strip() == str(output)
    assert parameters(output / "tensorrt_llm") == {
        "gpt_model_path": str(engine),
        "gpt_model_type": "inflight_fused_batching",
        "decoupled": "False",
        "beams": "1",
        "delay": "0",
        "max_tokens_in_paged_kv_cache": "2560",
        "max_attention_window_size": "2560",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "enable_kv_cache_reuse": "False",
        "exclude_input_in_output": "True",
    }
    assert parameters(output / "preprocessing")["tokenizer_dir"] == str(engine.parent)
    assert not [path for path in output.rglob("*.pbtxt") if "${" in path.read_text()]


@pytest.mark.parametrize(
    ("changed", "code", "named"),
    [
        (("--runtime", "0.9.0"), "version-mismatch", "0.9.0"),
        (("--engine", "/nonexistent"), "engine-unreadable", "/nonexistent/config.json"),
        (("--tokenizer", "/nonexistent"), "usage", "/nonexistent"),
        (("--templates", "/nonexistent"), "template-missing", "/nonexistent"),
    ],
)
def test_wrong_use(
    templates: Path, engine: Path, capsys: pytest.CaptureFixture[str], changed: tuple[str, ...], code: str, named: str
) -> None:
    assert assemble(templates, engine, *changed) == 2
    error = capsys.readouterr().err
    assert f"[{code}]" in error and named in error
    assert not (engine.parent / "output").exists()


def test_adapters_have_no_names_there(templates: Path, engine: Path) -> None:
    by_hand = load_model(CHECKOUT / "deployments" / "models" / "llama3-8b-by-hand.yaml")
    model = override(by_hand, tensorrt_llm="0.8.0").model.model_copy(update={"adapters": {"sql": "hf://some/sql@main"}})
    with pytest.raises(UsageError) as caught:
        assemble_upstream(model, templates, engine, engine.parent, engine.parent / "output")
    assert caught.value.code == "serving-unfit" and "sql" in caught.value.message


def test_other_kinds_have_other_models(templates: Path, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert assemble(templates, engine, model="smollm2-135m") == 2
    assert "kind llamacpp" in capsys.readouterr().err


def test_an_output_that_exists_stays(templates: Path, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine.parent / "output").mkdir()
    assert assemble(templates, engine) == 2
    assert "[output-exists]" in capsys.readouterr().err and list((engine.parent / "output").iterdir()) == []
