"""The GPUs that a program started by this process would see, by NVML, the driver's own library.

Needs the package `nvidia-ml-py` and nothing else, on Python 3.10 or later: toolchains run this file under their own
interpreters (`infra.toolchains`). `python -m infra.gpu` prints the report.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Gpu:
    """One GPU. Sizes are bytes; both are 0 if the GPU shares the host's memory and NVML knows no size."""

    index: int
    """NVML's number, by position on the PCI bus; CUDA has the same numbers with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    product: str
    """As nvidia-smi prints it: `NVIDIA H200`."""
    architecture: str
    """`sm90` for compute capability 9.0."""
    memory_bytes: int
    free_bytes: int
    uuid: str


@dataclass(frozen=True)
class GpuReport:
    """What NVML reports. Versions are empty if NVML does not work on this machine."""

    driver: str
    cuda: str
    """The newest CUDA version that the driver supports: `13.0`. Programs may use an older one."""
    gpus: tuple[Gpu, ...]
    problem: str
    """Why there is no GPU, in words; empty if there is one."""


class _NoNvml(Exception):
    """NVML does not work on this machine; the message is the reason."""


def probe() -> GpuReport:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order. A machine without GPU or driver is no error."""
    try:
        with _nvml() as nvml:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            # 13000 for 13.0, 12080 for 12.8: CUDA_VERSION of cuda.h.
            major, rest = divmod(int(nvml.nvmlSystemGetCudaDriverVersion_v2()), 1000)
            gpus = [_gpu(nvml, index, handle) for index, handle in _handles(nvml)]
    except _NoNvml as error:
        return GpuReport(driver="", cuda="", gpus=(), problem=str(error))
    visible, problem = _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return GpuReport(driver=driver, cuda=f"{major}.{rest // 10}", gpus=visible, problem=problem)


def used_bytes(pids: frozenset[int]) -> int:
    """GPU memory that the processes `pids` hold now, over all GPUs, in bytes; 0 without a GPU.

    NVML names processes by the host's pids, or by none, so inside a container with pids of its own this is 0.
    """
    try:
        with _nvml() as nvml:
            return sum(_used_on(nvml, handle, pids) for _, handle in _handles(nvml))
    except _NoNvml:
        return 0


def _used_on(nvml: ModuleType, handle: object, pids: frozenset[int]) -> int:
    # A process that computes and draws is in both lists, each time with all of its memory.
    most: dict[int, int] = {}
    for processes in (
        nvml.nvmlDeviceGetComputeRunningProcesses(handle),
        nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
    ):
        held: dict[int, int] = {}
        for process in processes:
            if process.pid in pids:
                # A process is listed once for each of its MIG slices; None is a size that the driver does not know.
                held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
        for pid, size in held.items():
            most[pid] = max(size, most.get(pid, 0))
    return sum(most.values())


@contextmanager
def _nvml() -> Generator[ModuleType]:
    """NVML, initialized. Raises _NoNvml, also for what goes wrong while it is used."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise _NoNvml("the Python package nvidia-ml-py is not installed, so the GPUs cannot be listed") from None
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError_LibraryNotFound:
        raise _NoNvml("this machine has no NVML library (libnvidia-ml.so.1): no NVIDIA driver is installed") from None
    except nvml.NVMLError_DriverNotLoaded:
        raise _NoNvml("the NVIDIA driver is installed but not loaded") from None
    except nvml.NVMLError_NoPermission:
        raise _NoNvml("this user may not use the NVIDIA driver") from None
    # The second is raised by a driver too old for a call. It is no subclass of the first, and pynvml 11 lacks it.
    except (nvml.NVMLError, getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)) as error:
        raise _NoNvml(f"NVML failed: {error}") from None


def _handles(nvml: ModuleType) -> list[tuple[int, object]]:
    handles: list[tuple[int, object]] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        # The count includes GPUs of other users and other containers.
        try:
            handles.append((index, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError_NoPermission:
            continue
    return handles


def _gpu(nvml: ModuleType, index: int, handle: object) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:
        total, free = 0, 0
    return Gpu(
        index=index,
        product=_text(nvml.nvmlDeviceGetName(handle)),
        architecture=f"sm{major}{minor}",
        memory_bytes=total,
        free_bytes=free,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
    )


def _visible(gpus: list[Gpu], selection: str | None) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that CUDA would show for this CUDA_VISIBLE_DEVICES, and the reason if it would show none.

    Source: CUDA programming guide, environment variables: indexes or unambiguous beginnings of UUIDs, in the order
    wanted; the list ends at the first entry that names no GPU.
    """
    if not gpus:
        return (), "the NVIDIA driver is loaded, and shows this process no GPU"
    if selection is None:
        return tuple(gpus), ""
    chosen: list[Gpu] = []
    for entry in selection.split(","):
        name = entry.strip()
        named = [gpu for gpu in gpus if (gpu.index == int(name) if name.isdecimal() else _begins(gpu.uuid, name))]
        if len(named) != 1:
            break
        chosen += named
    return tuple(chosen), "" if chosen else f"CUDA_VISIBLE_DEVICES={selection!r} leaves no GPU visible"


def _begins(uuid: str, name: str) -> bool:
    return name.startswith("GPU-") and uuid.startswith(name)


def _text(value: str | bytes) -> str:
    # Bytes before pynvml 11.5, which the toolchains of old versions have.
    return value.decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(probe()), indent=2))
