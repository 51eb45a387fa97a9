"""What the options of `load` mean: moments and prompts, limits, and the protocol with its address."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from typing import cast

from infra.errors import UsageError
from infra.settings import Settings
from tasks.load.arrivals import Ask, at_rate, when_free
from tasks.load.http_stream import Address, Connections
from tasks.load.lengths import parse_lengths
from tasks.load.metrics import LIMITED, MetricName
from tasks.load.openai import OpenAi
from tasks.load.prompts import Prompt, drawn_prompts, prompts_of_file
from tasks.load.send import MOST_OPEN, Pace
from tasks.load.trace import read_trace, replayed
from tasks.load.triton_grpc import TritonGrpc
from tasks.load.triton_sse import TritonSse
from tasks.load.wire import Sampling, Wire

_MOST_RATE = 100_000.0
_MOST_KEY_BYTES = 4096


def asks_of(options: argparse.Namespace) -> Iterator[Ask]:
    """What is asked when. Raises UsageError, code `load-options` or that of a file that is malformed."""
    _require(
        options.requests is None or options.requests > options.warm_up >= 0, "--requests", "is more than --warm-up"
    )
    _require(options.warm_up >= 0, "--warm-up", "is 0 or more")
    found = _all_asks(options)
    return found if options.requests is None else (ask for _, ask in zip(range(options.requests), found, strict=False))


def _all_asks(options: argparse.Namespace) -> Iterator[Ask]:
    if options.trace:
        _require(options.rate is None and options.prompts is None, "--trace", "has moments and lengths of its own")
        _require(0 < options.speed < math.inf, "--speed", "is more than 0")
        entries = read_trace(options.trace)
        _require(len(entries) > options.warm_up, "--warm-up", f"is less than the {len(entries)} of the trace")
        return replayed(entries, options.seed, options.speed)
    prompts = _prompts(options)
    if options.rate is not None:
        _require(0 < options.rate <= _MOST_RATE, "--rate", f"is more than 0, and {_MOST_RATE:g} at most")
        return at_rate(options.arrivals, options.rate, options.seed, prompts)
    _require(options.concurrency is not None, "--rate, --trace or --concurrency", "says when requests are sent")
    return when_free(prompts)


def _prompts(options: argparse.Namespace) -> Iterator[Prompt]:
    answers = parse_lengths(options.answer_tokens)
    if options.prompts:
        return prompts_of_file(options.prompts, options.seed, answers)
    return drawn_prompts(options.seed, parse_lengths(options.prompt_tokens), answers)


def pace_of(options: argparse.Namespace, seconds: float) -> Pace:
    """How it is sent: for so many `seconds` if nothing else ends it. Raises UsageError, code `load-options`."""
    _require(options.seconds is None or 0 < options.seconds < math.inf, "--seconds", "is more than 0")
    _require(0 < options.timeout < math.inf, "--timeout", "is more than 0")
    at_once = options.concurrency
    _require(at_once is None or 1 <= at_once <= MOST_OPEN, "--concurrency", f"is from 1 to {MOST_OPEN}")
    ends = options.seconds or options.requests or options.trace
    return Pace(at_once, options.timeout, options.seconds if ends else seconds)


def limits_of(options: argparse.Namespace) -> Mapping[MetricName, float]:
    """The limits of goodput in milliseconds, all else of what is told looked at too.

    Raises UsageError, code `load-options`.
    """
    folder = None if options.picture is None else options.picture.absolute().parent
    _require(folder is None or folder.is_dir(), "--picture", "is a file in a folder that is there")
    _require(options.most_lateness > 0, "--most-lateness", "is more than 0")
    found: dict[MetricName, float] = {}
    for given in options.goodput:
        name, _, number = given.partition("=")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        _require(name in LIMITED and 0 < limit < math.inf, "--goodput", f"is METRIC=MS of {', '.join(LIMITED)}")
        found[cast(MetricName, name)] = limit
    return found


def wire_of(options: argparse.Namespace, settings: Settings) -> Wire:
    """The protocol, with the address. Raises UsageError, code `load-options` or `load-address`."""
    sampling = Sampling(options.exact_lengths, options.temperature, options.seed)
    key = _key(options)
    if options.over == "grpc":
        address = options.address or (settings.triton_grpc if options.direct else settings.gateway_grpc)
        _require_address(address)
        metadata = (("authorization", key),) if key else ()
        return TritonGrpc(options.model, address, sampling, metadata=metadata, certificate=options.certificate)
    _require(options.over == "sse" or not options.direct, "--direct", "is for --over sse or grpc: Triton has no other")
    url = options.address or (settings.triton_http if options.direct else settings.gateway_http)
    _require_address(url)
    headers = (("Authorization", key),) if key else ()
    connections = Connections(Address.parse(url, str(options.certificate or "")), headers)
    if options.over == "sse":
        return TritonSse(options.model, connections, sampling)
    endpoint = "completions" if options.over == "completions" else "chat/completions"
    return OpenAi(options.model, endpoint, connections, sampling)


def _key(options: argparse.Namespace) -> str:
    """What the header says. A key is never an option: every process of the machine sees those."""
    if options.key_file is None:
        return ""
    try:
        with options.key_file.open() as file:
            key = file.read(_MOST_KEY_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{options.key_file} cannot be read: {error}", code="load-options") from None
    _require(key.isascii() and key.isprintable() and " " not in key and bool(key), "--key-file", "holds one key")
    return f"Bearer {key}"


def _require_address(address: str) -> None:
    if not address:
        raise UsageError("no server is known", hint="run `enginehouse up`, or give --address", code="load-address")


def _require(condition: bool, option: str, rule: str) -> None:
    if not condition:
        raise UsageError(f"{option} {rule}", hint="see: enginehouse load --help", code="load-options")
