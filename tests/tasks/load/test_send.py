from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice, repeat

import pytest

from infra.errors import EnginehouseError
from tasks.load import send
from tasks.load.arrivals import Ask, at_rate, when_free
from tasks.load.clock import punctual_loop
from tasks.load.measure import Measurement, require_useful
from tasks.load.outcome import RequestFailed
from tasks.load.prompts import Prompt
from tasks.load.send import Load, Pace
from tests.tasks.load.fake_wire import FakeWire, Heard

HELLO = Prompt("hello", 1)


def constant(rate: float, count: int) -> Iterator[Ask]:
    return at_rate("constant", rate, 1, islice(repeat(HELLO), count))


def run(load: Load, asks: Iterator[Ask]) -> None:
    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        runner.run(load.run(asks))


def test_a_request_that_waits_for_its_turn_is_timed_from_its_moment() -> None:
    """One server that takes 50 ms, asked every 25 ms: the wait grows by 25 ms each time, and is in the latencies."""
    heard, wire = Heard(), FakeWire(delay_s=lambda _: 0.05)
    run(Load(wire, Pace(at_once=1), heard.listeners), constant(40, 8))
    assert wire.most_at_once == 1
    waits = [outcome.first - outcome.intended for outcome in heard.outcomes if outcome.first is not None]
    assert len(waits) == 8
    assert all(wait >= 0.05 + 0.025 * number - 0.001 for number, wait in enumerate(waits))
    assert heard.outcomes[-1].sent - heard.outcomes[-1].begun >= 0.17


def test_moments_do_not_wait_for_answers() -> None:
    heard, wire = Heard(), FakeWire(delay_s=lambda _: 0.3)
    run(Load(wire, Pace(), heard.listeners), constant(100, 10))
    assert wire.most_at_once == 10
    moments = [outcome.intended for outcome in heard.outcomes]
    assert [after - moments[0] for after in moments] == pytest.approx([0.01 * number for number in range(10)])


def test_so_many_run_at_once_where_nothing_has_a_moment() -> None:
    heard, wire = Heard(), FakeWire(delay_s=lambda _: 0.01)
    run(Load(wire, Pace(at_once=3), heard.listeners), when_free(islice(repeat(HELLO), 12)))
    assert wire.most_at_once == 3 and len(heard.outcomes) == 12


def test_nothing_is_sent_after_the_time() -> None:
    heard = Heard()
    run(Load(FakeWire(), Pace(seconds=0.1), heard.listeners), at_rate("constant", 100, 1, repeat(HELLO)))
    assert len(heard.outcomes) == 10


def test_a_hanging_request_ends_at_its_timeout_counted_from_its_moment() -> None:
    heard = Heard()
    run(Load(FakeWire(delay_s=lambda _: 60), Pace(timeout_s=0.1), heard.listeners), constant(50, 2))
    assert [outcome.failure for outcome in heard.outcomes] == ["timeout", "timeout"]
    assert all(0.1 <= outcome.ended - outcome.intended < 5 for outcome in heard.outcomes)


def test_an_answer_without_text_is_a_failure() -> None:
    class Silent(FakeWire):
        def prepare(self, prompt: Prompt) -> send.Call:
            async def call(hearing: send.Hearing) -> None:
                hearing.count(0)

            return call

    heard = Heard()
    run(Load(Silent(), Pace(), heard.listeners), constant(50, 1))
    assert heard.outcomes[0].failure == "empty"


def test_requests_beyond_those_that_are_kept_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "MOST_OPEN", 2)
    heard = Heard()
    run(Load(FakeWire(delay_s=lambda _: 0.2), Pace(), heard.listeners), constant(200, 4))
    assert [outcome.failure for outcome in heard.outcomes] == ["crowded", "crowded", None, None]


def test_a_load_that_is_ended_keeps_what_it_has() -> None:
    wire = FakeWire(delay_s=lambda text: 60.0 if text == "slow" else 0.0)
    reached = asyncio.Event()

    def asks() -> Iterator[Ask]:
        yield Ask(0, HELLO, 0.0)
        yield Ask(1, Prompt("slow", 1), 0.01)
        yield Ask(2, HELLO, 0.1)
        reached.set()
        yield Ask(3, HELLO, 3600.0)

    measurement = Measurement(wire, Pace(), 0)

    async def end() -> None:
        running = asyncio.create_task(measurement.run(asks()))
        await reached.wait()
        await asyncio.sleep(0.1)
        measurement.end()
        await running

    asyncio.run(end())
    found = measurement.summary({}, 10)
    assert (found.answered, found.requests, found.given_up) == (2, 2, 1)
    assert wire.closed == 1


def test_a_load_that_is_late_itself_is_refused() -> None:
    """Each request keeps the loop busy for longer than the step between two."""
    measurement = Measurement(FakeWire(prepare_s=0.02), Pace(), 0)
    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        runner.run(measurement.run(constant(100, 20)))
    found = measurement.summary({}, 10)
    assert found.lateness.sender_p99 > 50 and not found.lateness.on_time
    with pytest.raises(EnginehouseError) as error:
        require_useful(found)
    assert error.value.code == "load-late"
    require_useful(measurement.summary({}, 1e6))


def test_a_model_that_does_not_answer_is_found_before_the_load() -> None:
    wire = FakeWire(failure=RequestFailed("refused", "unknown model"))
    with pytest.raises(EnginehouseError) as error:
        asyncio.run(Measurement(wire, Pace(), 0).run(constant(1, 100)))
    assert error.value.code == "load-unanswered" and wire.closed == 1


def test_a_model_that_hangs_is_found_before_the_load() -> None:
    with pytest.raises(EnginehouseError) as error:
        asyncio.run(Measurement(FakeWire(delay_s=lambda _: 60), Pace(timeout_s=0.1), 0).run(constant(1, 100)))
    assert error.value.code == "load-unanswered"


@pytest.mark.parametrize("rate", [1, 1000])
def test_a_load_ends_when_whoever_runs_it_is_cancelled(rate: float) -> None:
    """While it sends, and while it waits for answers."""

    async def within() -> None:
        async with asyncio.timeout(0.2):
            await Load(FakeWire(delay_s=lambda _: 60), Pace(), Heard().listeners).run(constant(rate, 5))

    with pytest.raises(TimeoutError):
        asyncio.run(within())


def test_a_load_without_an_answer_says_so() -> None:
    measurement = Measurement(FakeWire(failure=RequestFailed("failed", "no"), answers_first=1), Pace(), 0)
    asyncio.run(measurement.run(constant(100, 5)))
    with pytest.raises(EnginehouseError) as error:
        require_useful(measurement.summary({}, 1e6))
    assert error.value.code == "load-nothing-answered"


def test_the_loop_keeps_moments_to_less_than_a_millisecond() -> None:
    """epoll alone is half a millisecond late on the average. The best of many, since the machine may be busy."""
    late: list[float] = []

    async def sleep() -> None:
        for _ in range(40):
            due = time.monotonic() + 0.0012
            await asyncio.sleep(0.0012)
            late.append(time.monotonic() - due)

    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        runner.run(sleep())
    assert min(late) < 0.0005
