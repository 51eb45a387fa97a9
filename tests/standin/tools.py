"""The stand-in for TensorRT-LLM's tools: programs that take a version's flags, and fail, log and write as they do.

Nothing of it computes on a GPU or imports `tensorrt_llm`. The scripts that `toolchain.make` writes call `main`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

from tests.standin import answer, build, convert, converters, failures, heads, quantize
from tests.standin.context import Context
from tests.standin.facts import numbers, parser

_TOOLS: Mapping[str, Callable[[argparse.Namespace, Context], None]] = {
    convert.TOOL: convert.run,
    quantize.TOOL: quantize.run,
    build.TOOL: build.run,
    answer.TOOL: answer.run,
    heads.MEDUSA: heads.run_medusa,
    heads.EAGLE: heads.run_eagle,
}


def main(tool: str, context: Context) -> None:
    """Run `tool` with this process's arguments. It returns, raises or exits as the real tool does.

    `qwen/convert_checkpoint.py` is another converter than Llama's.
    """
    converter, _, name = tool.rpartition("/")
    converters.require_imports(converter, context)
    context.banner()
    if name == convert.TOOL:
        print(context.version, flush=True)
    failures.mismatched_import(name, context)
    if tool not in _TOOLS:
        made = converters.parser(converter, numbers(context.version)[:2])
        convert.run(made.parse_args(sys.argv[1:]), context, converter)
    else:
        _TOOLS[tool](parser(tool, context.version).parse_args(sys.argv[1:]), context)
