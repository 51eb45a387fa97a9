"""Reference of the command line, from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from deployments.cli.completion import actions_of, subcommands
from deployments.cli.main import command_line
from deployments.docs.markdown import code, in_table, table

_HEAD = """\
# The command line

Data goes to stdout, everything else to stderr. `--json` is there wherever a program may read the answer. Exit codes are
those of the [errors](errors.md). `eval "$(enginehouse completion bash)"` has Tab complete commands, options and models.
"""


def command_page() -> Iterator[str]:
    """The lines of the page: a heading for each command, with usage and arguments."""
    parser = command_line()
    yield from _HEAD.splitlines()
    yield ""
    for name, command in subcommands(parser).items():
        yield from _section(name, command)


def _section(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield in_table(_sentence(parser.description or ""))
    yield ""
    inner = subcommands(parser)
    if not inner:
        yield "```text"
        yield " ".join(parser.format_usage().removeprefix("usage: ").split())
        yield "```"
        yield ""
    rows = [(code(_form(action)), _default(action), in_table(_words(action))) for action in actions_of(parser)]
    rows = [row for row in rows if row[0] not in ("", "`-h`, `--help`")]
    if rows and not inner:
        yield from table(("argument", "default", "meaning"), rows)
    for each, command in inner.items():
        yield from _section(f"{name} {each}", command)


def _form(action: argparse.Action) -> str:
    """An argument as it is typed: with its value, where it takes one."""
    if action.dest in ("help", argparse.SUPPRESS):  # --help, and the commands below this one
        return ""
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return value
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value}"


def _default(action: argparse.Action) -> str:
    if action.default in (None, False, "", argparse.SUPPRESS) or action.default == [] or action.default == ():
        return "required" if action.option_strings and action.required else ""
    return code(str(action.default))


def _words(action: argparse.Action) -> str:
    if action.help in (None, argparse.SUPPRESS):
        return ""
    known = {**vars(action), "prog": "enginehouse"}
    return _sentence((action.help or "") % known if "%" in (action.help or "") else action.help or "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
