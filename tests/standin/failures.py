"""Ways to make the stand-in fail as the real tools do, in their words.

The variable TENSORRT_LLM_STANDIN_FAILURE chooses one or, where variables are not passed on, the file `standin-failure`
in the toolchain's folder: `NAME` for every tool, or `TOOL:NAME` for one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.standin.context import Context, Log, tensorrt

VARIABLE = "TENSORRT_LLM_STANDIN_FAILURE"
FILE = "standin-failure"

NAMES = (
    "host-memory",  # the kernel kills the process
    "gpu-memory",  # Torch's or TensorRT's words; 0.10 and 0.11 then exit with 0 and write no engine
    "world-size",  # sizes that do not multiply (converting, building), or another number of MPI ranks (running)
    "version",  # running: the engine is of another TensorRT
    "architecture",  # running: the engine is of another GPU architecture
    "script-mismatch",  # converting, quantizing: examples of another version than the wheel
    "hang",  # prints nothing more for ten minutes
    "hang-workers",  # the same in four worker processes, one in a session of its own
    "empty-rank",  # the last rank's file is empty, and everything else looks right
    "wrong-config",  # config.json differs from the flags
    "silent-answer",  # running: the answer of the engine is empty
)

_HANG_S = 600


class OutOfMemoryError(RuntimeError):
    """Printed with the name that the version's Torch gives it."""


def chosen(tool: str) -> str:
    """The failure chosen for `tool`; empty for none."""
    file = Path(sys.prefix) / FILE
    text = os.environ.get(VARIABLE) or (file.read_text().strip() if file.is_file() else "")
    wanted, colon, name = text.rpartition(":")
    if text and name not in NAMES:
        raise SystemExit(f"the stand-in has no failure {name!r}: {', '.join(NAMES)}")
    return name if not colon or wanted == tool else ""


def fail_if_chosen(tool: str, context: Context) -> None:
    """Hang, die or raise, as the chosen failure does. Tools call it at the point where they do their work."""
    name = chosen(tool)
    if name == "host-memory":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "hang":
        time.sleep(_HANG_S)
    elif name == "gpu-memory" and tool != "trtllm-build":
        # Torch renamed the class in 2.5.
        OutOfMemoryError.__module__ = "torch" if context.since("0.15") else "torch.cuda"
        raise OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 1002.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which "
            "512.00 MiB is free. Process 4242 has 78.60 GiB memory in use. Of the allocated memory 77.90 GiB is "
            "allocated by PyTorch, and 54.12 MiB is reserved by PyTorch but unallocated."
        )
    elif name == "world-size" and tool != "run.py":
        raise ValueError(_sizes_differ(context))


def hang_workers_if_chosen(tool: str) -> None:
    """Show the failure `hang-workers`. A tool's first process calls it before it does its work."""
    if chosen(tool) == "hang-workers":
        with ProcessPoolExecutor(max_workers=4, mp_context=get_context("spawn")) as pool:
            list(pool.map(_hang, range(4)))


def mismatched_import(tool: str, context: Context) -> None:
    """Raise what the first lines of a script raise beside the wheel of another version."""
    if chosen(tool) == "script-mismatch" and tool != "trtllm-build" and context.since("0.15"):
        raise ImportError("cannot import name 'infer_dtype' from 'tensorrt_llm._utils'")


def mismatched_call(tool: str) -> None:
    """Raise what a script before 0.15, which imports less, raises at its first call into another version's wheel."""
    if chosen(tool) == "script-mismatch":
        raise TypeError("Mapping.__init__() got an unexpected keyword argument 'moe_tp_size'")


def no_gpu_memory_for_the_engine(context: Context, log: Log) -> None:
    """Log what TensorRT logs if no tactic fits. From 0.12 on raises AssertionError; before, the tool goes on."""
    size = 24_793_579_520
    if context.since("0.10"):
        place = "virtualMemoryBuffer.cpp::resizePhysical::151"
        line = f"[{place}] Error Code 2: OutOfMemory (Requested size was {size} bytes.)"
        last = "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation "
    else:
        line = "2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (no further information)"
        last = (
            "10: [optimizer.cpp::computeCosts::4048] Error Code 10: Internal Error (Could not find any implementation "
        )
    tensorrt("E", line)
    tensorrt(
        "W",
        f"Requested amount of GPU memory ({size} bytes) could not be allocated. "
        "There may not be enough free memory for allocation to succeed.",
    )
    tensorrt("E", last + "for node {ForeignNode[LLaMAForCausalLM/transformer/ln_f/CAST_1]}.)")
    words = "Engine building failed, please check the error log."
    if context.since("0.12"):
        raise AssertionError(words)
    log.error(words)


def _sizes_differ(context: Context) -> str:
    if context.since("1.2"):
        return "world_size must equal to tp_size * pp_size * cp_size, but got 3 != 2 * 1 * 1."
    if context.since("0.12"):
        return "world_size must equal to pp_size * cp_size * tp_size, but got 3 != 1 * 1 * 2"
    return "world_size must equal to pp_size * tp_size" + (", but got 3 != 1 * 2" if context.since("0.9") else "")


def _hang(index: int) -> None:
    if index == 0:
        # Signals to the tool's process group do not reach it.
        os.setsid()
    time.sleep(_HANG_S)
