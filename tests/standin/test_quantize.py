"""`quantize.py` of the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.standin import toolchain
from tests.standin.programs import (
    QUANTIZE,
    build_engine,
    convert_weights,
    read_json,
    run_tool,
)
from tests.standin.toolchain import Toolchain

# The steps' own tests run the stand-in in `make test` already.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("version", "flags", "algorithm", "expected"),
    [
        (
            "0.11.0",
            ["--qformat", "fp8", "--kv_cache_dtype", "fp8", "--calib_dataset", "{data}"],
            "FP8",
            "Calibrating batch 0",
        ),
        ("0.13.0", ["--qformat", "int4_awq", "--calib_dataset", "{data}"], "W4A16_AWQ", "Using calib_size=32 instead"),
        ("1.2.1", ["--qformat", "nvfp4", "--calib_dataset", "{data}", "--tp_size", "2"], "NVFP4", "Recognized local"),
        ("1.2.1", ["--qformat", "int8_wo"], "W8A16", "No quantization applied, export auto model"),
    ],
)
def test_a_model_is_calibrated(
    toolchains: dict[str, Toolchain],
    model: Path,
    tmp_path: Path,
    version: str,
    flags: list[str],
    algorithm: str,
    expected: str,
) -> None:
    arguments = [
        "--model_dir",
        str(model),
        "--output_dir",
        "checkpoint",
        *(flag.format(data=tmp_path) for flag in flags),
    ]
    ran = run_tool(toolchains[version], QUANTIZE, arguments, tmp_path)
    assert ran.returncode == 0 and expected in ran.stdout, ran.stderr
    assert "Quantized model exported to checkpoint" in ran.stdout
    assert read_json(tmp_path / "checkpoint/config.json")["quantization"]["quant_algo"] == algorithm
    assert build_engine(toolchains[version], tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("version", "flags", "last"),
    [
        ("0.9.0", [], "quantize.py: error: the following arguments are required: --model_dir"),
        ("0.12.0", [], "ValueError: One of source checkpoint (model_dir, nemo_ckpt_path) must be specified"),
        (
            "1.2.1",
            ["--qformat", "fp8", "--calib_dataset", "mine"],
            "Unsupported dataset name or local repo directory: mine.",
        ),
        ("0.8.0", ["--qformat", "fp8"], "Couldn't reach 'cnn_dailymail' on the Hub (OfflineModeIsEnabled)"),
        ("0.13.0", ["--qformat", "fp8"], "Couldn't reach 'cnn_dailymail' on the Hub (OfflineModeIsEnabled)"),
    ],
)
def test_quantize_refuses(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, flags: list[str], last: str
) -> None:
    ran = run_tool(toolchains[version], QUANTIZE, ["--model_dir", str(model), *flags] if flags else [], tmp_path)
    assert ran.returncode in (1, 2) and ran.stderr.rstrip().endswith(last)


def test_a_machine_without_gpus_quantizes_and_builds_nothing(model: Path, tmp_path: Path) -> None:
    chain = toolchain.make(tmp_path / "chain", "0.12.0", gpus=0)
    ran = run_tool(chain, QUANTIZE, ["--model_dir", str(model), "--qformat", "int8_wo"], tmp_path)
    assert ran.returncode == 1 and ran.stderr.endswith("OSError: GPU is required for inference.\n")
    convert_weights(chain, model, tmp_path)
    assert build_engine(chain, tmp_path).stderr.endswith("ValueError: max_workers must be greater than 0\n")
