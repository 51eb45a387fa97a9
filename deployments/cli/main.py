"""The command `enginehouse`. Data goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate refused, 4 a person has to decide. Prefect is imported only by
commands that need it, and `--help` imports neither Prefect nor pydantic.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from deployments.cli.approval_commands import add_approval_commands
from deployments.cli.command import Command, say
from deployments.cli.flow_commands import add_flow_commands
from deployments.cli.gateway_commands import add_gateway_commands
from deployments.cli.load_commands import add_load_commands
from deployments.cli.machine_commands import add_machine_commands
from deployments.cli.model_commands import add_model_commands
from deployments.cli.prefect_commands import add_prefect_commands
from deployments.cli.release_commands import add_release_commands
from deployments.cli.stack_commands import add_stack_commands
from deployments.cli.status_commands import add_status_commands
from deployments.cli.store_commands import add_store_commands
from deployments.cli.toolchain_commands import add_toolchain_commands
from infra.errors import EnginehouseError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong use ends in SystemExit 2, as argparse has it."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        from infra import settings

        settings.activate()
        return command(options, settings.load())
    except EnginehouseError as error:
        say(f"error: {error}")
        if error.hint:
            say(f"\nhint: {error.hint}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return 1
    except BrokenPipeError:
        # Whoever read our output left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="enginehouse", description="Keeps a fleet of language models on Triton built, released and explained."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str, *, json: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        if json:
            sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    add_stack_commands(add)
    add_status_commands(add)
    add_model_commands(add)
    add_flow_commands(add)
    add_approval_commands(add)
    add_store_commands(add)
    add_release_commands(add)
    add_prefect_commands(add)
    add_machine_commands(add)
    add_toolchain_commands(add)
    add_gateway_commands(add)
    add_load_commands(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
