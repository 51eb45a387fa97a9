"""`convert_checkpoint.py` of the stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.standin import weights
from tests.standin.programs import (
    CONVERT,
    build_engine,
    convert_weights,
    read_json,
    run_tool,
)
from tests.standin.toolchain import Toolchain

# The steps' own tests run the stand-in in `make test` already.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("version", "flags", "algorithm", "cache"),
    [
        ("0.8.0", ["--use_weight_only", "--weight_only_precision", "int4"], "W4A16", None),
        ("0.12.0", ["--use_fp8_rowwise", "--fp8_kv_cache"], "FP8_PER_CHANNEL_PER_TOKEN", "FP8"),
        ("1.2.1", ["--use_weight_only", "--weight_only_precision", "int4_awq"], "W4A16_AWQ", None),
    ],
)
def test_weights_are_quantized_while_they_are_converted(
    toolchains: dict[str, Toolchain],
    model: Path,
    tmp_path: Path,
    version: str,
    flags: list[str],
    algorithm: str,
    cache: str | None,
) -> None:
    convert_weights(toolchains[version], model, tmp_path, *flags)
    found = read_json(tmp_path / "checkpoint/config.json")["quantization"]
    assert (found["quant_algo"], found["kv_cache_quant_algo"]) == (algorithm, cache)
    assert build_engine(toolchains[version], tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("version", "last"),
    [("0.8.0", "HeaderTooLarge"), ("0.12.0", "HeaderTooLarge"), ("1.2.1", "header too large")],
)
def test_a_pointer_instead_of_weights_is_no_header(
    toolchains: dict[str, Toolchain], tmp_path: Path, version: str, last: str
) -> None:
    source = weights.make(tmp_path / "weights")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (source / "model-00002-of-00002.safetensors").write_text(pointer)
    ran = run_tool(toolchains[version], CONVERT, ["--model_dir", str(source)], tmp_path)
    words = f"safetensors_rust.SafetensorError: Error while deserializing header: {last}"
    assert ran.returncode == 1 and ran.stderr.splitlines()[-1] == words


def test_missing_and_misshapen_weights_are_noticed(toolchains: dict[str, Toolchain], tmp_path: Path) -> None:
    wide = weights.make(tmp_path / "wide")
    (wide / "config.json").write_text(json.dumps(read_json(wide / "config.json") | {"intermediate_size": 96}))
    for version, words in (
        ("0.8.0", "RuntimeError: Error(s) in loading state_dict for LlamaForCausalLM:"),
        ("0.12.0", "Auto padding failed."),
    ):
        ran = run_tool(toolchains[version], CONVERT, ["--model_dir", str(wide)], tmp_path)
        assert ran.returncode == 1 and words in ran.stderr
    short = weights.make(tmp_path / "short")
    (short / "config.json").write_text(json.dumps(read_json(short / "config.json") | {"num_hidden_layers": 3}))
    ran = run_tool(toolchains["0.8.0"], CONVERT, ["--model_dir", str(short)], tmp_path)
    assert ran.returncode == 0 and "Some weights of LlamaForCausalLM were not initialized" in ran.stderr
    ran = run_tool(toolchains["0.12.0"], CONVERT, ["--model_dir", str(short)], tmp_path)
    assert ran.returncode == 1 and "KeyError: 'transformer.layers.2.input_layernorm.weight'" in ran.stderr
