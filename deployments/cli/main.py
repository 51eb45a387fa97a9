"""The command `enginehouse`. Data goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate refused, 4 a person has to decide. Prefect is imported only by
commands that need it, and `--help` imports neither Prefect nor pydantic.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from itertools import pairwise
from typing import BinaryIO, cast

from deployments.cli.approval_commands import add_approval_commands
from deployments.cli.command import Answered, Command, error_document, print_json, say
from deployments.cli.completion_command import add_completion_command
from deployments.cli.doctor_command import add_doctor_command
from deployments.cli.flow_commands import add_flow_commands
from deployments.cli.gateway_commands import add_gateway_commands
from deployments.cli.init_command import add_init_command
from deployments.cli.life_commands import add_life_commands
from deployments.cli.load_commands import add_load_commands
from deployments.cli.log_commands import add_log_commands
from deployments.cli.machine_commands import add_machine_commands
from deployments.cli.model_commands import add_model_commands
from deployments.cli.parser import Parser
from deployments.cli.prefect_commands import add_prefect_commands
from deployments.cli.release_commands import add_release_commands
from deployments.cli.stack_commands import add_stack_commands
from deployments.cli.status_commands import add_status_commands
from deployments.cli.store_commands import add_store_commands
from deployments.cli.toolchain_commands import add_toolchain_commands
from infra.errors import EnginehouseError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `--help` and `--version` end in SystemExit 0, as argparse has it."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    _print_any_text()
    # A command keeps most of what it makes: at every 700 objects, the collector takes a tenth of `status` for nothing.
    gc.set_threshold(10_000)
    try:
        return _run(given)
    except Answered as answered:
        return _tell(answered.error, json=False)
    except EnginehouseError as error:
        return _tell(error, json=_asks_for_json(given))
    except KeyboardInterrupt:
        say("interrupted")
        return 1
    except BrokenPipeError:
        # Whoever read our output left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(given: Sequence[str]) -> int:
    options = command_line().parse_args(given)
    command: Command = options.command
    from infra import settings

    settings.activate()
    here = settings.load()
    try:
        return command(options, here)
    except EnginehouseError as error:
        from deployments.cli.meant import hint

        error.hint = hint(error, options, here)
        raise


def _tell(error: EnginehouseError, *, json: bool) -> int:
    """Tell people of an error, and with `json` the program that reads stdout. Returns the exit code."""
    say(f"error: {error}")
    if error.hint:
        say(f"\nhint: {error.hint}")
    if json:
        print_json({"error": error_document(error)})
    return error.exit_code


def _asks_for_json(given: Sequence[str]) -> bool:
    """Whether stdout is for a program, also where the command line could not be read."""
    return "--json" in given or "--format=json" in given or ("--format", "json") in pairwise(given)


def _print_any_text() -> None:
    """Print what the terminal's encoding lacks as escapes: `→` is part of ordinary lines, and Latin-1 has none."""
    stdout: object = sys.stdout  # a test may have put something else in its place
    if isinstance(stdout, TextIOWrapper):
        cast("TextIOWrapper[BinaryIO]", stdout).reconfigure(errors="backslashreplace")


class _Version(argparse.Action):
    """Reads the version only when it is asked for: that takes longer than the whole of `--help`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version

        print(f"enginehouse {version('enginehouse')}")
        parser.exit()


def command_line() -> argparse.ArgumentParser:
    parser = Parser(
        prog="enginehouse", description="Keeps a fleet of language models on Triton built, released and explained."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str, *, json: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        if json:
            sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    add_init_command(add)
    add_stack_commands(add)
    add_status_commands(add)
    add_doctor_command(add)
    add_model_commands(add)
    add_flow_commands(add)
    add_log_commands(add)
    add_approval_commands(add)
    add_store_commands(add)
    add_release_commands(add)
    add_life_commands(add)
    add_prefect_commands(add)
    add_machine_commands(add)
    add_toolchain_commands(add)
    add_gateway_commands(add)
    add_load_commands(add)
    add_completion_command(add, parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
