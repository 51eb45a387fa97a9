"""What is taken of the GPU, as NVML says it, and a program that takes some."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from infra import gpu

MIB = 1 << 20
BACK_MIB = 200
"""Within so much, memory counts as given back: a driver keeps some of its own for each process that was."""

_FILLER = """
import sys, torch
taken = torch.empty({size}, dtype=torch.uint8, device="cuda")
print("taken", flush=True)
sys.stdin.read()
"""


def used_bytes() -> int:
    """Of the first GPU, whoever uses it."""
    first = gpu.probe().gpus[0]
    return first.memory_bytes - first.free_bytes


def free_bytes() -> int:
    return gpu.probe().gpus[0].free_bytes


def settled(seconds: float = 3.0) -> int:
    """`used_bytes` once it stands still: what a process held is given back a moment after its end."""
    last, until = used_bytes(), time.monotonic() + 60
    still_since = time.monotonic()
    while time.monotonic() - still_since < seconds and time.monotonic() < until:
        time.sleep(0.2)
        if abs((now := used_bytes()) - last) > MIB:
            last, still_since = now, time.monotonic()
    return last


def waited_for(condition: Callable[[int], bool], seconds: float = 60) -> int:
    """`used_bytes` once they are as wanted, or after so many seconds."""
    until = time.monotonic() + seconds
    while not condition(used := used_bytes()) and time.monotonic() < until:
        time.sleep(0.2)
    return used


@contextmanager
def filled(size: int) -> Generator[None]:
    """Somebody else's program holds `size` bytes of the GPU during the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", _FILLER.format(size=size)], stdin=pipe, stdout=pipe, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "taken\n", "the filler got no memory"
            yield
        finally:
            process.communicate("")
