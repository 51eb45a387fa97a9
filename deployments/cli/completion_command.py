"""The command completion: a script for the shell."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deployments.cli.command import Add

if TYPE_CHECKING:
    from infra.settings import Settings


def add_completion_command(add: Add, parser: argparse.ArgumentParser) -> None:
    """`parser` is that of the whole command line."""

    def completion(options: argparse.Namespace, settings: Settings) -> int:
        from deployments.cli.completion import script

        print(script(parser, options.shell, settings.catalogue), end="")
        return 0

    sub = add("completion", completion, 'print what makes Tab complete: eval "$(enginehouse completion bash)"')
    sub.add_argument("shell", choices=("bash", "zsh"))
