"""Run the tool that exports a checkpoint, in its own interpreter, without a credential and offline."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from infra import settings
from infra.errors import SettingsError, StepFailed
from infra.processes import child
from infra.toolchains.surroundings import fixed, inherited
from tasks.exporters.commands import command
from tasks.models.source import Source
from tasks.store.reporter import Peak, Reporter

_TIMEOUT_S = 24 * 3600.0
_VERSION_TIMEOUT_S = 300.0
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


def export(source: Source, checkpoint: Path, like: Path | None, output: Path, folder: Path, reporter: Reporter) -> Peak:
    """Write the checkpoint to the new folder `output`. `folder` is the tool's, for what it leaves beside.

    Raises SettingsError `tool-missing`, and StepFailed: `runtime-differs` if the interpreter has another version than
    the model's file names, `export-failed` with the end of the tool's output.
    """
    config = settings.load()
    argv = command(config, source, checkpoint, like, output)
    environment = {**inherited(), **fixed(folder)}
    _require_version(source, config.exporter, environment, folder)
    reporter.say(shlex.join(argv))
    outcome = child.run(argv, folder=folder, environment=environment, timeout_s=_TIMEOUT_S, on_line=reporter.say)
    if outcome.exit_code != 0 or not output.is_dir():
        raise StepFailed(
            f"{source.exporter} did not export {source.uri}: {_last_line(outcome.tail)}",
            code="export-failed",
            hint="its output is in the run's log; `form`, `like` and `exporter` of the source must fit the checkpoint",
        )
    return Peak(outcome.peak_host_bytes, outcome.peak_gpu_bytes)


def _require_version(source: Source, python: str, environment: Mapping[str, str], folder: Path) -> None:
    name, _, wanted = str(source.exporter).partition("==")
    try:
        asked = subprocess.run(
            [python, "-c", _VERSION, name],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsError(
            f"{python} does not run: {error}", hint="ENGINEHOUSE_EXPORTER names an interpreter", code="tool-missing"
        ) from error
    found = asked.stdout.strip() if asked.returncode == 0 else "none"
    if found != wanted:
        raise StepFailed(
            f"{python} has {name} {found}, and the source of the model's file names {wanted}",
            hint="run it on a worker with that version, or change `source.exporter`",
            code="runtime-differs",
        )


def _last_line(tail: str) -> str:
    return next((line for line in reversed(tail.strip().splitlines()) if line.strip()), "it printed nothing")
