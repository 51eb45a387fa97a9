from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from infra import gpu
from infra.settings import CHECKOUT

# The real module, for its types and errors; only the calls into the driver are replaced.
pynvml = importlib.import_module("pynvml")


def _driver_is_installed() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Card:
    """A GPU of the stand-in; `compute` and `graphics` hold (pid, bytes)."""

    name: str | bytes = "NVIDIA H200"
    uuid: str | bytes = "GPU-11111111-aaaa"
    capability: tuple[int, int] = (9, 0)
    total: int | None = 150 << 30
    free: int = 149 << 30
    compute: Sequence[tuple[int, int | None]] = ()
    graphics: Sequence[tuple[int, int | None]] = ()
    error: int = 0


@dataclass
class Driver:
    """Stands in for libnvidia-ml.so: what pynvml's functions would return for these cards."""

    cards: list[Card]
    version: str | bytes = "580.95.05"
    cuda: int = 13000
    error: int = 0
    initialized: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Driver:
        for name in dir(type(self)):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(self, name))
        return self

    def nvmlInit(self) -> None:
        if self.error:
            raise pynvml.NVMLError(self.error)
        self.initialized += 1

    def nvmlShutdown(self) -> None:
        self.initialized -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self.version

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        assert self.initialized == 1
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        if self.cards[index].error == pynvml.NVML_ERROR_NO_PERMISSION:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str | bytes:
        if card.error:
            raise pynvml.NVMLError(card.error)
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str | bytes:
        return card.uuid

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:
        return card.capability

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        if card.total is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return pynvml.c_nvmlMemory_t(total=card.total, free=card.free, used=card.total - card.free)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> list[Any]:
        return [_process(pid, size) for pid, size in card.compute]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> list[Any]:
        return [_process(pid, size) for pid, size in card.graphics]


def _process(pid: int, size: int | None) -> Any:
    process = pynvml.nvmlStructToFriendlyObject(pynvml.c_nvmlProcessInfo_v3_t(pid=pid, usedGpuMemory=size or 0))
    process.usedGpuMemory = size
    return process


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.skipif(_driver_is_installed(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_driver_says_so() -> None:
    report = gpu.probe()
    assert report.gpus == () and report.driver == "" and report.cuda == ""
    assert "libnvidia-ml.so.1" in report.problem
    assert gpu.used_bytes(frozenset({os.getpid()})) == 0


def test_the_program_prints_the_report_and_needs_only_pynvml(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").symlink_to(cast(str, pynvml.__file__))
    # -S: no site-packages, so an import of anything else would fail.
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "infra.gpu"],
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(ran.stdout)) == {"driver", "cuda", "gpus", "problem"}


def test_without_the_package_the_problem_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in gpu.probe().problem
    assert gpu.used_bytes(frozenset({1})) == 0


def test_the_report_of_two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Card(name=b"NVIDIA GB10", uuid=b"GPU-22222222-bbbb", capability=(12, 1), total=None)
    driver = Driver([Card(), other], version=b"580.95.05", cuda=12080).install(monkeypatch)
    assert gpu.probe() == gpu.GpuReport(
        driver="580.95.05",
        cuda="12.8",
        gpus=(
            gpu.Gpu(0, "NVIDIA H200", "sm90", 150 << 30, 149 << 30, "GPU-11111111-aaaa"),
            gpu.Gpu(1, "NVIDIA GB10", "sm121", 0, 0, "GPU-22222222-bbbb"),
        ),
        problem="",
    )
    assert driver.initialized == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", "no NVML library"),
        ("NVML_ERROR_DRIVER_NOT_LOADED", "not loaded"),
        ("NVML_ERROR_NO_PERMISSION", "may not use"),
        ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", "NVML/RM version mismatch"),
    ],
)
def test_a_driver_that_does_not_start_is_told_in_words(monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    driver = Driver([Card()], error=getattr(pynvml, code)).install(monkeypatch)
    report = gpu.probe()
    assert report.gpus == () and words in report.problem
    assert gpu.used_bytes(frozenset({1})) == 0
    assert driver.initialized == 0


@pytest.mark.parametrize("version", [11, 13])
def test_a_lost_card_is_a_problem_and_nvml_is_closed(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    if version == 11:
        monkeypatch.delattr(pynvml, "NVMLLibraryMismatchError")
    driver = Driver([Card(error=pynvml.NVML_ERROR_GPU_IS_LOST)]).install(monkeypatch)
    assert gpu.probe().problem == "NVML failed: GPU is lost"
    assert driver.initialized == 0


def test_a_card_of_others_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    others, ours = Card(error=pynvml.NVML_ERROR_NO_PERMISSION), Card(uuid="GPU-33333333")
    Driver([others, ours]).install(monkeypatch)
    assert [(g.index, g.uuid) for g in gpu.probe().gpus] == [(1, "GPU-33333333")]
    Driver([others]).install(monkeypatch)
    assert "shows this process no GPU" in gpu.probe().problem


@pytest.mark.parametrize(
    ("selection", "indexes"),
    [
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 0 , 1", [0, 1]),
        ("GPU-22222222", [1]),
        ("GPU-33333333-cccc,GPU-11111111-aaaa", [2, 0]),
        ("0,7,1", [0]),
        ("0,-1,1", [0]),
        ("GPU-", []),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_selects(monkeypatch: pytest.MonkeyPatch, selection: str, indexes: list[int]) -> None:
    uuids = ("GPU-11111111-aaaa", "GPU-22222222-bbbb", "GPU-33333333-cccc")
    Driver([Card(uuid=uuid) for uuid in uuids]).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
    report = gpu.probe()
    assert [g.index for g in report.gpus] == indexes
    assert (report.problem == "") == bool(indexes)
    assert report.driver


def test_a_driver_too_old_to_list_processes_tells_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def list_processes(card: Card) -> list[Any]:
        raise pynvml.NVMLLibraryMismatchError

    Driver([Card()]).install(monkeypatch)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", list_processes)
    assert gpu.used_bytes(frozenset({1})) == 0


def test_used_bytes_adds_processes_and_cards_and_counts_no_process_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Card(compute=[(10, 4000), (11, 500), (99, 70000)], graphics=[(10, 4000), (12, 30)])
    second = Card(compute=[(10, 1000), (10, 200), (11, None)], error=0)
    Driver([first, second]).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu.used_bytes(frozenset({10, 11, 12})) == 4000 + 500 + 30 + 1200
    assert gpu.used_bytes(frozenset()) == 0
