"""The GPUs and the driver of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deployments.doctor.check import Check, Finding, fine, not_made, wrong
from infra.gpu import GpuReport, probe
from infra.settings import Settings

_DEVICES = Path("/dev")


def _look(_: Settings) -> Iterator[Finding]:
    yield from gpus(probe(), has_device=any(_DEVICES.glob("nvidia[0-9]*")))


def gpus(report: GpuReport, *, has_device: bool) -> Iterator[Finding]:
    """`has_device` is whether the machine has the device of a GPU, which a driver that fails has too."""
    for gpu in report.gpus:
        memory = f"{gpu.free_bytes / 2**30:.0f} of {gpu.memory_bytes / 2**30:.0f} GiB free"
        yield fine(f"GPU {gpu.index}: {gpu.product} ({gpu.architecture}), {memory}, driver {report.driver}")
    if report.gpus:
        return
    if has_device or report.driver:
        yield wrong("gpu-unusable", f"there is a GPU, and nothing can use it: {report.problem}", "nvidia-smi")
    else:
        yield not_made(f"no GPU here: {report.problem}")


CHECK = Check("gpus", "the GPUs that this machine's programs see, and the driver", _look)
