"""The command `status`: the fleet, or the embedded stack's own processes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, get_args

from deployments.cli.command import Add, print_json, say
from infra.errors import UsageError

if TYPE_CHECKING:
    from deployments.cli.columns import Colour
    from infra.settings import Settings
    from tasks.explain.fleet_view import Fleet

_EVERY_SECONDS = 2.0
_OF_STATE: Mapping[str, Colour] = {"running": "green", "unhealthy": "red", "stopped": "dim"}
_CLEAR = "\x1b[2J\x1b[H"


def add_status_commands(add: Add) -> None:
    sub = add("status", _status, "the fleet: what is live where, what is stale and why, what is in trouble", json=True)
    sub.add_argument("--target", default="", help="only the models of this target")
    sub.add_argument("--state", default="", metavar="STATE", help="only those in a state, such as stale or down")
    sub.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE", help="only those with a label; may be repeated"
    )
    sub.add_argument("--long", action="store_true", help="print identities and digests whole")
    sub.add_argument("--watch", action="store_true", help="look again and again; with --json, a line each time")
    sub.add_argument("--stack", action="store_true", help="the processes of the embedded stack instead, and where")


def _status(options: argparse.Namespace, settings: Settings) -> int:
    if options.stack:
        return _stack(options, settings)
    look = _look(options, settings)
    if not options.watch:
        _print(look(), options)
        return 0
    try:
        while True:
            _print(look(), options)
            time.sleep(_EVERY_SECONDS)
    except KeyboardInterrupt:
        return 0


def _look(options: argparse.Namespace, settings: Settings) -> Callable[[], Fleet]:
    """Looks at the fleet, each time knowing what it read the time before. Raises UsageError for a wrong filter."""
    from concurrent.futures import ThreadPoolExecutor

    from deployments.cli.runs_in_progress import runs_in_progress
    from infra.images import images
    from infra.s3.bucket import Bucket
    from tasks.explain.fleet import read_fleet
    from tasks.explain.fleet_view import State
    from tasks.explain.seen_records import SeenRecords
    from tasks.models.catalogue import load_catalogue
    from tasks.watch.verdict import listed

    if options.state and options.state not in get_args(State):
        raise UsageError(f"there is no state '{options.state}'", hint=f"states: {', '.join(get_args(State))}")
    labels = dict(map(_label, options.label))
    bucket = Bucket.at(settings.store)
    offered = listed(images(settings.images), settings.watch_avoid)
    seen = SeenRecords.load(bucket)

    def look() -> Fleet:
        nonlocal seen
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(runs_in_progress)
            catalogue = load_catalogue(settings.catalogue)
            runs = asked.result()
        fleet = read_fleet(bucket, catalogue, runs=runs, offered=offered, seen=seen)
        seen.keep()
        seen = seen.again()
        return fleet.only(options.target, options.state, labels)

    return look


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"'{text}' is not name=value", hint="for example --label team=search")
    return name, value


def _print(fleet: Fleet, options: argparse.Namespace) -> None:
    from deployments.cli.columns import Style
    from deployments.cli.fleet_text import fleet_lines

    if options.json and options.watch:
        print(json.dumps(fleet.document()), flush=True)
        return
    if options.json:
        print_json(fleet.document())
        return
    style = Style.of_stdout()
    start = _CLEAR if options.watch and style.is_terminal else ""
    print(start + "\n".join(fleet_lines(fleet, style, long=options.long)), flush=True)


def _stack(options: argparse.Namespace, settings: Settings) -> int:
    from dataclasses import asdict

    from deployments.cli.columns import Cell, print_table
    from deployments.stack import lifecycle
    from infra.triton.weakness import triton_release, weakness

    services = lifecycle.status(settings)
    if options.json:
        print_json([asdict(service) for service in services])
    else:
        print_table(
            ("SERVICE", "STATE", "PID", "ADDRESS"),
            [
                [
                    Cell(service.name),
                    Cell(service.state, _OF_STATE[service.state]),
                    Cell(str(service.pid or "-")),
                    Cell(service.address or "-"),
                    Cell(f"log: {service.log}"),
                ]
                for service in services
            ],
        )
    if known := weakness(triton_release(of_image=bool(settings.triton))):
        say(f"\nwarning: {known}")
    return 0 if all(service.state == "running" for service in services) else 1
