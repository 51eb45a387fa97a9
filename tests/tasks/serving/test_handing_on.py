"""Requests of an ensemble whose steps run in different processes of `llm`, over real sockets.

Each process is a runner with its own event loop here. What Triton does, hand steps out, the tests do.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tasks.serving import handing_on, runner
from tasks.serving.contract import Answer, GenerationRequest
from tasks.serving.failures import FailureCode
from tasks.serving.figures import Figures, share_of
from tasks.serving.handing_on import DIED, NOT_BROUGHT, WITNESS_WANTED, Handed, HandingOn, key_of
from tasks.serving.peers import Peers
from tasks.serving.runner import Runner
from tests.tasks.serving.test_runner import ScriptEngine
from tests.waiting import wait

FINAL = 1


class Step:
    """A step of an ensemble: what it was sent, and nothing after its end."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.ended = threading.Event()
        self.ended_at = 0.0

    def send(self, *response: Any, flags: int = 0) -> None:
        assert not self.ended.is_set(), "the sender has been closed"
        self.sent += response
        if flags == FINAL:
            self.ended_at = time.monotonic()
            self.ended.set()

    def is_cancelled(self) -> bool:
        raise AssertionError("Triton never tells a step that runs")


class Reply:
    def __init__(self, sender: Handed) -> None:
        self._sender = sender

    def send(self, answers: Sequence[Answer], *, final: bool) -> None:
        self._sender.send(answers[0].text, flags=FINAL if final else 0)

    def fail(self, code: FailureCode, message: str) -> None:
        self._sender.send((code, message), flags=FINAL)

    def is_cancelled(self) -> bool:
        return self._sender.is_cancelled()


class Process:
    """One of a release."""

    def __init__(self, scope: str, instance: int, patience_s: float = 20.0) -> None:
        self.runner = Runner(ScriptEngine(), 20)
        self.peers = Peers(scope, instance)
        self.handing_on = HandingOn(
            self.runner,
            self.peers,
            given=lambda number, rows, packed: (number, rows, packed),
            failed=lambda message: ("failed", message),
            final=FINAL,
            patience_s=patience_s,
        )
        self.runner.wait_for(self.peers.open(self.handing_on))

    def take(self, text: str) -> Step:
        first = Step()
        self.runner.call(self.handing_on.take, first, 1, text.encode())
        wait(lambda: bool(first.sent), "the ticket")
        return first

    def bring(self, number: int, text: str) -> Step:
        second = Step()
        request = GenerationRequest(text, stream=True)
        handed = Handed(self.handing_on, number, second)

        def start() -> None:
            self.runner.start([request], Reply(handed), Figures(), key_of(number))

        self.runner.call(self.handing_on.bring, number, start)
        return second

    def keep(self, number: int) -> Step:
        step = Step()
        self.runner.call(self.handing_on.keep, number, step, False)
        return step

    def look(self, number: int, *, cancelled: bool) -> None:
        step = Step()
        self.runner.call(self.handing_on.look, number, step, cancelled)
        assert step.ended.wait(5) and not step.sent

    def attend(self, first: Step, brought: int) -> None:
        """Bring all further tickets but those that were `brought`, as Triton does, of a client that has left."""
        while not first.ended.is_set():
            for _ in first.sent[1 + brought :]:
                brought += 1
                self.look(first.sent[0][0], cancelled=True)
            time.sleep(0.01)

    def die(self) -> None:
        """Let go of all, as the kernel does for a process that is killed."""

        def cut() -> None:
            for link in list(self.peers._links):  # pyright: ignore[reportPrivateUsage]
                link._transport.abort()  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]

        self.runner.call(cut)

    def knows(self) -> tuple[int, int, int]:
        """How many requests it has taken, how many it answers, and of how many it keeps a step."""
        has = self.handing_on
        return len(has._taken), len(has._held), len(has._kept)  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Process]]:
    monkeypatch.setattr(runner, "WATCH_INTERVAL_S", 0.05)
    scope = uuid.uuid4().hex
    made = [Process(scope, instance) for instance in range(3)]
    numbers = {each.peers.number for each in made}
    for each in made:
        wait(lambda each=each: {*each.peers._known} == numbers - {each.peers.number}, "the others")  # pyright: ignore[reportPrivateUsage]
    yield made
    for each in made:
        each.runner.close(each.peers.close)


@pytest.mark.parametrize("answers", [0, 1])
def test_whoever_gets_the_second_step_answers(processes: list[Process], answers: int) -> None:
    taker, holder = processes[0], processes[answers]
    first = taker.take("a b")
    ((number, rows, packed),) = first.sent
    assert (rows, packed) == (1, b"a b")
    second = holder.bring(number, "a b")
    assert second.ended.wait(5) and second.sent == ["a", "b", ""]
    assert len(first.sent) == 1 and 0 < first.ended_at < second.ended_at
    wait(lambda: all(each.knows() == (0, 0, 0) for each in processes), "their end")


def test_a_refused_request_ends_both_steps(processes: list[Process]) -> None:
    first = processes[0].take("refused")
    second = processes[1].bring(first.sent[0][0], "refused")
    assert second.ended.wait(5) and first.ended.wait(5)
    assert second.sent[0][0] == "invalid" and len(first.sent) == 1
    # Triton would not unload the ensemble if a step ended after the error.
    assert first.ended_at < second.ended_at


def test_a_client_that_left_is_noticed_by_a_third_process(processes: list[Process]) -> None:
    taker, holder, third = processes
    first = taker.take("a ...")
    number = first.sent[0][0]
    second = holder.bring(number, "a ...")
    wait(lambda: second.sent == ["a"], "the first token")
    # The runner's watch over the second step has the first one give its ticket out again.
    wait(lambda: len(first.sent) > 1, "a further ticket")
    assert first.sent[1] == (number, 1, b"")
    third.look(number, cancelled=False)
    assert not second.ended.is_set()
    third.attend(first, 1)
    assert second.ended.wait(5) and second.sent[-1][0] == "cancelled" and first.ended_at < second.ended_at
    wait(lambda: all(each.knows() == (0, 0, 0) for each in processes), "their end")


@pytest.mark.parametrize("answers", [0, 1])
def test_the_last_response_waits_for_each_ticket_that_was_given_out(processes: list[Process], answers: int) -> None:
    """Triton would never unload the ensemble if a step ended after the error."""
    taker, holder, other = processes[0], processes[answers], processes[2]
    first = taker.take("a ...")
    number = first.sent[0][0]
    second = holder.bring(number, "a ...")
    wait(lambda: len(first.sent) > 1, "a further ticket")
    holder.runner.call(holder.handing_on.cancel, key_of(number))
    assert not second.ended.wait(0.2) and not first.ended.is_set()
    # Who would be its witness comes too late for that.
    late = other.keep(number)
    other.attend(first, 1)
    assert second.ended.wait(5) and second.sent[-1][0] == "cancelled"
    assert late.ended_at < first.ended_at < second.ended_at and not late.sent
    wait(lambda: all(each.knows() == (0, 0, 0) for each in processes), "their end")


def test_it_does_not_wait_for_ever(processes: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing_on, "BROUGHT_SECONDS", 0.05)
    taker, holder, _ = processes
    first = taker.take("a ...")
    second = holder.bring(first.sent[0][0], "a ...")
    wait(lambda: len(first.sent) > 1, "a further ticket")
    holder.runner.call(holder.handing_on.cancel, key_of(first.sent[0][0]))
    assert second.ended.wait(5) and second.sent[-1][0] == "cancelled" and first.ended_at < second.ended_at


def test_an_id_cancels_whichever_process_has_the_request(processes: list[Process]) -> None:
    client = Reply(Handed(processes[2].handing_on, 0, answered := Step()))
    processes[2].runner.submit([GenerationRequest("a ...")], client, key="mine")
    processes[0].runner.call(processes[0].handing_on.cancel, "mine")
    assert answered.ended.wait(5) and answered.sent[-1][0] == "cancelled"


def test_a_holder_that_dies_ends_the_request_at_its_taker(processes: list[Process]) -> None:
    taker, holder, third = processes
    firsts = [taker.take("a ...") for _ in range(2)]
    seconds = [who.bring(first.sent[0][0], "a ...") for who, first in zip((holder, third), firsts, strict=True)]
    wait(lambda: all(second.sent == ["a"] for second in seconds), "the first tokens")
    holder.die()
    assert firsts[0].ended.wait(5) and firsts[0].sent[-1] == ("failed", DIED)
    # The node will kill all of them to load the release again, so the others end too.
    assert seconds[1].ended.wait(5) and seconds[1].sent[-1] == ("unavailable", DIED)
    assert firsts[1].sent[1:] in ([], [(firsts[1].sent[0][0], 1, b"")]) and firsts[1].ended_at < seconds[1].ended_at
    assert taker.peers.lost and third.peers.lost


def test_a_taker_that_dies_ends_the_request_at_its_holder(processes: list[Process]) -> None:
    taker, holder, _ = processes
    first = taker.take("a ...")
    second = holder.bring(first.sent[0][0], "a ...")
    wait(lambda: second.sent == ["a"], "the first token")
    taker.die()
    assert second.ended.wait(5) and second.sent[-1] == ("unavailable", DIED)
    late = holder.bring(first.sent[0][0], "a ...")
    assert late.ended.wait(5) and late.sent == [("unavailable", DIED)]


@pytest.fixture
def witnessed(processes: list[Process]) -> tuple[Step, Step, Step]:
    """Three steps of a request that the first process has alone, the last of them kept by the second one."""
    alone, other, _ = processes
    first = alone.take("a ...")
    number = first.sent[0][0]
    second = alone.bring(number, "a ...")
    wait(lambda: len(first.sent) > 1, "a further ticket")
    assert first.sent[1] == (number, 1, WITNESS_WANTED)
    # Itself it is no witness, so it goes on to ask for one.
    assert (own := alone.keep(number)).ended.wait(5) and not own.sent
    wait(lambda: len(first.sent) > 2, "a further ticket")
    assert first.sent[2] == (number, 1, WITNESS_WANTED)
    kept = other.keep(number)
    wait(lambda: first.sent[-1] == (number, 1, b""), "a ticket that wants no witness")
    assert not kept.ended.is_set()
    return first, second, kept


def test_a_witness_ends_with_the_request(processes: list[Process], witnessed: tuple[Step, Step, Step]) -> None:
    first, second, kept = witnessed
    processes[2].attend(first, 2)
    assert all(step.ended.wait(5) for step in witnessed)
    assert kept.ended_at < first.ended_at < second.ended_at
    assert second.sent[-1][0] == "cancelled" and not kept.sent
    wait(lambda: all(each.knows() == (0, 0, 0) for each in processes), "their end")
    assert (late := processes[2].keep(first.sent[0][0])).ended.wait(5) and not late.sent


def test_a_witness_ends_the_request_of_a_process_that_dies(
    processes: list[Process], witnessed: tuple[Step, Step, Step]
) -> None:
    processes[0].die()
    assert witnessed[2].ended.wait(5) and witnessed[2].sent == [("failed", DIED)]


def test_a_request_ends_with_its_witness(processes: list[Process], witnessed: tuple[Step, Step, Step]) -> None:
    processes[1].die()
    first, second, _ = witnessed
    assert second.ended.wait(5) and second.sent[-1] == ("unavailable", DIED) and first.ended.wait(5)


def test_a_ticket_that_nobody_brings_is_given_up() -> None:
    alone = Process(uuid.uuid4().hex, 0, patience_s=0.05)
    first = alone.take("a")
    assert first.ended.wait(5) and first.sent[1:] == [("failed", NOT_BROUGHT)]
    late = alone.bring(first.sent[0][0], "...")
    assert late.ended.wait(5) and late.sent == [("unavailable", DIED)]
    alone.runner.close(alone.peers.close)


def test_the_slots_of_all_processes_add_up() -> None:
    for slots, instances in ((256, 8), (10, 3), (2, 4)):
        shares = [share_of(slots, instance, instances) for instance in range(instances)]
        assert sum(shares) == slots and max(shares) - min(shares) <= 1
