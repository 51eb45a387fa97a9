"""A toolchain on this machine: an interpreter that has TensorRT-LLM, in the worker's image or a virtual environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from infra.toolchains.finding import PROBE, Finding, find
from infra.toolchains.surroundings import fixed, inherited
from infra.toolchains.toolchain import PreparedCommand, ToolchainReport, under_mpi


@dataclass(frozen=True)
class InterpreterToolchain:
    """`python` is absolute. `examples` is searched before the usual folders. The digest is of the worker's image."""

    python: Path
    examples: Path | None = None
    container_digest: str = ""

    def report(self) -> ToolchainReport:
        return self._finding.report(self.container_digest)

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
        return PreparedCommand(
            argv=under_mpi([*self._finding.tool(tool, str(self.python)), *arguments], ranks),
            environment=self._environment(folder),
            container="",
        )

    @cached_property
    def _finding(self) -> Finding:
        examples = [str(self.examples)] if self.examples is not None else []
        argv = [str(self.python), str(PROBE), *examples]
        return find(argv, self._environment(Path("/nonexistent")), f"the toolchain {self.python}")

    def _environment(self, folder: Path) -> dict[str, str]:
        surroundings = inherited()
        # Tools start each other by name, mpirun and trtllm-build's workers too.
        path = os.pathsep.join([str(self.python.parent), surroundings.get("PATH", os.defpath)])
        return {**surroundings, **fixed(folder), "PATH": path}
