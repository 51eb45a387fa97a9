"""The runner on an engine of this file: what a real one does too rarely to test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tasks.serving.contract import Answer, GenerationRequest, RequestRefused
from tasks.serving.engine import MAX_RUNNING, EngineFailed, Piece
from tasks.serving.runner import FailureCode, Runner
from tests.waiting import wait


class ScriptEngine:
    """An engine that answers a prompt with the prompt's own words, and waits for ever where it has an ellipsis."""

    def __init__(self) -> None:
        self.closed = False
        self.freed = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        if request.text_input == "refused":
            raise RequestRefused("'text_input' is refused")
        try:
            for word in request.text_input.split():
                if word == "...":
                    await asyncio.Event().wait()
                if word == "broken":
                    raise EngineFailed("it broke")
                if word == "faulty":
                    raise KeyError("a fault")
                yield Piece(word, (-0.5,), 1, 7)
            yield Piece("", (), 0, 7, "stop")
        finally:
            self.freed += 1

    def cache_usage(self) -> None:
        return None

    async def close(self) -> None:
        self.closed = True


@dataclass
class Recorder:
    """A client that writes down what it hears."""

    heard: list[list[Answer] | tuple[FailureCode, str]] = field(
        default_factory=list[list[Answer] | tuple[FailureCode, str]]
    )
    ended: threading.Event = field(default_factory=threading.Event)
    ends: int = 0
    cancelled: bool = False

    def send(self, answers: Sequence[Answer], *, final: bool) -> None:
        self.heard.append(list(answers))
        if final:
            self._end()

    def fail(self, code: FailureCode, message: str) -> None:
        self.heard.append((code, message))
        self._end()

    def _end(self) -> None:
        self.ends += 1
        self.ended.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


@pytest.fixture
def engine() -> ScriptEngine:
    return ScriptEngine()


@pytest.fixture
def make_runner(engine: ScriptEngine) -> Iterator[Callable[[float], Runner]]:
    runners: list[Runner] = []

    def make(timeout_s: float) -> Runner:
        runners.append(Runner(engine, timeout_s))
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()


def ask(runner: Runner, *texts: str, stream: bool = False) -> Recorder:
    client = Recorder()
    runner.submit([GenerationRequest(text, max_tokens=9, stream=stream) for text in texts], client)
    return client


def test_rows_are_answered_together_in_order(make_runner: Callable[[float], Runner]) -> None:
    client = ask(make_runner(10), "a b c", "d")
    assert client.ended.wait(5)
    assert client.heard == [[Answer("abc", (-0.5,) * 3, -1.5, 7, 3, "stop"), Answer("d", (-0.5,), -0.5, 7, 1, "stop")]]


def test_pieces_stream_and_add_up(make_runner: Callable[[float], Runner]) -> None:
    client = ask(make_runner(10), "a b", stream=True)
    assert client.ended.wait(5)
    assert client.heard == [
        [Answer("a", (-0.5,), -0.5, 7, 1)],
        [Answer("b", (-0.5,), -1.0, 7, 1)],
        [Answer("", (), -1.0, 7, 0, "stop")],
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_answer_is_an_answer(make_runner: Callable[[float], Runner], stream: bool) -> None:
    client = ask(make_runner(10), "", stream=stream)
    assert client.ended.wait(5)
    assert client.heard == [[Answer("", (), 0.0, 7, 0, "stop")]]


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_comes_before_a_whole_answer_where_it_is_wanted(
    make_runner: Callable[[float], Runner], stream: bool
) -> None:
    client = Recorder()
    request = GenerationRequest("a b", max_tokens=9, stream=stream, exclude_input_in_output=False)
    make_runner(10).submit([request], client)
    assert client.ended.wait(5)
    texts = [answer.text for answers in client.heard for answer in answers if isinstance(answer, Answer)]
    assert "".join(texts) == ("ab" if stream else "a bab")


@pytest.mark.parametrize(("text", "code"), [("refused", "invalid"), ("broken", "internal"), ("faulty", "internal")])
def test_one_bad_row_fails_the_whole_request_once(
    engine: ScriptEngine, make_runner: Callable[[float], Runner], text: str, code: FailureCode
) -> None:
    client = ask(make_runner(10), "a ...", text, "b ...")
    assert client.ended.wait(5)
    wait(lambda: engine.freed == (2 if text == "refused" else 3), "row that is freed")
    assert [heard[0] for heard in client.heard] == [code]
    assert client.ends == 1


def test_a_deadline_ends_a_stream_with_an_error(make_runner: Callable[[float], Runner]) -> None:
    client = ask(make_runner(0.2), "a ...", stream=True)
    assert client.ended.wait(5)
    assert client.heard[0] == [Answer("a", (-0.5,), -0.5, 7, 1)]
    assert client.heard[1] == ("deadline", "not answered within the deadline of 0.2 s")


def test_a_cancelled_request_ends_and_frees_what_it_holds(
    engine: ScriptEngine, make_runner: Callable[[float], Runner]
) -> None:
    client = ask(make_runner(10), "a ...")
    client.cancelled = True
    assert client.ended.wait(5)
    assert client.heard == [("cancelled", "the client cancelled the request")] and engine.freed == 1


def test_a_request_is_cancelled_by_its_key_alone_before_it_runs_too(
    make_runner: Callable[[float], Runner], engine: ScriptEngine
) -> None:
    runner = make_runner(10)
    meant, other, unnamed = Recorder(), Recorder(), Recorder()

    def all_at_once() -> None:
        for client, key in ((meant, "meant"), (other, "other"), (unnamed, None)):
            runner.submit([GenerationRequest("a ...", max_tokens=9)], client, key=key)
        # Behind the submissions, before any of them has run.
        runner.call(runner.cancel, "meant")
        runner.call(runner.cancel, "meant")

    runner.call(all_at_once)
    assert meant.ended.wait(5)
    assert meant.heard == [("cancelled", "the client cancelled the request")] and meant.ends == 1
    assert engine.freed == 0 and not other.ended.is_set()
    runner.call(runner.cancel, "other")
    assert other.ended.wait(5) and engine.freed == 1 and not unnamed.ended.is_set()
    for _ in range(MAX_RUNNING - 1):  # the places of both are free
        assert ask(runner, "a").ended.wait(5)


def test_a_request_that_never_ran_is_answered_when_the_runner_closes(
    make_runner: Callable[[float], Runner], engine: ScriptEngine
) -> None:
    runner, client, closed = make_runner(10), Recorder(), threading.Thread()

    def submit_and_close() -> None:
        nonlocal closed
        runner.submit([GenerationRequest("a ...", max_tokens=9)], client)
        closed = threading.Thread(target=runner.close)
        closed.start()

    runner.call(submit_and_close)
    assert client.ended.wait(5) and client.heard == [("unavailable", "the server is going down")]
    closed.join(5)
    assert engine.closed


def test_closing_answers_everybody_and_then_frees_the_engine(
    engine: ScriptEngine, make_runner: Callable[[float], Runner]
) -> None:
    runner = make_runner(10)
    waiting = [ask(runner, "a ...") for _ in range(4)]
    runner.close()
    late = ask(runner, "a")
    assert engine.closed
    for client in (*waiting, late):
        assert client.heard == [("unavailable", "the server is going down")]
        assert client.ends == 1


def test_more_than_can_wait_are_refused_at_once(make_runner: Callable[[float], Runner]) -> None:
    runner = make_runner(10)
    waiting = [ask(runner, "...") for _ in range(MAX_RUNNING)]
    client = ask(runner, "a")
    assert client.ended.wait(5)
    assert client.heard == [
        ("unavailable", f"{MAX_RUNNING} requests are running or waiting; at most {MAX_RUNNING} may")
    ]
    runner.close()
    assert all(entry.ends == 1 for entry in waiting)
