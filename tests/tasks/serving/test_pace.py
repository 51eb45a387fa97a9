"""How streams that share an event loop leave time for others."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest

from tasks.serving.pace import SHARE, Pace


def test_the_interval_grows_with_the_streams_and_with_what_a_response_takes() -> None:
    pace = Pace()
    with ExitStack() as open_streams:
        streams = [open_streams.enter_context(pace.stream()) for _ in range(10)]
        assert pace.interval_s() == 0
        for _ in range(100):
            for stream in streams:
                pace.responded(stream, 0.002)
        assert pace.interval_s() == pytest.approx(10 * 0.002 / SHARE, rel=0.01)  # pyright: ignore[reportUnknownMemberType]
    assert pace.interval_s() == 0


def test_a_stream_that_waits_for_its_first_response_takes_nothing() -> None:
    pace = Pace()
    with pace.stream(), pace.stream() as begun:
        pace.responded(begun, 0.64)
        assert pace.interval_s() == pytest.approx(0.01 / SHARE)  # pyright: ignore[reportUnknownMemberType]


def test_streams_take_their_share_of_the_loop_and_no_more() -> None:
    responses, turns = asyncio.run(busy_second())
    # All of the second would be 500 responses. Those of the first rounds have not learned yet what one takes.
    assert responses * 0.002 < 0.75
    assert turns > 200


def hold(seconds: float) -> None:
    """Hold the loop, as Triton's backend does."""
    time.sleep(seconds)


async def busy_second() -> tuple[int, int]:
    """The responses of 40 streams that would send all the time, and the turns of who does something else."""
    pace, responses, turns = Pace(), 0, 0
    ends = time.monotonic() + 1.0

    async def answer() -> None:
        nonlocal responses
        with pace.stream() as stream:
            while time.monotonic() < ends:
                with stream.response():
                    hold(0.002)
                responses += 1
                await stream.rest()

    async def others() -> None:
        nonlocal turns
        while time.monotonic() < ends:
            turns += 1
            hold(0.0005)
            await asyncio.sleep(0)

    await asyncio.gather(*(answer() for _ in range(40)), others())
    return responses, turns
