"""How the command line is read: wrong use is an error of our own tree, with the nearest name that there is."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from infra.errors import UsageError
from infra.nearest import did_you_mean, nearest


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would end the process. Its commands are parsers of this class too."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] - its two forms are one
        self, args: Any = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """What is left over is refused here, by the parser of the command whose options it could have been."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            names = [name for action in self._actions for name in action.option_strings]
            meant = did_you_mean(left[0].partition("=")[0], names)
            raise UsageError(f"'{left[0]}' is not known here", hint=f"{meant}see `{self.prog} --help`")
        return found, left

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does it, but of many choices only the nearest is told."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        like = nearest(str(value), choices)
        meant = f"did you mean '{like}'?" if like else f"there are {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"'{value}' is not known here; {meant}")
