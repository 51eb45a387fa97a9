"""Commands of the environments with TensorRT-LLM that a worker uses: toolchain add, toolchain list."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json, say

if TYPE_CHECKING:
    from deployments.cli.columns import Cell, Colour
    from infra.settings import Settings
    from infra.toolchains.added import Environment


_HEADS = ("VERSION", "STATE", "FROM", "HOLDS")
_COLOURS: Mapping[str, Colour] = {"ready": "green", "changed": "yellow", "half-made": "yellow", "absent": "dim"}


def add_toolchain_commands(add: Add) -> None:
    parser = add("toolchain", _list, "the environments with TensorRT-LLM that ENGINEHOUSE_TOOLCHAIN=venv uses")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    text = "make and check the environment of a version, from its pins or from ENGINEHOUSE_TOOLCHAIN_INDEX"
    sub = commands.add_parser("add", help=text, description=text)
    sub.add_argument("version", help="of TensorRT-LLM, as published")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(command=_add)

    text = "what is there, and what pins could make"
    sub = commands.add_parser("list", help=text, description=text)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(command=_list)


def _add(options: argparse.Namespace, settings: Settings) -> int:
    from packaging.version import InvalidVersion, Version

    from deployments.cli.columns import print_table
    from infra.errors import UsageError
    from infra.toolchains.added import FOUND_PINS, add

    try:
        version = str(Version(options.version))
    except InvalidVersion as error:
        raise UsageError(f"'{options.version}' is not a version", hint="for example 1.2.1") from error
    say(f"making the environment of TensorRT-LLM {version}: minutes and gigabytes, unless it is there")
    examples = Path(settings.toolchain_examples) if settings.toolchain_examples else None
    made = add(settings.home / "toolchains", version, settings.toolchain_index, examples)
    if options.json:
        print_json(_document(made))
    else:
        print_table(_HEADS, [_cells(made)])
    if made.made_from == "index":
        say(f"it has no pins; what pip chose is in {made.path / FOUND_PINS}")
    if settings.toolchain != "venv":
        say("workers with ENGINEHOUSE_TOOLCHAIN=venv use it")
    return 0


def _list(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_table
    from infra.toolchains.added import listed

    found = list(listed(settings.home / "toolchains"))
    if options.json:
        print_json([_document(each) for each in found])
        return 0
    print_table(_HEADS, [_cells(each) for each in found])
    return 0


def _document(found: Environment) -> Mapping[str, object]:
    return {
        "version": found.version,
        "state": found.state,
        "made_from": found.made_from,
        "path": found.path,
        "versions": None if found.report is None else found.report.by_name,
    }


def _cells(found: Environment) -> list[Cell]:
    from deployments.cli.columns import Cell

    held: Mapping[str, str] = {} if found.report is None else found.report.by_name
    others = ", ".join(f"{name} {held[name]}" for name in ("tensorrt", "torch", "python") if held.get(name))
    cells = [Cell(found.version), Cell(found.state, _COLOURS[found.state]), Cell(found.made_from), Cell(others or "-")]
    return cells if found.state == "absent" else [*cells, Cell(str(found.path))]
