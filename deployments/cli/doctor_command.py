"""The command doctor: what is wrong with this set-up, and the command that mends it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json

if TYPE_CHECKING:
    from infra.settings import Settings


def add_doctor_command(add: Add) -> None:
    sub = add("doctor", _doctor, "look at this set-up, and say what is wrong and what mends it", json=True)
    sub.add_argument("check", nargs="*", help="only these checks; all, if none is named")


def _doctor(options: argparse.Namespace, settings: Settings) -> int:
    """The exit code is 1 if anything is wrong. What is worth knowing, or could not be looked at, leaves it at 0."""
    from deployments.doctor.examine import examine
    from deployments.doctor.table import named
    from deployments.doctor.text import document, lines

    examined = examine(named(options.check), settings)
    if options.json:
        print_json(document(examined))
    else:
        for line in lines(examined):
            print(line)
    return int(any(each.is_wrong for each in examined))
