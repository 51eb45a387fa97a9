"""Running the probe in a toolchain's interpreter, and finding the tools in its report."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version
from pydantic import ValidationError

from infra.errors import SettingsError
from infra.gpu import GpuReport
from infra.toolchains.toolchain import BUILD, ToolchainReport
from infra.toolchains.versions import Versions

PROBE = Path(__file__).with_name("report_probe.py")
GPU_PROBE = PROBE.parent.parent / "gpu.py"
"""PROBE runs this file, so both must be readable in the toolchain."""

# The first start of a container reads tens of gigabytes from disk before its interpreter runs.
_PROBE_TIMEOUT_S = 300

# The folders of a model's example: the root up to TensorRT-LLM 0.19, one of the others from 0.20 on.
_MODEL_FOLDERS = ("", "models/core/", "models/contrib/")


class Finding(Versions):
    """What `report_probe.py` printed."""

    tensorrt_llm_source: str
    """The version in `tensorrt_llm/version.py`."""
    free_host_bytes: int
    gpus: GpuReport
    build: str
    """The path of trtllm-build; empty if it is missing."""
    examples: dict[str, list[str]]
    """The scripts below each examples folder; an earlier folder wins."""

    def report(self, container_digest: str) -> ToolchainReport:
        versions = {**self.by_name, "tensorrt_llm": self.tensorrt_llm or self.tensorrt_llm_source}
        return ToolchainReport(
            **versions, container_digest=container_digest, free_host_bytes=self.free_host_bytes, gpus=self.gpus
        )

    def tool(self, name: str, python: str) -> tuple[str, ...]:
        """The first words of the command line of `name`. Raises SettingsError `tool-missing`."""
        if name.startswith("/"):
            return (python, name)
        version = self.tensorrt_llm or self.tensorrt_llm_source
        if name == BUILD:
            if self.build:
                return (self.build,)
            raise SettingsError(
                f"the toolchain's TensorRT-LLM {version} has no program {BUILD}",
                hint="from 1.3 on there is only kind llmapi, without a build; install an older TensorRT-LLM",
                code="tool-missing",
            )
        for folder, scripts in self.examples.items():
            for models in _MODEL_FOLDERS:
                if models + name in scripts:
                    return (python, f"{folder}/{models}{name}")
        raise SettingsError(
            f"no script {name} in the toolchain's examples folders: {', '.join(self.examples) or 'it has none'}",
            hint=f"set ENGINEHOUSE_TOOLCHAIN_EXAMPLES to the examples folder of a checkout of TensorRT-LLM v{version}",
            code="tool-missing",
        )


def find(argv: Sequence[str], environment: Mapping[str, str], what: str) -> Finding:
    """Run the probe with `argv` and read its report; `what` names the toolchain in errors. Raises SettingsError."""
    try:
        ran = subprocess.run(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PROBE_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise SettingsError(
            f"{what} has no interpreter: {error.filename} does not exist",
            hint="set ENGINEHOUSE_TOOLCHAIN to the place where TensorRT-LLM is installed",
            code="toolchain-missing",
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _broken(what, str(error)) from None
    if ran.returncode != 0:
        raise _broken(what, ran.stderr.strip() or ran.stdout.strip() or f"exit status {ran.returncode}")
    try:
        # Images print a banner first.
        finding = Finding.model_validate_json(ran.stdout.rstrip().rpartition("\n")[2])
    except ValidationError:
        raise _broken(what, f"not a report: {ran.stdout}") from None
    _check(finding, what)
    return finding


def _check(finding: Finding, what: str) -> None:
    installed, source = finding.tensorrt_llm, finding.tensorrt_llm_source
    if not installed and not source:
        raise SettingsError(
            f"{what} has no TensorRT-LLM",
            hint="set ENGINEHOUSE_TOOLCHAIN to venv:/path, docker:IMAGE@sha256:… or local:/path/python3 that has it",
            code="toolchain-missing",
        )
    # With a checkout first on the path and a wheel of another version, the tools would mix both.
    try:
        numbers = {Version(Version(version).base_version) for version in (installed, source) if version}
    except InvalidVersion as error:
        raise _broken(what, str(error)) from None
    if len(numbers) > 1:
        raise _broken(what, f"it has TensorRT-LLM {installed} installed, but imports {source} from elsewhere")


def _broken(what: str, reason: str) -> SettingsError:
    return SettingsError(
        f"the probe of {what} failed: {reason[-2000:]}",
        hint="check that its interpreter runs; Python 3.10 or later is needed",
        code="toolchain-broken",
    )
