"""Failures that are chosen, in the words of the tool and its version."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.standin import failures, toolchain
from tests.standin.programs import (
    BUILD,
    CONVERT,
    QUANTIZE,
    RUN,
    ask_engine,
    build_engine,
    convert_weights,
    run_tool,
)
from tests.standin.toolchain import Toolchain

# The steps' own tests run the stand-in in `make test` already.
pytestmark = pytest.mark.slow


def test_a_tool_is_killed_by_the_kernel(toolchains: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    chain = toolchains["0.12.0"]
    for tool in (CONVERT, QUANTIZE):
        arguments = ["--model_dir", str(model), *(["--qformat", "fp8"] if tool == QUANTIZE else [])]
        arguments += ["--calib_dataset", str(tmp_path)]
        assert run_tool(chain, tool, arguments, tmp_path, failure="host-memory").returncode == -signal.SIGKILL
    convert_weights(chain, model, tmp_path, "--tp_size", "2")
    assert build_engine(chain, tmp_path, failure="host-memory").returncode == -signal.SIGKILL
    # The kernel takes a worker then, and the tool lives to tell.
    built = build_engine(chain, tmp_path, "--workers", "2", failure="host-memory")
    assert built.returncode == 1
    assert "concurrent.futures.process.BrokenProcessPool" in built.stderr
    assert built.stderr.rstrip().endswith("AssertionError: Engine building failed, please check error log.")


@pytest.mark.parametrize(
    ("version", "tool", "failure", "last"),
    [
        ("0.12.0", CONVERT, "gpu-memory", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        ("1.2.1", CONVERT, "gpu-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        (
            "0.12.0",
            CONVERT,
            "script-mismatch",
            "TypeError: Mapping.__init__() got an unexpected keyword argument 'moe_tp_size'",
        ),
        (
            "1.2.1",
            CONVERT,
            "script-mismatch",
            "ImportError: cannot import name 'infer_dtype' from 'tensorrt_llm._utils'",
        ),
        ("0.8.0", CONVERT, "world-size", "ValueError: world_size must equal to pp_size * tp_size"),
        ("0.16.0", BUILD, "world-size", "ValueError: world_size must equal to pp_size * cp_size * tp_size, but got 3"),
        ("1.2.1", BUILD, "world-size", "ValueError: world_size must equal to tp_size * pp_size * cp_size, but got 3"),
        ("0.8.0", RUN, "world-size", "Assertion failed: mpiSize == tp * pp"),
        ("1.2.1", RUN, "world-size", "Assertion failed: MPI size 2 != TP size 1 * PP size 1 * CP Size 1"),
        ("0.8.0", RUN, "version", "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine."),
        ("1.2.1", RUN, "architecture", "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine."),
        ("1.2.1", RUN, "gpu-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
    ],
)
def test_a_failure_ends_a_tool_in_its_own_words(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, tool: str, failure: str, last: str
) -> None:
    chain = toolchains[version]
    if tool != CONVERT:
        convert_weights(chain, model, tmp_path)
    if tool == RUN:
        assert build_engine(chain, tmp_path).returncode == 0
        ran = ask_engine(chain, model, tmp_path, failure=failure)
    elif tool == BUILD:
        ran = build_engine(chain, tmp_path, failure=failure)
    else:
        ran = run_tool(chain, tool, ["--model_dir", str(model)], tmp_path, failure=failure)
    assert ran.returncode == 1
    assert "Traceback (most recent call last):" in ran.stderr and last in ran.stderr.splitlines()[-1]


def test_a_failure_is_chosen_in_the_toolchain_too(model: Path, tmp_path: Path) -> None:
    chain = toolchain.make(tmp_path / "chain", "0.12.0")
    chain.fail("gpu-memory", BUILD)
    convert_weights(chain, model, tmp_path)
    assert build_engine(chain, tmp_path).returncode == 1
    chain.fail("")
    assert build_engine(chain, tmp_path).returncode == 0
    chain.fail("no-such")
    assert "the stand-in has no failure 'no-such'" in build_engine(chain, tmp_path).stderr


def test_a_tool_hangs(toolchains: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    command = [*toolchains["0.12.0"].command(CONVERT), "--model_dir", str(model)]
    environment = {failures.VARIABLE: f"{CONVERT}:hang"}
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=1.5)
