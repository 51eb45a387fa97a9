"""What a node knows of its machine: the image's interpreter is asked once, the GPUs again and again."""

from __future__ import annotations

import os
import sys
import time
from itertools import chain, repeat
from pathlib import Path

import pytest

from deployments.node import facts
from deployments.node.facts import Facts
from infra import settings
from infra.errors import SettingsError
from infra.gpu import Gpu, GpuReport
from tests.standin import toolchain


def gpus(count: int, free_bytes: int) -> GpuReport:
    made = [Gpu(index, "NVIDIA H200", "sm90", 141 << 30, free_bytes, f"GPU-{index}") for index in range(count)]
    return GpuReport(driver="580.95.05", cuda="13.0", gpus=tuple(made), problem="")


def test_the_images_interpreter_says_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = toolchain.make(tmp_path / "image", "0.12.0")
    monkeypatch.setenv("PATH", os.pathsep.join([str(image.python.parent), os.environ["PATH"]]))
    monkeypatch.setenv("ENGINEHOUSE_TRITON", "/opt/tritonserver")
    monkeypatch.setenv("ENGINEHOUSE_CONTAINER_DIGEST", "sha256:" + "a" * 64)
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "25.06")
    monkeypatch.setattr(facts.gpu, "probe", lambda: gpus(4, 1 << 30))
    caplog.set_level("WARNING")
    known = Facts.of(settings.load())
    machine = known.machine()
    assert (machine.tensorrt_llm, machine.tensorrt.split(".")[0]) == ("0.12.0", "10")
    assert machine.triton == "25.06" and "CVE-2025-23310" in caplog.text
    assert machine.container == "sha256:" + "a" * 64 and machine.driver == "580.95.05"
    assert [each.free_bytes for each in machine.gpus] == [1 << 30] * 4
    assert known.triton == Path("/opt/tritonserver") and known.orchestrated_gpus == 4
    assert machine.groups
    (tmp_path / "image/bin/mpirun").unlink()
    monkeypatch.setenv("PATH", str(image.python.parent))
    assert not known.machine().groups


def test_an_image_without_tensorrt_llm_serves_what_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python3").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ENGINEHOUSE_TRITON", "/opt/tritonserver")
    known = Facts.of(settings.load())
    assert known.machine().tensorrt_llm == "" and not known.machine().groups and known.orchestrated_gpus == 0


def test_an_interpreter_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ENGINEHOUSE_TRITON", "/opt/tritonserver")
    with pytest.raises(SettingsError) as caught:
        Facts.of(settings.load())
    assert caught.value.code == "toolchain-broken"


def test_free_memory_is_sampled_again_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = chain([gpus(1, 5)], repeat(gpus(1, 4)))

    def slowly() -> GpuReport:
        time.sleep(0.2)
        return next(samples)

    monkeypatch.setattr(facts.gpu, "probe", slowly)
    known = Facts(None, None, sample_seconds=0.0)
    started = time.monotonic()
    assert known.machine().gpus[0].free_bytes == 5
    assert time.monotonic() - started < 0.1
    until = time.monotonic() + 5
    while known.machine().gpus[0].free_bytes != 4:
        assert time.monotonic() < until
        time.sleep(0.02)
