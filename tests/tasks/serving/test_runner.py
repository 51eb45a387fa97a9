"""The runner on an engine of this file: what a real one does too rarely to test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tasks.serving.contract import Answer, GenerationRequest, RequestRefused
from tasks.serving.engine import MAX_RUNNING, EngineFailed, Piece
from tasks.serving.runner import FailureCode, Runner


class Script:
    """A generation that says its words, then waits for ever where it ends in an ellipsis."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[Piece]:
        for word in self._text.split():
            if word == "...":
                assert self._cancelled.wait(10)
                return
            if word == "broken":
                raise EngineFailed("it broke")
            yield Piece(word, (-0.5,))

    def cancel(self) -> None:
        self._cancelled.set()


class ScriptEngine:
    """An engine that answers a prompt with the prompt's own words."""

    closed = False

    def start(self, request: GenerationRequest) -> Script:
        if request.text_input == "refused":
            raise RequestRefused("'text_input' is refused")
        return Script(request.text_input)

    def close(self) -> None:
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
            self.finish()

    def finish(self) -> None:
        self.ends += 1
        self.ended.set()

    def fail(self, code: FailureCode, message: str) -> None:
        self.heard.append((code, message))
        self.finish()

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
    runner.submit([GenerationRequest(text, 9, stream=stream) for text in texts], client)
    return client


def test_rows_are_answered_together_in_order(make_runner: Callable[[float], Runner]) -> None:
    client = ask(make_runner(10), "a b c", "d")
    assert client.ended.wait(5)
    assert client.heard == [[Answer("abc", (-0.5,) * 3, -1.5), Answer("d", (-0.5,), -0.5)]]


def test_pieces_stream_and_add_up(make_runner: Callable[[float], Runner]) -> None:
    client = ask(make_runner(10), "a b", stream=True)
    assert client.ended.wait(5)
    assert client.heard == [[Answer("a", (-0.5,), -0.5)], [Answer("b", (-0.5,), -1.0)]]


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_answer_is_an_answer(make_runner: Callable[[float], Runner], stream: bool) -> None:
    client = ask(make_runner(10), "", stream=stream)
    assert client.ended.wait(5)
    assert client.heard == [[Answer("")]]


def test_the_prompt_comes_before_the_answer_where_it_is_wanted(make_runner: Callable[[float], Runner]) -> None:
    client = Recorder()
    make_runner(10).submit([GenerationRequest("a b", 9, stream=True, exclude_input_in_output=False)], client)
    assert client.ended.wait(5)
    assert (
        "".join(answer.text for answers in client.heard for answer in answers if isinstance(answer, Answer)) == "a bab"
    )


@pytest.mark.parametrize(("text", "code"), [("refused", "invalid"), ("broken", "internal")])
def test_one_bad_row_fails_the_whole_request_once(
    make_runner: Callable[[float], Runner], text: str, code: FailureCode
) -> None:
    client = ask(make_runner(10), "a ...", text, "b ...")
    assert client.ended.wait(5)
    time.sleep(0.2)
    assert [heard[0] for heard in client.heard] == [code]
    assert client.ends == 1


def test_a_deadline_ends_a_stream_with_an_error(make_runner: Callable[[float], Runner]) -> None:
    client = ask(make_runner(0.2), "a ...", stream=True)
    assert client.ended.wait(5)
    assert client.heard[0] == [Answer("a", (-0.5,), -0.5)]
    assert client.heard[1] == ("unavailable", "not answered within the deadline of 0.2 s")


def test_a_cancelled_request_ends(make_runner: Callable[[float], Runner]) -> None:
    client = ask(make_runner(10), "a ...")
    client.cancelled = True
    assert client.ended.wait(5)
    assert client.heard == [("cancelled", "the client cancelled the request")]


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
    assert client.heard == [
        ("unavailable", f"{MAX_RUNNING} requests are running or waiting; at most {MAX_RUNNING} may")
    ]
    runner.close()
    assert all(entry.ends == 1 for entry in waiting)
