"""The processes in which Triton runs Python models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_STUB = "triton_python_backend_stub"
_OWN = ("RssAnon:", "VmSwap:")
"""What a process alone has, in kB (proc_pid_status(5)): weights that it maps are read in, and dropped, as files are."""


def model_processes(model: Path) -> list[psutil.Process]:
    """Those of the model in this folder of a repository, one for each of its instances."""
    return [process for process, _ in _stubs(psutil.process_iter(), model.resolve())]


def memory_of_models(models: Path) -> dict[str, int]:
    """The bytes that the processes of each model in this repository have for themselves, with those they have started.

    By the names of the models' folders. A model without a process of its own is not in it.
    """
    folder, running = models.resolve(), list(psutil.process_iter())
    names = {process.pid: code.relative_to(folder).parts[0] for process, code in _stubs(running, folder)}
    parents: dict[int, int] = {}
    for process in running:
        with suppress(psutil.Error):
            parents[process.pid] = process.ppid()
    held: dict[str, int] = {}
    for pid in parents:
        above = pid
        while above not in names and above in parents:
            above = parents[above]
        if above in names:
            held[names[above]] = held.get(names[above], 0) + _own_bytes(pid)
    return held


def _stubs(processes: Iterable[psutil.Process], folder: Path) -> Iterator[tuple[psutil.Process, Path]]:
    """Those that run code below a folder, which has no links in it, with the code."""
    for process in processes:
        with suppress(psutil.Error):
            arguments = process.cmdline()
            if len(arguments) > 1 and arguments[0].endswith(_STUB) and Path(arguments[1]).is_relative_to(folder):
                yield process, Path(arguments[1])


def _own_bytes(pid: int) -> int:
    """0 for a process that has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(_OWN))
    return 0


def end_model_processes(model: Path) -> None:
    """Kill them, also one that stands still. Triton starts none by itself; it does when the model is loaded again."""
    for process in model_processes(model):
        with suppress(psutil.Error):
            process.kill()
