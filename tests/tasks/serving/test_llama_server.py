"""llama.cpp, and requests that would hold it for ever: what its process does with them, and what others notice."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.gguf.reader import read_gguf
from tasks.serving.contract import Answer, GenerationRequest
from tasks.serving.engine import EngineFailed
from tasks.serving.llamacpp import LlamaCpp
from tasks.serving.runner import FailureCode, Runner
from tasks.serving.settings import ServingSettings
from tests.tasks.serving.test_runner import Recorder

ENDLESS = (
    "{% for message in messages %}{% if 'for ever' in message['content'] %}"
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}{% endif %}"
    "{{ message['content'] }}{% endfor %}"
)


def settings(path: str) -> ServingSettings:
    return ServingSettings("llamacpp", path, slots=2, context_tokens=512, chat_template=True, request_timeout_s=120)


def guided(grammar: str) -> dict[str, str]:
    return {"guided_decoding_guide_type": "ebnf_grammar", "guided_decoding_guide": grammar}


# Each with what its sender hears. The first is refused by the contract; here it comes past it.
HOSTILE: dict[str, tuple[str, dict[str, str], FailureCode, str]] = {
    "brackets": ("Hi", guided(f'root ::= {"(" * 100_000}"a"{")" * 100_000}'), "unavailable", "starts again"),
    "choices": ("Hi", guided("root ::= " + '"a"? ' * 3000), "invalid", "'guided_decoding_guide'"),
    "template": ("Go on for ever", {}, "internal", "/apply-template"),
}


@pytest.fixture(scope="module")
def runner(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """SmolLM2 whose template has no end for who asks so."""
    path = tmp_path_factory.mktemp("hostile") / "model.gguf"
    shutil.copyfile(smollm2_gguf, path)
    template = (read_gguf(path).text("tokenizer.chat_template") or "").encode()
    at = path.read_bytes().index(template)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(ENDLESS.encode().ljust(len(template)))
    made = Runner(LlamaCpp(path.parent, settings(path.name)), 120)
    yield made
    made.close()


def engines() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if "llama_program.py" in " ".join(child.cmdline())}


def ask(runner: Runner, text: str = "Count to three.", **fields: Any) -> Recorder:
    client = Recorder()
    runner.submit([GenerationRequest(text, max_tokens=4, temperature=0, **fields)], client)
    return client


def seconds_to_answer(runner: Runner) -> float:
    started = time.monotonic()
    client = ask(runner)
    assert client.ended.wait(110)
    assert [type(heard) for heard in client.heard] == [list], client.heard
    return time.monotonic() - started


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    return sum(process.cpu_times().user + process.cpu_times().system for process in processes)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_who_sends_it_is_told_and_others_are_answered_within_seconds(runner: Runner, name: str) -> None:
    text, fields, code, named = HOSTILE[name]
    usual = seconds_to_answer(runner)
    hostile = ask(runner, text, **fields)
    time.sleep(0.2)
    beside = ask(runner)
    assert hostile.ended.wait(110)
    (failure,) = hostile.heard
    assert isinstance(failure, tuple) and failure[0] == code and named in failure[1], failure
    assert seconds_to_answer(runner) < 5 + 5 * usual
    # Also who was waiting, or being answered, when it came.
    assert beside.ended.wait(5) and isinstance(beside.heard[0], list) and isinstance(beside.heard[0][0], Answer)
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    before = cpu_seconds(processes)
    time.sleep(2)
    assert cpu_seconds(processes) - before < 1


@pytest.mark.slow
def test_an_engine_that_is_killed_comes_back_and_who_waited_notices_nothing(runner: Runner) -> None:
    seconds_to_answer(runner)
    (process,) = engines()
    stream = Recorder()
    runner.submit([GenerationRequest("Count to one hundred.", max_tokens=200, temperature=0, stream=True)], stream)
    while not stream.heard:
        time.sleep(0.01)
    process.kill()
    waiting = ask(runner)
    assert waiting.ended.wait(60) and isinstance(waiting.heard[0], list)
    # An answer that had begun cannot be begun again.
    assert stream.ended.wait(60)
    assert stream.heard[-1] == ("unavailable", "llama.cpp has ended and starts again; ask again")
    assert stream.ends == 1


@pytest.mark.slow
def test_it_ends_with_its_owner(smollm2_gguf: Path) -> None:
    before = engines()
    engine = LlamaCpp(smollm2_gguf.parent, settings(smollm2_gguf.name))
    (process,) = engines() - before
    threads = threading.active_count()
    asyncio.run(engine.close())
    assert not process.is_running()
    assert threading.active_count() < threads


def test_a_file_that_is_no_model_is_an_error_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    before = engines()
    with pytest.raises(EngineFailed, match=r"llama\.cpp cannot load .*model\.gguf"):
        LlamaCpp(tmp_path, settings("model.gguf"))
    assert engines() == before
