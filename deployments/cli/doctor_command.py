"""The command doctor: what is wrong with this set-up, and the command that mends it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json

if TYPE_CHECKING:
    from deployments.cli.columns import Colour
    from infra.settings import Settings


_COLOURS: Mapping[str, Colour] = {"fine": "green", "notice": "yellow", "wrong": "red", "not made": "dim"}


def add_doctor_command(add: Add) -> None:
    sub = add("doctor", _doctor, "look at this set-up, and say what is wrong and what mends it", json=True)
    sub.add_argument("check", nargs="*", help="only these checks; all, if none is named")


def _doctor(options: argparse.Namespace, settings: Settings) -> int:
    """The exit code is 1 if anything is wrong. What is worth knowing, or could not be looked at, leaves it at 0."""
    from deployments.cli.columns import Style
    from deployments.doctor.examine import examine
    from deployments.doctor.table import named
    from deployments.doctor.text import STATE_WIDTH, document, lines

    examined = examine(named(options.check), settings)
    if options.json:
        print_json(document(examined))
    else:
        style = Style.of_stdout()
        for line in lines(examined):
            state = line[:STATE_WIDTH].strip()
            print(f"{style.paint(state, _COLOURS[state])}{line[len(state) :]}" if state in _COLOURS else line)
    return int(any(each.is_wrong for each in examined))
