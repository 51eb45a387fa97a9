"""What the load says of a model against what the model itself wrote down of the same requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tasks.load.arrivals import Arrivals, Ask, at_rate
from tasks.load.clock import punctual_loop
from tasks.load.http_stream import Address, Connections
from tasks.load.lengths import parse_lengths
from tasks.load.measure import Measurement
from tasks.load.openai import OpenAi
from tasks.load.prompts import drawn_prompts
from tasks.load.send import Pace
from tasks.load.summary import Summary
from tasks.load.triton_grpc import TritonGrpc
from tasks.load.triton_sse import TritonSse
from tasks.load.wire import Sampling, Wire
from tests.tasks.load.timed_model import Delays, Running, Seen, timed_model

WARM_UP, MEASURED, TOKENS = 10, 470, 12
SHOWN = (50.0, 90.0, 95.0, 99.0)
PEACE_MS = 0.75
"""A process that sleeps is woken within this time, 99 times of 100, where the machine has nothing else to do."""


@contextlib.contextmanager
def first_in_turn() -> Generator[None]:
    """Model and load run before what else the machine has to do, where we may say so.

    The two clocks are compared to a millisecond; on a busy machine each process may wait for twenty before it runs.
    gRPC has threads that an earlier test may have started, and the kernel schedules each thread for itself.
    """
    threads = [int(each.name) for each in Path("/proc/self/task").iterdir()]
    before = {each: (os.sched_getscheduler(each), os.sched_getparam(each)) for each in threads}
    with contextlib.suppress(PermissionError):
        for each in threads:
            os.sched_setscheduler(each, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        for each in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(each.name), *before.get(int(each.name), before[os.getpid()]))


def openai(model: Running) -> Wire:
    return OpenAi("tiny", "chat/completions", Connections(Address.parse(model.http)), Sampling())


def sse(model: Running) -> Wire:
    return TritonSse("tiny", Connections(Address.parse(model.http)), Sampling())


def grpc(model: Running) -> Wire:
    return TritonGrpc("tiny", model.grpc, Sampling())


def asks(arrivals: Arrivals, rate: float) -> Iterator[Ask]:
    prompts = drawn_prompts(4, parse_lengths("20"), parse_lengths(str(TOKENS)))
    return islice(at_rate(arrivals, rate, 4, prompts), WARM_UP + MEASURED)


def measure(
    wire: Callable[[Running], Wire], delays: Delays, arrivals: Arrivals, rate: float, at_once: int | None = None
) -> tuple[Summary, list[Seen]]:
    """The figures, and what the model saw of the requests that were measured, in the order in which they were due."""
    order = [ask.prompt.text.partition(":")[0] for ask in asks(arrivals, rate)]
    with first_in_turn(), timed_model(delays) as model:
        measurement = Measurement(wire(model), Pace(at_once), WARM_UP)
        with asyncio.Runner(loop_factory=punctual_loop) as runner:
            runner.run(measurement.run(asks(arrivals, rate)))
    seen = {each.name: each for each in model.seen}
    found = measurement.summary({}, 10)
    assert (found.answered, found.requests) == (MEASURED, MEASURED)
    return found, [seen[name] for name in order[WARM_UP:]]


def compare(found: Summary, name: str, truth: Sequence[float]) -> list[str]:
    """Percentiles in ms that are off by more than 2 % and more than 1 ms."""
    figures = next(each for each in found.figures if each.metric.name == name)
    told = {each.which: each.value for each in figures.percentiles}
    wrong: list[str] = []
    for which in SHOWN:
        value, right = told[which], float(np.percentile(truth, which)) * 1000
        assert value is not None
        print(f"{name:20} p{which:g}: {value:9.2f} ms, the model's own {right:9.2f}")
        if abs(value - right) > max(1.0, 0.02 * right):
            wrong.append(f"{name} p{which:g}: {value:.2f} ms for {right:.2f}")
    return wrong


def in_peace(measured: Callable[[], tuple[Summary, list[str], float]]) -> Summary:
    """What was found in the first of three runs in which nothing is wrong: a busy machine delays model and load alike.

    The load says so itself when it was late; the model, which only sleeps between tokens, shows by its own tokens how
    late a process is woken. Where both are in all runs, nothing can be compared.
    """
    tries: list[list[str]] = []
    for _ in range(3):
        found, wrong, woken_late_ms = measured()
        if found.lateness.on_time and not wrong:
            return found
        if found.lateness.on_time and woken_late_ms < PEACE_MS:
            tries.append(wrong)
    if not tries:
        pytest.skip("this machine has too much to do: load or model were late three times, and nothing can be compared")
    pytest.fail("; ".join(map(str, tries)))


def woken_late_ms(seen: Sequence[Seen], gap_s: float) -> float:
    """By how much one of a hundred of the model's own gaps between tokens was longer than asked."""
    return (float(np.percentile([gap for each in seen for gap in each.gaps], 99)) - gap_s) * 1000


@pytest.mark.slow
@pytest.mark.parametrize("wire", [openai, sse, grpc])
def test_percentiles_are_those_that_the_model_wrote_down(wire: Callable[[Running], Wire]) -> None:
    def run() -> tuple[Summary, list[str], float]:
        found, seen = measure(wire, Delays(first_s=0.3, token_s=0.02), "poisson", 60)
        wrong = compare(found, "time_to_first_token", [each.first - each.came for each in seen])
        wrong += compare(found, "request_latency", [each.last - each.came for each in seen])
        wrong += compare(found, "inter_token_latency", [(each.last - each.first) / (TOKENS - 1) for each in seen])
        wrong += compare(found, "inter_chunk_latency", [gap for each in seen for gap in each.gaps])
        return found, wrong, woken_late_ms(seen, 0.02)

    in_peace(run)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [None, 8])
def test_a_stall_of_two_seconds_is_seen_by_all_who_waited(at_once: int | None) -> None:
    """With eight at once the model never sees more waiting. The others wait all the same, and count from their moment.

    What is right is what the model sent, against moments that are known: each 1/40 s after the one before.
    """
    delays = Delays(first_s=0.08, token_s=0.005, spread=0.1, stall_at=200, stall_s=2.0)

    def run() -> tuple[Summary, list[str], float]:
        found, seen = measure(openai, delays, "constant", 40, at_once)
        start = min(each.came - number / 40 for number, each in enumerate(seen))
        moments = [start + number / 40 for number in range(len(seen))]
        right = [each.first - moment for each, moment in zip(seen, moments, strict=True)]
        wrong = compare(found, "time_to_first_token", right)
        ends = [each.last - moment for each, moment in zip(seen, moments, strict=True)]
        wrong += compare(found, "request_latency", ends)
        assert np.percentile(right, 90) > 0.7  # 80 of 470 came within the stall
        if at_once is not None:
            # Counted from the sending it would have been nothing at all.
            assert np.percentile([each.first - each.came for each in seen], 95) < 0.2
        return found, wrong, woken_late_ms(seen, delays.token_s)

    found = in_peace(run)
    if at_once is not None:
        assert found.queued_most_ms > 1000
