"""Running one of TensorRT-LLM's tools in its toolchain, under supervision, with its output told as it comes."""

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

# A 405B model quantizes for hours on eight GPUs; what takes a day hangs.
_TIMEOUT_S = 24 * 3600.0


def toolchain_for(runtime: Runtime) -> tuple[Toolchain, ToolchainReport]:
    """This worker's toolchain, once it has shown that it is what the recipe was planned for.

    Raises SettingsError where there is none or it is another version, and StepFailed `runtime-differs`.
    """
    found = _asked_once(settings.load(), runtime.tensorrt_llm)
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
            hint="run it on the pool of the recipe's architecture, in the recipe's image; where the image really has "
            "another TensorRT, say so in the model's file: recipe.runtime.tensorrt",
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
    """Run `command` in `folder` to its end, once the tool's own help has shown that it takes such arguments.

    Returns the most memory that it took, and the last 64 KiB of its output.

    Raises StepFailed with the code of the failure, SettingsError where the toolchain has no such tool.
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

    told: list[str] = []
    run(["--help"], 1, told.append)
    check_against_help(command.tool, "\n".join(told), command.arguments)
    reporter.say(shlex.join(command.argv))
    outcome = run(command.arguments, command.ranks, reporter.say)
    return Peak(outcome.peak_host_bytes, outcome.peak_gpu_bytes), outcome.tail


def described(report: ToolchainReport) -> Mapping[str, str]:
    """A report as it goes into a manifest, without what is empty."""
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
def _asked_once(here: Settings, version: str) -> Toolchain:
    """A toolchain says what it holds by running a program in it, which with a container takes seconds."""
    return toolchain(here, version)
