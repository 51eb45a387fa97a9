"""Whether a tool's own `--help` has the arguments that the tool is about to get, before any GPU time is spent.

The help of the tool counts for more than the table of options, which was read from sources. The tool itself does not
refuse every unknown option: argparse takes one for a longer one that begins alike (0.12: --use_fp8 for
--use_fp8_rowwise).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from infra.errors import StepFailed


def check_against_help(tool: str, text: str, arguments: Sequence[str]) -> None:
    """Raise StepFailed `arguments-unrecognized` for an option or a choice that `text` does not have.

    `text` is what argparse prints for --help.
    """
    flat = re.sub(r"\s+", " ", text)
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", " ".join(_option_lines(text))))
    for position, word in enumerate(arguments):
        option, _, value = word.partition("=")
        if not option.startswith("--"):
            continue
        if option not in known:
            raise _unfit(f"{tool} has no option {option}")
        value = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
        choices = re.search(rf"{re.escape(option)} \{{([^}}]*)\}}", flat)
        if choices is not None and value not in choices[1].split(","):
            raise _unfit(f"{tool} takes {choices[1].replace(',', ', ')} for {option}, not '{value}'")


def _option_lines(text: str) -> list[str]:
    """The usage, and the first line of each description of an option, without the description itself."""
    usage, _, described = text.partition("\n\n")
    lines = [line for line in described.splitlines() if re.match(r" {2,4}-", line)]
    return [usage, *(re.split(r" {2,}", line.strip())[0] for line in lines)]


def _unfit(message: str) -> StepFailed:
    return StepFailed(
        f"{message}, according to its own --help",
        hint="the toolchain's TensorRT-LLM differs from Enginehouse's table of options; leave the field out of the "
        "recipe, or give the option in extra_args as this version spells it",
        code="arguments-unrecognized",
    )
