"""The stand-in for TensorRT-LLM's tools: programs that take a version's flags, and fail, log and write as they do.

Nothing of it computes on a GPU or imports `tensorrt_llm`. The scripts that `toolchain.make` writes call `main`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

from tests.standin import answer, build, convert, failures, heads, quantize
from tests.standin.context import Context
from tests.standin.facts import parser

_TOOLS: Mapping[str, Callable[[argparse.Namespace, Context], None]] = {
    convert.TOOL: convert.run,
    quantize.TOOL: quantize.run,
    build.TOOL: build.run,
    answer.TOOL: answer.run,
    heads.MEDUSA: heads.run_medusa,
    heads.EAGLE: heads.run_eagle,
}


def main(tool: str, context: Context) -> None:
    """Run `tool` with this process's arguments. It returns, raises or exits as the real tool does."""
    context.banner()
    if tool.endswith(convert.TOOL):
        print(context.version, flush=True)
    failures.mismatched_import(tool, context)
    arguments = parser(tool, context.version).parse_args(sys.argv[1:])
    _TOOLS[tool](arguments, context)
