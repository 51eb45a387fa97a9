"""Runs one of TensorRT-LLM's tools in its toolchain, under supervision, and reports its output line by line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from infra import gpu, settings
from infra.errors import StepFailed
from infra.processes import child
from infra.settings import Settings
from infra.toolchains.choose import toolchain
from infra.toolchains.toolchain import Toolchain, ToolchainReport, require
from tasks.store.reporter import Peak, Reporter
from tasks.trtllm.fits import Found, Planned, differences
from tasks.trtllm.recipe import Runtime
from tasks.trtllm.tools.commands import ToolCommand
from tasks.trtllm.tools.failures import require_success
from tasks.trtllm.tools.own_help import check_against_help

# Quantizing a 405B model takes hours on eight GPUs. A tool that takes a day hangs.
_TIMEOUT_S = 24 * 3600.0


def toolchain_for(runtime: Runtime) -> tuple[Toolchain, ToolchainReport]:
    """This worker's toolchain and its report, after a check that it is what the recipe was planned for.

    Raises SettingsError if the worker has no toolchain or one of another version, and StepFailed `runtime-differs` if
    its TensorRT, image or GPUs differ.
    """
    found = _toolchain_once(settings.load(), runtime.tensorrt_llm)
    report = found.report()
    require(report, runtime.tensorrt_llm)
    planned = Planned(
        tensorrt=runtime.planned_tensorrt,
        image=runtime.image_digest,
        architecture=runtime.arch,
        product=runtime.gpu,
    )
    if problems := differences(planned, Found.on_worker(report)):
        raise StepFailed(
            f"this worker is not what was planned for: {'; '.join(problems)}",
            hint="run it on the pool of the recipe's architecture, in the recipe's image; if the image really has "
            "another TensorRT, set recipe.runtime.tensorrt in the model's file",
            code="runtime-differs",
        )
    return found, report


def run_tool(
    place: Toolchain,
    command: ToolCommand,
    *,
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    folder: Path,
    reporter: Reporter,
) -> tuple[Peak, str]:
    """Check the arguments of `command` against the tool's own help, then run it in `folder` to its end.

    Returns the most memory that it took, and the last 64 KiB of its output. Raises StepFailed with the code of the
    failure, and SettingsError if the toolchain has no such tool.
    """

    def run(arguments: Sequence[str], ranks: int, say: Callable[[str], None]) -> child.Outcome:
        call = place.command(command.tool, arguments, inputs=inputs, outputs=outputs, folder=folder, ranks=ranks)
        outcome = child.run(
            call.argv,
            folder=folder,
            environment=call.environment,
            timeout_s=_TIMEOUT_S,
            on_line=say,
            container=call.container,
            sample_gpu=gpu.used_bytes,
        )
        require_success(command.tool, outcome)
        return outcome

    help_lines: list[str] = []
    run(["--help"], 1, help_lines.append)
    check_against_help(command.tool, "\n".join(help_lines), command.arguments)
    reporter.say(shlex.join(command.argv))
    outcome = run(command.arguments, command.ranks, reporter.say)
    return Peak(outcome.peak_host_bytes, outcome.peak_gpu_bytes), outcome.tail


def described(report: ToolchainReport) -> Mapping[str, str]:
    """A report as manifests hold it: values by name, without the empty ones."""
    gpus = report.gpus.gpus
    values = {
        **report.by_name,
        "container": report.container_digest,
        "driver": report.gpus.driver,
        "gpu": gpus[0].product if gpus else "",
        "architecture": gpus[0].architecture if gpus else "",
        "gpus": str(len(gpus)),
    }
    return {name: value for name, value in values.items() if value}


@cache
def _toolchain_once(configured: Settings, version: str) -> Toolchain:
    """One object a process: a report runs a program in the toolchain, which takes seconds in a container."""
    return toolchain(configured, version)
