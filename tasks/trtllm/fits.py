"""Whether a machine has what was planned for: a worker for a build, a node for an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from infra.toolchains.toolchain import ToolchainReport
from tasks.targets.node_report import Machine


@dataclass(frozen=True)
class Planned:
    """What is needed. Empty values are not compared. `gpus` are the numbers of the GPUs in use, None for all."""

    tensorrt_llm: str = ""
    tensorrt: str = ""
    image: str = ""
    """`sha256:…`."""
    architecture: str = ""
    product: str = ""
    gpus: Sequence[int] | None = None


@dataclass(frozen=True)
class Found:
    """What a machine has. A version is empty if the machine does not have it, or does not know it."""

    tensorrt_llm: str
    tensorrt: str
    image: str
    gpus: tuple[tuple[str, str], ...]
    """Architecture and product of each GPU, in the order in which CUDA numbers them."""
    gpu_problem: str
    """Why there is no GPU."""

    @classmethod
    def on_worker(cls, report: ToolchainReport) -> Found:
        gpus = tuple((gpu.architecture, gpu.product) for gpu in report.gpus.gpus)
        return cls(report.tensorrt_llm, report.tensorrt, report.container_digest, gpus, report.gpus.problem)

    @classmethod
    def on_node(cls, machine: Machine) -> Found:
        gpus = tuple((gpu.architecture, gpu.product) for gpu in machine.gpus)
        return cls(machine.tensorrt_llm, machine.tensorrt, machine.container, gpus, machine.gpu_problem)


def differences(planned: Planned, found: Found) -> list[str]:
    """Why the machine is not what was planned for, one clause a reason. Empty if it is."""
    return [*_image(planned, found), *_tensorrt_llm(planned, found), *_tensorrt(planned, found), *_gpus(planned, found)]


def is_tensorrt(planned: str, found: str) -> bool:
    """Whether both are one TensorRT. Packages and tables give more or fewer parts of its version: 10.8.0, 10.8.0.43."""
    if not found:
        return False
    wanted, present = Version(planned).release, Version(found).release
    known = min(len(wanted), len(present))
    return wanted[:known] == present[:known]


def _image(planned: Planned, found: Found) -> Iterator[str]:
    # A toolchain outside a container has no image to compare.
    if planned.image and found.image and planned.image != found.image:
        yield f"its image is {found.image}, and {planned.image} is needed"


def _tensorrt_llm(planned: Planned, found: Found) -> Iterator[str]:
    if planned.tensorrt_llm and not _is_tensorrt_llm(planned.tensorrt_llm, found.tensorrt_llm):
        present = f"TensorRT-LLM {found.tensorrt_llm}" if found.tensorrt_llm else "no TensorRT-LLM that it knows of"
        yield f"it has {present}, and {planned.tensorrt_llm} is needed"


def _is_tensorrt_llm(planned: str, found: str) -> bool:
    # A post-release is another version: 0.17.0.post1 does not do for 0.17.0.
    try:
        return Version(planned) == Version(found)
    except InvalidVersion:
        return planned == found


def _tensorrt(planned: Planned, found: Found) -> Iterator[str]:
    if planned.tensorrt and not is_tensorrt(planned.tensorrt, found.tensorrt):
        present = f"TensorRT {found.tensorrt}" if found.tensorrt else "no TensorRT that it knows of"
        yield f"it has {present}, and {planned.tensorrt} is needed"


def _gpus(planned: Planned, found: Found) -> Iterator[str]:
    if not found.gpus:
        yield f"it has no GPU: {found.gpu_problem or 'it reports none'}"
        return
    used = range(len(found.gpus)) if planned.gpus is None else planned.gpus
    if max(used) >= len(found.gpus):
        yield f"its last GPU is number {len(found.gpus) - 1}, and the engine takes number {max(used)}"
        return
    for needed, part in ((planned.architecture, 0), (planned.product, 1)):
        others = sorted({found.gpus[number][part] for number in used} - {needed})
        if needed and others:
            yield f"its GPUs are {', '.join(others)}, and {needed} is needed"
            return
