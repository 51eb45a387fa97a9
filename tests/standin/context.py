"""The machine and the version that a tool of the stand-in runs on, and the lines that it prints."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from tests.standin.facts import RELEASES, Release, numbers

_LEVELS = ("trace", "debug", "verbose", "info", "warning", "error", "internal_error")


@dataclass(frozen=True)
class Context:
    version: str
    """Of TensorRT-LLM."""
    architecture: str
    """Of every GPU: `sm90`."""
    gpus: int

    @property
    def release(self) -> Release:
        return RELEASES[self.version]

    @property
    def compute(self) -> str:
        """The architecture as TensorRT writes it: `9.0`."""
        digits = self.architecture.removeprefix("sm")
        return f"{digits[:-1]}.{digits[-1]}"

    def since(self, version: str) -> bool:
        return numbers(self.version) >= numbers(version)

    def visible_gpus(self) -> int:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return self.gpus if visible is None else min(self.gpus, len([part for part in visible.split(",") if part]))

    def banner(self) -> None:
        """Print what every program prints that imports the package."""
        name = "TensorRT LLM" if self.since("1.2") else "TensorRT-LLM"
        print(f"[TensorRT-LLM] {name} version: {self.version}", end="\n" if self.since("0.9") else "", flush=True)


@dataclass(frozen=True)
class Log:
    """The package's own log, on standard output."""

    level: str

    def info(self, text: str) -> None:
        self._line("info", "[I]", text)

    def warning(self, text: str) -> None:
        self._line("warning", "[W]", text)

    def error(self, text: str) -> None:
        self._line("error", "[E]", text)

    def _line(self, level: str, sign: str, text: str) -> None:
        if _LEVELS.index(level) >= _LEVELS.index(self.level):
            print(f"[{_now()}] [TRT-LLM] {sign} {text}", flush=True)


def tensorrt(sign: str, text: str) -> None:
    """A line of TensorRT's own log, on standard error."""
    print(f"[{_now()}] [TRT] [{sign}] {text}", file=sys.stderr, flush=True)


def runtime(level: str, text: str) -> None:
    """A line of the C++ runtime's log: errors on standard error, the rest on standard output."""
    print(f"[TensorRT-LLM][{level}] {text}", file=sys.stderr if level == "ERROR" else sys.stdout, flush=True)


def clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds))


def _now() -> str:
    return time.strftime("%m/%d/%Y-%H:%M:%S")
