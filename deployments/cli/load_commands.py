"""The command load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.command import Add, Answered, print_json, say
from infra.errors import EnginehouseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.settings import Settings
    from tasks.load.arrivals import Ask
    from tasks.load.measure import Measurement

_WARM_UP = 10
_SECONDS = 30.0
_TELL_S = 1.0


def add_load_commands(add: Add) -> None:
    sub = add("load", _load, "ask a served model under load, and say how soon it answers", json=True)
    sub.add_argument("model", help="public name, or a release: NAME@7 at the gateway")
    where = sub.add_argument_group("where")
    where.add_argument(
        "--over", choices=("openai", "completions", "sse", "grpc"), default="openai", help="the protocol"
    )
    where.add_argument("--direct", action="store_true", help="ask the node's Triton, not the gateway")
    where.add_argument("--address", metavar="URL", help="of another server; of gRPC it is host:port")
    where.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key that the gateway asks for")
    where.add_argument("--certificate", type=Path, metavar="FILE", help="of the authority to trust")
    when = sub.add_argument_group("when")
    when.add_argument("--rate", type=float, metavar="N", help="requests a second, whatever became of those before")
    when.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    when.add_argument("--trace", type=Path, metavar="FILE", help="replay these moments and lengths")
    when.add_argument("--speed", type=float, default=1.0, metavar="N", help="how many times as fast as the trace was")
    when.add_argument("--concurrency", type=int, metavar="N", help="so many at once; with a rate, the most at once")
    when.add_argument("--seconds", type=float, help=f"send for so long ({_SECONDS:g}, if no --requests are given)")
    when.add_argument("--requests", type=int, metavar="N", help="send so many, those to warm up among them")
    when.add_argument("--warm-up", type=int, default=_WARM_UP, metavar="N", help="how many are not measured")
    when.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of one request")
    what = sub.add_argument_group("what")
    what.add_argument(
        "--prompt-tokens", default="128", metavar="LENGTHS", help="N or KIND:A,B; see docs/how-to/load.md"
    )
    what.add_argument("--answer-tokens", default="64", metavar="LENGTHS")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, or JSON Lines")
    what.add_argument("--exact-lengths", action="store_true", help="answers have all their tokens, if the kind can")
    what.add_argument("--temperature", type=float)
    what.add_argument("--seed", type=int, default=1, help="of moments, lengths and prompts")
    told = sub.add_argument_group("what is told")
    told.add_argument("--goodput", action="append", default=[], metavar="METRIC=MS", help="a limit of good requests")
    told.add_argument("--most-lateness", type=float, default=10.0, metavar="MS", help="of the load itself, at p99")
    told.add_argument("--picture", type=Path, metavar="FILE", help="write the distributions as SVG")


def _load(options: argparse.Namespace, settings: Settings) -> int:
    import asyncio

    from deployments.cli.load_options import asks_of, limits_of, pace_of, wire_of
    from tasks.load.clock import punctual_loop
    from tasks.load.measure import Measurement, require_useful
    from tasks.load.picture import picture
    from tasks.load.text import lines

    limits, asks = limits_of(options), asks_of(options)
    measurement = Measurement(wire_of(options, settings), pace_of(options, _SECONDS), options.warm_up)
    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        runner.run(_until_interrupted(measurement, asks))
    found = measurement.summary(limits, options.most_lateness)
    if options.json:
        print_json({"model": options.model, **found.document()})
    else:
        for line in lines(found):
            print(line)
    if options.picture:
        options.picture.write_text(picture(options.model, found, measurement.collected))
    if measurement.ended:
        say("interrupted: these are the figures until then")
        return 1
    try:
        require_useful(found)
    except EnginehouseError as error:
        raise Answered(error) if options.json else error from None
    return 0


async def _until_interrupted(measurement: Measurement, asks: Iterator[Ask]) -> None:
    """The first signal ends a load with its figures, the second at once."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
        measurement.end()

    def take_signals() -> None:
        loop.add_signal_handler(signal.SIGINT, end)
        loop.add_signal_handler(signal.SIGTERM, end)

    telling = asyncio.create_task(_tell(measurement)) if sys.stderr.isatty() else None
    try:
        await measurement.run(asks, take_signals)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
        if telling is not None:
            telling.cancel()
            print("\r\033[K", end="", file=sys.stderr, flush=True)


async def _tell(measurement: Measurement) -> None:
    from asyncio import sleep

    while True:
        await sleep(_TELL_S)
        collected = measurement.collected
        failed = collected.measured - collected.answered
        text = f"\r\033[K{collected.warmed_up} to warm up, {collected.answered} answered, {failed} failed"
        print(text, end="", file=sys.stderr, flush=True)
