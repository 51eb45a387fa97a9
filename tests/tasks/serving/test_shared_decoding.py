"""Answers that grow together say what each says alone, whoever comes, leaves or fails beside them."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest

from tasks.serving.contract import GenerationRequest, RequestRefused
from tasks.serving.engine import EngineFailed
from tasks.serving.settings import Sampling
from tasks.serving.shared_decoding import may_share
from tasks.serving.torch_model import TorchModel
from tests.tasks.serving.asked import Asked, Loop
from tests.tasks.serving.small_torch import FAMILIES, TOKENS, Engines, answer, write_model

GREEDY, DRAWN = Sampling(temperature=0.0), Sampling()
TEXTS = ("a", "How do I count?", "the " * 40, "naïve café", "1 2 3", "def f(x):", "un, deux, trois " * 9, "🎉 done!")
needs_guides = pytest.mark.skipif(find_spec("llguidance") is None, reason="llguidance is not installed")


@pytest.mark.parametrize(
    ("fields", "sampling", "exact", "expected"),
    [
        ({}, GREEDY, True, True),
        ({}, GREEDY, False, False),
        ({}, Sampling(top_k=1), False, False),
        ({}, DRAWN, False, True),
        ({"guided_decoding_guide_type": "json", "stop_words": ("a",), "bad_words": ("b",)}, GREEDY, True, True),
        ({"seed": 0}, DRAWN, True, False),
        ({"return_log_probs": True}, DRAWN, True, False),
        ({"lora_name": "french"}, GREEDY, True, False),
    ],
)
def test_which_answers_may_grow_together(
    fields: dict[str, Any], sampling: Sampling, exact: bool, expected: bool
) -> None:
    assert may_share(GenerationRequest("a", **fields), sampling, exact=exact) is expected


@pytest.fixture
def loop() -> Loop:
    """Closed by `start`, which every test with an engine has."""
    return Loop()


@pytest.fixture
def start(loop: Loop, tmp_path: Path) -> Iterator[Engines]:
    pytest.importorskip("torch", reason="the extra `transformers` is not installed: make test-reference")
    engines = Engines(loop, tmp_path)
    yield engines
    engines.close()


class Passes(list[int]):
    """The numbers of requests of all shared passes. The next `failing` of them do all their work, and then fail."""

    failing = 0


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    sizes, shared = Passes(), cast(Any, TorchModel)._shared

    def counted(self: Any, shared_pass: Any, requests: Any) -> Any:
        found = shared(self, shared_pass, requests)
        sizes.append(len(requests))
        if sizes.failing:
            sizes.failing -= 1
            raise importlib.import_module("torch").OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(TorchModel, "_shared", counted)
    return sizes


def asked(loop: Loop, engine: Any, text: str, **fields: Any) -> Asked:
    given: dict[str, Any] = {"max_tokens": TOKENS, **fields}
    return loop.ask(engine, GenerationRequest(text, **given))


def said(request: Asked) -> str:
    return "".join(piece.text for piece in request)


def alone(loop: Loop, engine: Any, text: str, **fields: Any) -> str:
    """By plain passes: the likeliest tokens are the same with any seed."""
    return answer(loop, engine, text, seed=1, **fields)[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_together_they_say_what_each_says_alone(
    family: str, loop: Loop, start: Engines, passes: Passes, tmp_path: Path
) -> None:
    engine = start(write_model(tmp_path / "model", family), slots=len(TEXTS))
    assert passes == [2], "the proof"
    expected = [alone(loop, engine, text) for text in TEXTS]
    assert passes == [2] and len(set(expected)) == len(TEXTS)
    together = [asked(loop, engine, text) for text in TEXTS]
    assert [said(each) for each in together] == expected
    assert max(passes) == len(TEXTS) and sum(passes) < len(TEXTS) * TOKENS + 2


@pytest.mark.slow
def test_what_is_drawn_and_who_leaves_change_no_neighbour(
    loop: Loop, start: Engines, passes: Passes, tmp_path: Path
) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"), slots=6)
    expected = alone(loop, engine, TEXTS[1])
    for _ in range(3):
        drawn = [asked(loop, engine, TEXTS[1], temperature=1.0) for _ in range(3)]
        leaving = [asked(loop, engine, TEXTS[1], max_tokens=200) for _ in range(4)]
        steady = asked(loop, engine, TEXTS[1])
        next(iter(leaving[2]))
        for each in leaving:
            each.cancel()
        assert said(steady) == expected
        assert len({said(each) for each in drawn}) == 3
    deadline = time.monotonic() + 10
    while engine.cache_usage() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.cache_usage() == 0 and max(passes) >= 4


@pytest.mark.slow
def test_a_shared_pass_that_fails_costs_nobody_an_answer(
    loop: Loop, start: Engines, passes: Passes, tmp_path: Path
) -> None:
    engine = start(write_model(tmp_path / "model", "Gemma2"), slots=4)
    expected = [alone(loop, engine, text) for text in TEXTS[:4]]
    passes.failing = 10
    together = [asked(loop, engine, text) for text in TEXTS[:4]]
    assert [said(each) for each in together] == expected
    assert passes.failing == 0


@pytest.mark.slow
def test_a_request_that_fails_in_a_shared_pass_fails_alone(
    loop: Loop, start: Engines, passes: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"), slots=2)
    expected, passed = alone(loop, engine, TEXTS[1]), cast(Any, TorchModel)._pass
    torch: Any = importlib.import_module("torch")

    def scarce(self: Any, ids: Any, cache: Any, *arguments: Any) -> Any:
        if cache.get_seq_length() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return passed(self, ids, cache, *arguments)

    monkeypatch.setattr(TorchModel, "_pass", scarce)
    passes.failing = 1000
    long, short = asked(loop, engine, TEXTS[2], max_tokens=150), asked(loop, engine, TEXTS[1])
    assert said(short) == expected
    with pytest.raises(EngineFailed, match="the memory of the GPU does not suffice for this request"):
        said(long)


@pytest.mark.slow
def test_numbers_of_16_bits_are_shared_where_chance_decides_anyway(
    loop: Loop, start: Engines, passes: Passes, tmp_path: Path
) -> None:
    engine = start(write_model(tmp_path / "model", "Llama", dtype="bfloat16"), slots=3)
    expected = alone(loop, engine, TEXTS[1])
    assert [said(each) for each in [asked(loop, engine, TEXTS[1]) for _ in range(3)]] == [expected] * 3
    assert passes == [2]
    drawn = [asked(loop, engine, TEXTS[1], temperature=1.0, min_tokens=TOKENS) for _ in range(3)]
    assert len({said(each) for each in drawn}) == 3
    assert max(passes) == 3


@pytest.mark.slow
def test_models_whose_requests_are_not_apart_in_a_pass_take_turns(
    loop: Loop,
    start: Engines,
    passes: Passes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Its angles follow from the longest request of a batch.
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    engine = start(write_model(tmp_path / "rope", "Llama", rope_parameters=rope), slots=2)
    assert not passes
    expected = alone(loop, engine, TEXTS[1])
    assert [said(each) for each in [asked(loop, engine, TEXTS[1]) for _ in range(2)]] == [expected] * 2
    assert not passes
    # A class that takes its keys for something else.
    shared_pass: Any = importlib.import_module("tasks.serving.shared_pass")
    attend = shared_pass._attend

    def off(*given: Any, **named: Any) -> Any:
        return attend(*given, **named)[0] * 1.01, None

    monkeypatch.setattr(shared_pass, "_attend", off)
    assert not start(write_model(tmp_path / "other", "Llama"), slots=2)._model.shares
    assert "requests of this model take turns: scores of a shared pass are off" in capfd.readouterr().err


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "count": {"enum": [1, 2, 3]}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
GUIDED = {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": json.dumps(SCHEMA)}


@needs_guides
@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"seed": 3}, {}], ids=["plain", "shared"])
def test_a_guide_holds_for_its_own_answer_alone(
    fields: dict[str, Any], loop: Loop, start: Engines, passes: Passes, tmp_path: Path
) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"), slots=4)
    expected = alone(loop, engine, TEXTS[1])
    guided = [asked(loop, engine, text, max_tokens=150, temperature=1.0, **GUIDED, **fields) for text in TEXTS[:3]]
    steady = asked(loop, engine, TEXTS[1])
    for each in guided:
        jsonschema.validate(json.loads(said(each)), SCHEMA)
    assert said(steady) == expected
    if not fields:
        assert max(passes) == 4


@needs_guides
@pytest.mark.slow
def test_a_guide_beside_log_probabilities_and_bad_words(loop: Loop, start: Engines, tmp_path: Path) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"))
    fields = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "(un|deux|trois)-[a-f]{3}"}
    text, log_probs, finish = answer(loop, engine, return_log_probs=True, bad_words=("un", "trois"), **fields)
    assert text.startswith("deux-") and len(text) == len("deux-abc") and finish == "stop"
    assert log_probs and all(value < 0 for value in log_probs)
    with pytest.raises(RequestRefused, match="'bad_words' leave no token"):
        answer(loop, engine, bad_words=("u", "tro"), **fields)


@needs_guides
@pytest.mark.slow
def test_a_bad_guide_is_refused_before_the_model_is_asked_and_who_leaves_frees_its_slot(
    loop: Loop, start: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"), slots=1)
    endless = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[ab]*"}
    for _ in range(3):
        running = asked(loop, engine, TEXTS[1], max_tokens=200, temperature=1.0, **endless)
        next(iter(running))
        running.cancel()
    assert set(answer(loop, engine, temperature=1.0, max_tokens=20, **endless)[0]) <= {"a", "b"}
    monkeypatch.delattr(TorchModel, "_pass")
    with pytest.raises(RequestRefused, match="'guided_decoding_guide' cannot be honoured"):
        answer(loop, engine, guided_decoding_guide_type="regex", guided_decoding_guide="(")
    with pytest.raises(RequestRefused, match="'min_tokens' must be 0 beside a guide"):
        answer(loop, engine, min_tokens=2, **endless)
