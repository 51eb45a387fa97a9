"""What the commands share: how each is added, the options that several have, and what Prefect needs.

A command is a function of its options and the settings that returns the exit code. Each module `…_commands.py` holds
the parsers of a group and what they do; it imports what a command works with only when that command runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from infra.errors import EnginehouseError, UsageError
from infra.traces.collector import prefect_environment

if TYPE_CHECKING:
    from deployments.cli.columns import Colour
    from infra.settings import Settings

_T = TypeVar("_T")

Command = Callable[[argparse.Namespace, "Settings"], int]


class Add(Protocol):
    """Adds a command to the command line; with `json` it has the option `--json`."""

    def __call__(self, name: str, command: Command, text: str, *, json: bool = False) -> argparse.ArgumentParser: ...


class Answered(Exception):
    """A command failed with `error` after it printed its JSON. `main` prints no second document."""

    def __init__(self, error: EnginehouseError) -> None:
        super().__init__(error)
        self.error = error


def error_document(error: EnginehouseError) -> Mapping[str, str]:
    """The one form of an error in JSON: the member `error` of the document that a command prints."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


_LABELS: Mapping[str, Colour] = {"error": "red", "warning": "yellow", "hint": "bold", "next": "bold"}
"""What a line that is not data may begin with, and the colour that it has at a terminal."""


def say(text: str) -> None:
    """Print what is not data. At a terminal, lines that are too wide are broken."""
    shown = "\n".join(_for_a_person(text)) if sys.stderr.isatty() else text
    print(shown, file=sys.stderr, flush=True)


def _for_a_person(text: str) -> Iterator[str]:
    from deployments.cli.columns import Style, fitted

    style = Style.of(sys.stderr)
    for line in text.split("\n"):
        first, *others = fitted(line, style.width)
        label, colon, rest = first.partition(": ")
        yield f"{style.paint(label, _LABELS[label])}: {rest}" if colon and label in _LABELS else first
        yield from others


def print_json(document: Mapping[str, object] | Sequence[Mapping[str, object]]) -> None:
    """Print a document, or a list of them. Paths and times, for which JSON has no form, become text."""
    print(json.dumps(document, indent=1, default=_as_text), flush=True)


def _as_text(value: object) -> str:
    if isinstance(value, Path | datetime):
        return str(value)
    raise TypeError(f"JSON has no form for {type(value).__name__}")


def run(call: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end. Importing asyncio takes longer than all the rest of `--help`."""
    import asyncio

    return asyncio.run(call)


def add_recipe(parser: argparse.ArgumentParser, *, all_models: bool = False) -> None:
    """Add the model's name and `--recipe`, which `overrides` reads. Without a name, `all_models` means all of them."""
    told = "name in the catalogue; by default all" if all_models else "name in the catalogue"
    parser.add_argument("model", nargs="?" if all_models else None, help=told)
    parser.add_argument(
        "--recipe", action="append", default=[], metavar="KEY=VALUE", help="override a field of the recipe"
    )


def add_long(parser: argparse.ArgumentParser) -> None:
    """Add `--long`, for what prints references."""
    parser.add_argument("--long", action="store_true", help="print identities and digests whole, and break no line")


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The values of `--recipe`. Raises UsageError."""
    found: dict[str, str] = {}
    for item in options.recipe:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f"'{item}' is not key=value", hint="for example --recipe quantization=q4_0")
        found[key] = value
    return found


def prefect_api_url() -> str:
    """Where Prefect's API is. Raises UsageError `prefect-missing` if no server is known."""
    if url := os.environ.get("PREFECT_API_URL", ""):
        return url.rstrip("/")
    raise UsageError(
        "no Prefect server is known", hint="run `enginehouse up`, or set PREFECT_API_URL", code="prefect-missing"
    )


@contextmanager
def importing_prefect(settings: Settings) -> Generator[None]:
    """Prepare this process for Prefect. What it imports with it belongs into the block.

    Raises UsageError if no server is known. Modules are no garbage: the collector, which would look through all of them
    several times, rests meanwhile and leaves them out later.
    """
    prefect_api_url()
    # What Prefect keeps on this machine stays with the stack, apart from the profile of whoever calls.
    os.environ.setdefault("PREFECT_HOME", str(settings.home / "prefect"))
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.update(prefect_environment(os.environ))
    # The automation `lost-runs` takes a run whose heartbeats are rarer for dead.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(settings.heartbeat_seconds))
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
