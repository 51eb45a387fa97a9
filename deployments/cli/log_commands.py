"""The command `logs`: what a model's rebuild has said, from wherever it ran."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from deployments.cli.command import Add, Answered, error_document, prefect_api_url, say
from flows.names import STEPS

if TYPE_CHECKING:
    from httpx2 import HTTPError

    from deployments.cli.columns import Colour, Style
    from deployments.cli.rebuild_runs import RebuildRuns
    from deployments.cli.run_log import Line, RunLog
    from infra.settings import Settings

_EVERY_SECONDS = 1.0
_SETTLED_SECONDS = 3.0
"""A run sends its last lines once it has ended."""
_AWAY_SECONDS = 600.0
"""Who follows a log waits so long for a server that has gone."""
_ANSWER_SECONDS = 30.0
"""How long a server may take to answer: it is busy while it runs rebuilds."""


def add_log_commands(add: Add) -> None:
    sub = add("logs", _logs, "what the newest rebuild of a model has said, from wherever it ran", json=True)
    sub.add_argument("model")
    sub.add_argument(
        "--step", choices=STEPS, metavar="STEP", default="", help="only what this step said, such as build"
    )
    sub.add_argument("--follow", action="store_true", help="go on until the run ends, and exit as the rebuild does")
    sub.add_argument("--run", default="", metavar="ID", help="another run than the newest; its id, or how that begins")


def _logs(options: argparse.Namespace, settings: Settings) -> int:
    """Print the log; with `--json` a line of JSON for each of its lines: nobody waits for the end of a run."""
    from deployments.cli.columns import Style
    from deployments.cli.prefect_client import as_our_errors, client
    from deployments.cli.rebuild_runs import RebuildRuns
    from deployments.cli.run_log import RunLog

    with as_our_errors(), client(prefect_api_url(), _ANSWER_SECONDS) as prefect:
        runs = RebuildRuns(prefect, options.model)
        log = RunLog(prefect, runs.by_id(options.run) if options.run else runs.newest())
        say(f"{log.run.name}: {log.run.state_name}, run {log.run.id}")
        shown = _Shown(options.step, None if options.json else Style.of_stdout())
        if options.follow:
            _follow(log, runs, shown)
        else:
            shown.all(log.fresh(last=True))
    if not shown.count:
        say(f"it has said nothing{f' in step {options.step}' if options.step else ''}")
    if options.follow and (error := log.run.error) is not None:
        if not options.json:
            raise error
        print(json.dumps({"error": error_document(error)}), flush=True)
        raise Answered(error)
    return 0


def _follow(log: RunLog, runs: RebuildRuns, shown: _Shown) -> None:
    """Show what the run says until it has ended. A server that goes away is waited for."""
    from httpx2 import HTTPError

    settled = 0.0 if log.run.has_ended else None
    away: float | None = None
    while True:
        over = settled is not None and time.monotonic() >= settled
        try:
            shown.all(log.fresh(last=over))
            log.run = runs.read(log.run.id)
        except HTTPError as error:
            away = _still_away(error, away)
        else:
            if away is not None:
                say("the Prefect server answers again")
            away = None
            if over:
                return
            if log.run.has_ended and settled is None:
                settled = time.monotonic() + _SETTLED_SECONDS
        time.sleep(_EVERY_SECONDS)


def _still_away(error: HTTPError, since: float | None) -> float:
    """Since when the server is away, on the monotonic clock. Raises the error where waiting helps no more."""
    from deployments.cli.prefect_client import failure

    found, now = failure(error), time.monotonic()
    if not found.retryable or (since is not None and now - since > _AWAY_SECONDS):
        raise found from error
    if since is None:
        say(f"{found.message}; the log goes on when it does")
    return now if since is None else since


class _Shown:
    """Prints the lines of a step, or of all: for people in this style, and without one for programs."""

    def __init__(self, step: str, style: Style | None) -> None:
        self._step, self._style = step, style
        self.count = 0

    def all(self, lines: Iterable[tuple[Line, str]]) -> None:
        for line, step in lines:
            if self._step in ("", step):
                self.count += 1
                for text in [_document(line, step)] if self._style is None else told(line, step, self._style):
                    print(text, flush=True)


def _document(line: Line, step: str) -> str:
    level = logging.getLevelName(line.level).lower()
    return json.dumps(
        {
            "time": line.timestamp.isoformat(),
            "level": level,
            "step": step or None,
            "message": line.message,
            "run": str(line.flow_run_id),
        }
    )


def told(line: Line, step: str, style: Style) -> Iterator[str]:
    """A line of a log, or the lines of one that has several, below each other. The time is in this machine's zone."""
    from deployments.cli.people import printable

    colour: Colour = "red" if line.level >= logging.ERROR else "yellow" if line.level >= logging.WARNING else ""
    level = {"red": "error: ", "yellow": "warning: "}.get(colour, "")
    first, *more = line.message.splitlines() or [""]
    start = f"{line.timestamp.astimezone():%H:%M:%S}  {step:13}  "
    yield f"{style.paint(start, 'dim')}{style.paint(level + printable(first), colour)}".rstrip()
    yield from (f"{' ' * len(start)}{style.paint(printable(text), colour)}".rstrip() for text in more)
