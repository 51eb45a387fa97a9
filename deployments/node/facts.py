"""What a node knows of its machine: TensorRT-LLM and TensorRT, probed once, and its GPUs, probed again and again."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shutil import which

from infra import gpu
from infra.errors import SettingsError
from infra.gpu import GpuReport
from infra.settings import Settings
from infra.toolchains.choose import IMAGE_DIGEST
from infra.toolchains.interpreter import InterpreterToolchain
from infra.toolchains.toolchain import ToolchainReport
from infra.triton.installation import image_python
from infra.triton.weakness import triton_release, weakness
from tasks.kinds.serving_mode import orchestrated_gpus
from tasks.targets.node_report import REPORT_SECONDS, Machine, NodeGpu

_log = logging.getLogger("enginehouse.node")


class Facts:
    """`triton` is the folder of Triton in NVIDIA's image, `runtime` what the image's interpreter holds.

    Both are None with the Triton of the wheel. GPUs are sampled every `sample_seconds`, by default as often as a node
    reports.
    """

    def __init__(
        self, triton: Path | None, runtime: ToolchainReport | None, *, sample_seconds: float = REPORT_SECONDS
    ) -> None:
        self.triton = triton
        self._runtime = runtime
        self._sample_seconds = sample_seconds
        self._gpus = gpu.probe()
        self._sampled = time.monotonic()
        self._asked: Future[GpuReport] | None = None
        if known := weakness(self.triton_release):
            _log.warning("%s", known)
        self._prober = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpus")

    @classmethod
    def of(cls, settings: Settings) -> Facts:
        """The facts of this machine. Raises SettingsError if the interpreter of its image does not work."""
        if not settings.triton:
            return cls(None, None)
        toolchain = InterpreterToolchain(image_python(), container_digest=os.environ.get(IMAGE_DIGEST, ""))
        try:
            return cls(Path(settings.triton), toolchain.report())
        except SettingsError as error:
            if error.code != "toolchain-missing":
                raise
            # An image of Triton without TensorRT-LLM still serves what needs none.
            return cls(Path(settings.triton), None)

    @property
    def triton_release(self) -> str:
        return triton_release(of_image=self.triton is not None)

    @property
    def orchestrated_gpus(self) -> int:
        """On how many GPUs Triton spawns workers of TensorRT-LLM; 0 if it runs engines in its own process."""
        version = self._runtime.tensorrt_llm if self._runtime is not None else ""
        return orchestrated_gpus(version, len(self._gpus.gpus))

    @property
    def _groups(self) -> bool:
        """Whether an engine can have servers of its own: the image has TensorRT-LLM, and mpirun to start them."""
        return self._runtime is not None and bool(self._runtime.tensorrt_llm) and which("mpirun") is not None

    def machine(self) -> Machine:
        """The record of this machine; free memory is a few seconds old. Never waits for NVML, which may be slow."""
        if self._asked is None and time.monotonic() - self._sampled >= self._sample_seconds:
            self._asked = self._prober.submit(gpu.probe)
        elif self._asked is not None and self._asked.done():
            self._gpus, self._sampled, self._asked = self._asked.result(), time.monotonic(), None
        runtime = self._runtime
        return Machine(
            gpus=tuple(
                NodeGpu(
                    product=each.product,
                    architecture=each.architecture,
                    memory_bytes=each.memory_bytes,
                    free_bytes=each.free_bytes,
                )
                for each in self._gpus.gpus
            ),
            gpu_problem=self._gpus.problem,
            driver=self._gpus.driver,
            tensorrt_llm=runtime.tensorrt_llm if runtime is not None else "",
            tensorrt=runtime.tensorrt if runtime is not None else "",
            container=runtime.container_digest if runtime is not None else "",
            triton=self.triton_release,
            groups=self._groups,
        )
