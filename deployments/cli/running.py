"""Steps that run, shown on stderr while they do.

At a terminal each has a line that is rewritten in place. In a log there is a line when a step has run for a moment, and
then one now and then, as long as it goes on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deployments.cli.columns import WIDTH
from deployments.cli.command import say
from deployments.cli.people import printable

if TYPE_CHECKING:
    from flows.report import RunningStep
    from infra.progress import Progress

_LOOK_SECONDS = 1.0
_BEGUN_SECONDS = 2.0
"""A step that ends sooner has no line in a log but that of its end."""
_NEWS_SECONDS = 30.0
"""A log gets news of a step no more often."""
_SILENCE_SECONDS = 300.0
"""And hears of it at least so often: who runs commands unattended takes one that prints nothing for dead."""


@contextmanager
def showing(steps: Sequence[RunningStep], *, quiet: bool = False) -> Generator[None]:
    """Show the steps that are in `steps` while the block runs; with `quiet`, do not."""
    if quiet:
        yield
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _at_a_terminal(steps):
            yield
    else:
        with _in_a_log(steps):
            yield


@contextmanager
def showing_bytes(name: str, *, quiet: bool = False) -> Generator[Progress]:
    """The same for one step of this process, which tells of its bytes."""
    from flows.report import RunningStep
    from infra.progress import Pace

    step, pace = RunningStep(name), Pace()

    def advance(done: int, total: int) -> None:
        if total:
            step.said = pace.look(done, total)

    with showing([step], quiet=quiet):
        yield advance


def line(step: RunningStep) -> str:
    """A running step in the columns of one that has ended."""
    seconds = time.monotonic() - step.since
    said = printable(step.said.partition("\n")[0])
    return f"{step.name:10} {'running':12} {seconds:8.0f} s  {said}".rstrip()


@contextmanager
def _at_a_terminal(steps: Sequence[RunningStep]) -> Generator[None]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    def look() -> Group:
        return Group(*(Text(line(step), no_wrap=True, overflow="ellipsis") for step in tuple(steps)))

    # Rich would otherwise write to stderr what is printed meanwhile, also what a pipe waits for.
    pipe = not sys.stdout.isatty()
    with Live(console=Console(stderr=True), get_renderable=look, transient=True, redirect_stdout=not pipe):
        yield


@contextmanager
def _in_a_log(steps: Sequence[RunningStep]) -> Generator[None]:
    ended = threading.Event()

    def tell() -> None:
        news = News()
        while not ended.wait(_LOOK_SECONDS):
            for told in news.of(steps):
                say(told)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class News:
    """What a log is told of steps that are looked at again and again."""

    def __init__(self) -> None:
        self._told: dict[RunningStep, tuple[str, str, float]] = {}
        """The step's name and what it said when the log heard of it last, and when that was."""

    def of(self, steps: Sequence[RunningStep]) -> list[str]:
        """The lines that are due now, of no more than 80 columns."""
        now = time.monotonic()
        due = [step for step in tuple(steps) if self._is_due(step, now)]
        for step in due:
            self._told[step] = step.name, step.said, now
        return [text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…" for text in map(line, due)]

    def _is_due(self, step: RunningStep, now: float) -> bool:
        name, said, at = self._told.get(step, ("", "", 0.0))
        if name != step.name:
            return now - step.since >= _BEGUN_SECONDS
        return now - at >= (_NEWS_SECONDS if step.said != said else _SILENCE_SECONDS)
