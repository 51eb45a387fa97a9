"""The processes in which Triton runs Python models."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

_STUB = "triton_python_backend_stub"


def model_processes(model: Path) -> list[psutil.Process]:
    """Those of the model in this folder of a repository, one for each of its instances."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            arguments = process.cmdline()
            if (
                len(arguments) > 1
                and arguments[0].endswith(_STUB)
                and Path(arguments[1]).is_relative_to(model.resolve())
            ):
                found.append(process)
    return found


def end_model_processes(model: Path) -> None:
    """Kill them, also one that stands still. Triton starts none by itself; it does when the model is loaded again."""
    for process in model_processes(model):
        with suppress(psutil.Error):
            process.kill()
