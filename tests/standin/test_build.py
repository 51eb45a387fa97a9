"""`trtllm-build` of the stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.standin import failures, safetensors
from tests.standin.programs import (
    BUILD,
    build_engine,
    convert_weights,
    read_json,
    run_tool,
)
from tests.standin.toolchain import Toolchain

# The steps' own tests run the stand-in in `make test` already.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("version", "arguments", "words"),
    [
        ("0.12.0", [], "AttributeError: 'NoneType' object has no attribute 'lower'"),
        ("0.12.0", ["--checkpoint_dir", "nowhere"], "No such file or directory: 'nowhere/config.json'"),
        (
            "1.2.1",
            ["--checkpoint_dir", "checkpoint", "--streamingllm", "enable"],
            "StreamingLLM is no longer supported",
        ),
        (
            "0.12.0",
            ["--checkpoint_dir", "checkpoint", "--gather_context_logits", "--max_draft_len", "4"],
            "is not support",
        ),
        (
            "0.8.0",
            ["--checkpoint_dir", "lost"],
            'FileNotFoundError: No such file or directory: "lost/rank0.safetensors"',
        ),
        ("0.12.0", ["--checkpoint_dir", "lost"], "AssertionError"),
        ("0.8.0", ["--checkpoint_dir", "gpt"], "RuntimeError: Unsupported model architecture: GptForCausalLM"),
        ("0.12.0", ["--checkpoint_dir", "gpt"], "AssertionError: Unsupported model architecture: GptForCausalLM"),
        ("0.12.0", ["--checkpoint_dir", "cut"], "Required but not provided tensors:{'lm_head.weight'}"),
        ("0.12.0", ["--checkpoint_dir", "lost", "--workers", "2"], "Engine building failed, please check error log."),
    ],
)
def test_a_build_refuses(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, arguments: list[str], words: str
) -> None:
    convert_weights(toolchains[version], model, tmp_path)
    config = read_json(tmp_path / "checkpoint/config.json")
    tensors = safetensors.read(tmp_path / "checkpoint/rank0.safetensors", sentences=False)
    del tensors["lm_head.weight"]
    for name, changes in (("lost", {}), ("gpt", {"architecture": "GptForCausalLM"}), ("cut", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes))
    safetensors.write(tmp_path / "cut/rank0.safetensors", tensors)
    ran = run_tool(toolchains[version], BUILD, arguments, tmp_path)
    assert ran.returncode == 1 and words in ran.stderr
    assert not (tmp_path / "engine_outputs/rank0.engine").exists()


def test_lengths_are_clipped_to_each_other(toolchains: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    convert_weights(toolchains["0.16.0"], model, tmp_path)
    built = build_engine(
        toolchains["0.16.0"], tmp_path, "--max_input_len", "900", "--max_seq_len", "512", "--paged_kv_cache", "disable"
    )
    assert "max_input_len is 900 is larger than max_seq_len 512, clipping it to max_seq_len" in built.stdout
    assert "Option --paged_kv_cache is deprecated, use --kv_cache_type=paged/disabled instead." in built.stdout
    build = read_json(tmp_path / "engine/config.json")["build_config"]
    assert (build["max_input_len"], build["max_seq_len"], build["kv_cache_type"]) == (512, 512, "CONTINUOUS")


@pytest.mark.parametrize(
    ("version", "code", "expected", "last"),
    [
        ("0.8.0", 1, "2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory", "not 'NoneType'"),
        ("0.11.0", 0, "Error Code 2: OutOfMemory (Requested size was 24793579520 bytes.)", ""),
        (
            "0.12.0",
            1,
            "Error Code 10: Internal Error (Could not find any implementation for node",
            "check the error log.",
        ),
    ],
)
def test_a_build_finds_no_gpu_memory(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, code: int, expected: str, last: str
) -> None:
    convert_weights(toolchains[version], model, tmp_path)
    built = build_engine(toolchains[version], tmp_path, failure="gpu-memory")
    assert built.returncode == code and expected in built.stderr
    assert "[TRT] [W] Requested amount of GPU memory (24793579520 bytes) could not be allocated." in built.stderr
    assert code == 0 or built.stderr.rstrip().endswith(last)
    engine = tmp_path / "engine/rank0.engine"
    assert not engine.exists() or engine.stat().st_size == 0


@pytest.fixture
def hanging(toolchains: dict[str, Toolchain], model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    convert_weights(toolchains["0.12.0"], model, tmp_path)
    environment = {"PATH": os.environ["PATH"], failures.VARIABLE: "hang-workers"}
    command = [*toolchains["0.12.0"].command(BUILD), "--checkpoint_dir", "checkpoint"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    started = psutil.Process(process.pid)
    yield process
    for child in (*started.children(recursive=True), started):
        child.kill()
    process.wait()


def test_workers_hang_one_of_them_in_a_session_of_its_own(hanging: subprocess.Popen[bytes]) -> None:
    ours, started = os.getsid(0), psutil.Process(hanging.pid)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        workers = [child for child in started.children() if "spawn_main" in " ".join(child.cmdline())]
        if len(workers) == 4 and sum(os.getsid(worker.pid) != ours for worker in workers) == 1:
            break
        time.sleep(0.1)
    else:
        pytest.fail("no four workers, one of them in a session of its own")
    assert hanging.poll() is None
