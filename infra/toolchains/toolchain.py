"""What a toolchain is: a TensorRT-LLM with an interpreter of its own, which reports its versions and runs its tools.

Enginehouse never imports `tensorrt_llm`, whose pins conflict with those of most packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packaging.version import Version

from infra.errors import SettingsError
from infra.gpu import GpuReport
from infra.toolchains.versions import Versions

BUILD = "trtllm-build"
"""The one tool that is a program. Every other is a script, named by its path in the examples folder."""


@dataclass(frozen=True)
class PreparedCommand:
    """One call of a tool, ready to run in its work folder."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """The whole environment: nothing else is inherited."""
    container: str
    """The name of the container that the command starts, which must be ended with it; empty if it starts none."""


class ToolchainReport(Versions):
    """What a toolchain really holds, as found in it."""

    container_digest: str
    """`sha256:…` of the image; empty if it is not known."""
    free_host_bytes: int
    """Memory that a program could take now without swapping, on the whole machine."""
    gpus: GpuReport


class Toolchain(Protocol):
    """A TensorRT-LLM and its interpreter. Its report is made by a small program in it, once for each object."""

    def report(self) -> ToolchainReport:
        """What the toolchain holds.

        Raises SettingsError `toolchain-broken` if the probe fails, `toolchain-missing` if it has no TensorRT-LLM.
        """
        ...

    def command(
        self,
        tool: str,
        arguments: Sequence[str],
        *,
        inputs: Sequence[Path],
        outputs: Sequence[Path],
        folder: Path,
        ranks: int = 1,
    ) -> PreparedCommand:
        """The call of `tool`: BUILD, a script such as `llama/convert_checkpoint.py`, or the absolute path of a script.

        MPI starts it if `ranks` is more than 1. `folder` is the work folder; `inputs` are only read, `outputs` are
        written. All are absolute and exist.
        Raises what `report` raises, and SettingsError `tool-missing` if this version has no such tool.
        """
        ...


def is_pinned_image(image: str) -> bool:
    """Whether an image is named by its digest, `NAME@sha256:…`: a tag may be another image tomorrow."""
    return re.fullmatch(r"[^\s@-][^\s@]*@sha256:[0-9a-f]{64}", image) is not None


def under_mpi(argv: Sequence[str], ranks: int) -> tuple[str, ...]:
    """`argv` as so many MPI processes. Containers run as root, which Open MPI refuses without the option."""
    return tuple(argv) if ranks == 1 else ("mpirun", "--allow-run-as-root", "-n", str(ranks), *argv)


def require(report: ToolchainReport, wanted: str) -> None:
    """Raises SettingsError `version-mismatch` if the toolchain has another TensorRT-LLM than `wanted`.

    Post-releases and local versions are other versions: 0.17.0.post1 is not 0.17.0.
    """
    if Version(report.tensorrt_llm) != Version(wanted):
        raise SettingsError(
            f"the toolchain has TensorRT-LLM {report.tensorrt_llm}, but {wanted} is wanted",
            hint="run on a worker that has the wanted version, or change ENGINEHOUSE_TOOLCHAIN or the recipe's runtime",
            code="version-mismatch",
        )
