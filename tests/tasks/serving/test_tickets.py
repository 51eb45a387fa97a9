"""Requests that have a ticket, on senders of the test as strict as those of Triton's Python backend."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasks.serving import tickets
from tasks.serving.tickets import Tickets

FINAL = 1


class Step:
    """A step of an ensemble: what it was sent, and nothing after its end."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.ended = False

    def send(self, *response: Any, flags: int = 0) -> None:
        assert not self.ended, "the sender has been closed"
        self.sent += response
        self.ended = flags == FINAL

    def is_cancelled(self) -> bool:
        raise AssertionError("Triton never tells a step that runs")


def given(number: int, rows: int) -> tuple[int, int]:
    return number, rows


def test_what_comes_before_the_second_step_waits_for_it() -> None:
    held, first, second = Tickets(given), Step(), Step()
    request = held.take(first, 3)
    request.give()
    ((number, rows),) = first.sent
    request.send("one")
    held.bring(number, second, False, FINAL)
    request.send("two")
    assert rows == 3 and second.sent == ["one", "two"] and not second.ended
    request.send("three", flags=FINAL)
    assert second.sent == ["one", "two", "three"]
    assert first.sent == [(number, 3)] and first.ended and second.ended


def test_an_answer_that_ended_before_its_second_step_is_its_whole_answer() -> None:
    async def run() -> None:
        held, first, second, late = Tickets(given), Step(), Step(), Step()
        request = held.take(first, 1)
        request.give()
        request.send("nearly ")
        request.send("all", flags=FINAL)
        held.bring(first.sent[0][0], second, False, FINAL)
        assert second.sent == ["nearly ", "all"] and first.ended and second.ended
        held.bring(first.sent[0][0], late, False, FINAL)
        assert not late.sent and late.ended

    asyncio.run(run())


def test_a_running_request_gives_its_ticket_again_and_hears_that_its_client_left() -> None:
    held, first, second = Tickets(given), Step(), Step()
    request = held.take(first, 1)
    request.give()
    number = first.sent[0][0]
    held.bring(number, second, False, FINAL)
    left: list[bool] = []
    request.when_cancelled = lambda: left.append(True)
    for looks, cancelled in enumerate([False, True], start=2):
        assert not request.is_cancelled() and first.sent == [(number, 1)] * looks
        again = Step()
        held.bring(number, again, cancelled, FINAL)
        assert not again.sent and again.ended and left == [True] * cancelled
    assert not second.ended
    request.send("error", flags=FINAL)
    assert first.ended and second.sent == ["error"] and second.ended


def test_the_last_response_waits_for_each_ticket_that_was_given_out() -> None:
    """Triton would never unload the ensemble if a step ended after the error."""

    async def run() -> None:
        held, first, steps = Tickets(given), Step(), [Step(), Step(), Step()]
        request = held.take(first, 1)
        for _ in steps:
            request.give()
        for step in steps:
            assert not first.ended
            held.bring(first.sent[0][0], step, False, FINAL)
            if step is steps[0]:
                request.send("error", flags=FINAL)
        assert first.ended and steps[0].sent == ["error"] and all(step.ended for step in steps)
        assert not held._requests  # pyright: ignore[reportPrivateUsage]

    asyncio.run(run())


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "BROUGHT_SECONDS", 0.01)

    async def run() -> None:
        held, first, second = Tickets(given), Step(), Step()
        request = held.take(first, 1)
        request.give()
        request.send("all", flags=FINAL)
        await asyncio.sleep(0.05)
        assert not first.ended, "there is nobody yet to answer"
        request.give()
        held.bring(first.sent[0][0], second, False, FINAL)
        assert not second.ended
        await asyncio.sleep(0.05)
        assert first.ended and second.sent == ["all"] and second.ended

    asyncio.run(run())


def test_the_end_of_the_server_does_not_wait() -> None:
    async def run() -> None:
        held, first, second = Tickets(given), Step(), Step()
        request = held.take(first, 1)
        request.give()
        request.give()
        held.bring(first.sent[0][0], second, False, FINAL)
        request.send("going down", flags=FINAL)
        await held.close()
        assert first.ended and second.sent == ["going down"]

    asyncio.run(run())


def test_an_error_before_the_ticket_is_given_is_the_answer_of_the_first_step() -> None:
    held, first = Tickets(given), Step()
    held.take(first, 1).send("going down", flags=FINAL)
    assert first.sent == ["going down"] and first.ended
    assert not held._requests  # pyright: ignore[reportPrivateUsage]


def test_a_ticket_that_nobody_gave_out_ends_without_an_answer() -> None:
    second = Step()
    Tickets(given).bring(5, second, False, FINAL)
    assert not second.sent and second.ended


def test_tickets_differ_and_none_is_kept_of_requests_that_ended() -> None:
    held = Tickets(given)
    numbers: set[int] = set()
    for _ in range(100):
        first, second = Step(), Step()
        request = held.take(first, 1)
        request.give()
        number = first.sent[0][0]
        numbers.add(number)
        held.bring(number, second, False, FINAL)
        request.send(flags=FINAL)
        assert first.ended and second.ended
    assert len(numbers) == 100
    assert not held._requests  # pyright: ignore[reportPrivateUsage]
