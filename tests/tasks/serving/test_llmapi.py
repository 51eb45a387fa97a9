"""The engine `llmapi` on the stand-in for `tensorrt_llm`, in this process; through Triton it is one of the kinds."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.models.recipe import LlmApiRecipe
from tasks.serving.contract import GenerationRequest, RequestRefused
from tasks.serving.engine import EngineFailed, Piece
from tasks.serving.llmapi import LlmApi
from tasks.serving.settings import Sampling, ServingSettings
from tasks.trtllm.llmapi.arguments import release_arguments
from tasks.trtllm.serving import TensorRtServing
from tests.standin import llm_package
from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.asked import Asked, Loop
from tests.tasks.serving.small_tokenizers import CORPUS, byte_level
from tests.tasks.serving.turns import ANSWER, GEMMA, PHI_3, QUESTION, Family

COUNT = "How do I count to nine in French?"
LONG = "1 2 3 4 5 6 7 8 9 "


@dataclass(frozen=True)
class Loaded:
    """An engine, and the loop that asks it."""

    loop: Loop
    engine: LlmApi

    def start(self, request: GenerationRequest) -> Asked:
        return self.loop.ask(self.engine, request)


Load = Callable[..., Loaded]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Loads an engine as a release of the kind does; `llm_args` and `serving` are those of the model's file.

    `unchecked` are arguments that no file could name.
    """
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    llm_package.install(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    engines: list[Loaded] = []
    loop = Loop()

    def start(
        version: str = "1.2.1",
        *,
        slots: int = 4,
        token_seconds: float = 0.001,
        llm_args: dict[str, Any] | None = None,
        sampling: Sampling | None = None,
        chat_template: bool = False,
        generation_config: dict[str, Any] | None = None,
        family: Family | None = None,
        speculation: dict[str, Any] | None = None,
        unchecked: dict[str, Any] | None = None,
        **serving: Any,
    ) -> Loaded:
        parameters = TensorRtServing.model_validate(serving)
        runtime = {"tensorrt_llm": version, "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
        recipe = LlmApiRecipe.model_validate(
            {
                "kind": "llmapi",
                "runtime": runtime,
                "max_beam_width": 4,
                "llm_args": llm_args or {},
                "speculation": speculation,
            }
        )
        arguments = release_arguments(
            recipe, parameters, max_batch_size=slots, max_seq_len=512, kv_cache_tokens=slots * 512
        )
        if family is None:
            write_tokenizer(tmp_path / "engine", byte_level().tokenizer)
            llm_package.write_checkpoint(
                tmp_path / "engine",
                version,
                byte_level().tokenizer,
                (*CORPUS, LONG * 9),
                endless=1,
                token_seconds=token_seconds,
            )
        else:
            family.write(tmp_path / "engine")
            llm_package.write_model(tmp_path / "engine", version, family.tokenizer(), family.corpus(), token_seconds)
        if generation_config is not None:
            (tmp_path / "engine/generation_config.json").write_text(json.dumps(generation_config))
        settings = ServingSettings(
            "llmapi",
            "engine",
            slots,
            512,
            chat_template,
            60.0,
            tensorrt_llm=version,
            max_beam_width=parameters.max_beam_width,
            llm_arguments=arguments | (unchecked or {}),
            sampling=sampling or Sampling(),
        )
        engines.append(Loaded(loop, LlmApi(tmp_path, settings, {"gpt_model_path": str(tmp_path / "engine")})))
        return engines[-1]

    yield start
    loop.close(*(loaded.engine for loaded in engines))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


def request(text: str = COUNT, max_tokens: int = 24, **fields: Any) -> GenerationRequest:
    return GenerationRequest(text, max_tokens=max_tokens, **fields)


def pieces(engine: Loaded, text: str = COUNT, max_tokens: int = 24, **fields: Any) -> list[Piece]:
    return [piece for piece in engine.start(request(text, max_tokens, **fields)) if piece.text]


def answer(engine: Loaded, text: str = COUNT, max_tokens: int = 24, **fields: Any) -> str:
    return "".join(piece.text for piece in pieces(engine, text, max_tokens, **fields))


VERSIONS = ("1.0.0", "1.1.0", "1.2.1", "1.3.0rc25", "1.3.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_honours_the_contract(load: Load, version: str) -> None:
    engine = load(version)
    greedy = answer(engine, temperature=0.0)
    assert greedy == answer(engine, top_k=1) == answer(engine, top_p=0.0)
    assert answer(engine, seed=7, temperature=2.0) == answer(engine, seed=7, temperature=2.0)
    assert len({answer(engine, temperature=2.0, seed=seed) for seed in (None, None, 7, 8)}) == 4
    ha: dict[str, Any] = {"text": "ha ha ha ha ha", "temperature": 0.0}
    plain = answer(engine, **ha)
    penalties: dict[str, Any] = {"repetition_penalty": 3.0, "presence_penalty": 9.0, "frequency_penalty": 9.0}
    for name, value in penalties.items():
        assert answer(engine, **{**ha, name: value}) != plain
    words = tuple(sorted(set(greedy.split()), key=len)[-2:])
    assert not any(word in answer(engine, temperature=0.0, bad_words=words) for word in words)
    streamed = pieces(engine, temperature=0.0, stream=True, return_log_probs=True)
    whole = pieces(engine, temperature=0.0, return_log_probs=True)
    assert len(streamed) > 8 and "".join(piece.text for piece in streamed) == greedy
    logs = [[value for piece in found for value in piece.log_probs] for found in (streamed, whole)]
    assert logs[0] == logs[1] and all(value <= 0 for value in logs[0])


@pytest.mark.parametrize("version", ["1.0.0", "1.2.1", "1.3.0rc3", "1.3.0"])
def test_guesses_change_no_answer(load: Load, tmp_path: Path, version: str) -> None:
    greedy = answer(load(version), temperature=0.0)
    guessing: dict[str, Any] = {"speculation": {"mode": "eagle", "max_draft_len": 3, "source": "hf://some/heads@main"}}
    with pytest.raises(EngineFailed, match="is not a local folder"):
        load(version, **guessing)
    (tmp_path / "engine/draft").mkdir()
    (tmp_path / "engine/draft/config.json").write_text("{}")
    assert answer(load(version, **guessing), temperature=0.0) == greedy
    without = load(version, llm_args={"speculative_config": {"decoding_type": "NGram", "max_draft_len": 3}})
    assert answer(without, temperature=0.0) == greedy
    assert answer(without, temperature=0.0, seed=7) == greedy
    some: tuple[dict[str, Any], ...] = ({"seed": 7}, {"presence_penalty": 0.5}, {"bad_words": ("a",)})
    for ignored in some:
        with pytest.raises(RequestRefused, match=next(iter(ignored))):
            answer(without, **ignored)


def test_an_answer_ends_with_any_of_the_models_end_tokens(load: Load) -> None:
    engine = load()
    ended = answer(engine, CORPUS[3], 200, temperature=0.0)
    assert len(ended) < 150
    comma = byte_level().encode(",", add_special_tokens=False)[-1]
    assert answer(engine, temperature=0.0, end_id=comma).count(",") == 0
    other = load(generation_config={"eos_token_id": [2, comma]})
    assert "," in answer(engine, temperature=0.0) and "," not in answer(other, temperature=0.0)


@pytest.mark.parametrize(
    ("family", "version"), [(GEMMA, "1.0.0"), (GEMMA, "1.2.1"), (GEMMA, "1.3.0"), (PHI_3, "1.2.1")], ids=str
)
def test_an_answer_ends_at_the_turn(load: Load, monkeypatch: pytest.MonkeyPatch, family: Family, version: str) -> None:
    """By the C++ sampler, by the one of PyTorch, and by the only one of 1.3. The LLM itself ends there too."""
    engine = load(version, family=family, chat_template=True)
    llm: Any = engine.engine._llm  # pyright: ignore[reportPrivateUsage]
    results: list[Any] = []
    generate = llm.generate_async

    def recorded(*arguments: Any, **fields: Any) -> Any:
        results.append(generate(*arguments, **fields))
        return results[-1]

    monkeypatch.setattr(llm, "generate_async", recorded)
    end_id = family.end_ids[0]
    for fields in ({}, {"stream": True}, {"return_log_probs": True}, {"stop_words": ("never",)}, {"end_id": end_id}):
        said = list(engine.start(request(QUESTION, 400, temperature=0.0, **fields)))
        assert "".join(piece.text for piece in said) == ANSWER
        assert said[-1].finish_reason == "stop"
        assert results[-1].outputs[0].finish_reason == "stop"


def test_least_and_most_tokens(load: Load) -> None:
    engine = load()
    short = pieces(engine, CORPUS[3], 200, temperature=0.0, return_log_probs=True)
    least = sum(len(piece.log_probs) for piece in short) + 9
    longer = pieces(engine, CORPUS[3], 200, temperature=0.0, return_log_probs=True, min_tokens=least)
    assert sum(len(piece.log_probs) for piece in longer) >= least
    counted = pieces(engine, LONG, 5000, temperature=0.0, return_log_probs=True)
    prompt = len(byte_level().encode(LONG, add_special_tokens=True))
    # Prompt and answer together have so many.
    assert sum(len(piece.log_probs) for piece in counted) == 512 - prompt


def test_stop_words_end_the_answer_early(load: Load) -> None:
    engine = load(token_seconds=0.01)
    whole = answer(engine, LONG, 20, temperature=0.0)
    word = whole[5:9]
    before = time.monotonic()
    assert answer(engine, LONG, 400, temperature=0.0, stop_words=("never", word)) == whole[: whole.index(word)]
    assert time.monotonic() - before < 2  # 400 tokens take 4 s


@pytest.mark.parametrize("version", ["1.0.0", "1.2.1", "1.3.0"])
def test_beams(load: Load, version: str) -> None:
    engine = load(version, max_beam_width=3)
    beam = answer(engine, "User:", 40, beam_width=3)
    assert beam == answer(engine, "User:", 40, beam_width=3) and beam
    assert len(answer(engine, "User:", 40, beam_width=3, length_penalty=4.0)) > len(beam)
    assert answer(engine, "User:", 40, beam_width=3, stop_words=("STOP",)) == beam[: beam.index("STOP")]
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"beam_width": 2}, "'beam_width' must be 3"),
        ({}, "'beam_width' must be 3"),
        ({"beam_width": 3, "stream": True}, "'stream' must be false"),
        ({"beam_width": 3, "return_log_probs": True}, "'return_log_probs' must be false"),
    )
    for fields, message in refused:
        with pytest.raises(RequestRefused, match=message):
            list(engine.start(request(**fields)))


@pytest.mark.parametrize(
    ("version", "llm_args"),
    [
        ("1.0.0", {"enable_trtllm_sampler": False}),
        ("1.2.1", {"sampler_type": "TorchSampler"}),
        ("1.3.0", {"speculative_config": {"decoding_type": "NGram"}}),
    ],
)
def test_what_the_chosen_sampler_ignores_is_refused_by_name(load: Load, version: str, llm_args: dict[str, Any]) -> None:
    engine = load(version, llm_args=llm_args)
    ignored: dict[str, Any] = {
        "bad_words": ("x",),
        "min_tokens": 1,
        "seed": 0,
        "return_log_probs": True,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    }
    for name, value in ignored.items():
        with pytest.raises(RequestRefused, match=f"'{name}' cannot be honoured"):
            list(engine.start(request(**{name: value})))
    assert answer(engine, temperature=0.0, top_p=0.5, top_k=5000)


def test_what_the_llm_would_bend_is_refused(load: Load) -> None:
    engine = load()
    with pytest.raises(RequestRefused, match="'top_k' is 1025; the most is 1024"):
        list(engine.start(request(top_k=1025)))
    with pytest.raises(RequestRefused, match="'length_penalty' must be 1"):
        list(engine.start(request(length_penalty=2.0)))
    with pytest.raises(RequestRefused, match=r"the prompt has \d+ tokens; it may have 511"):
        list(engine.start(request("word " * 600)))


def test_what_the_llm_refuses_fails_one_request_alone(load: Load) -> None:
    engine = load(llm_args={"max_num_tokens": 8})
    with pytest.raises(EngineFailed, match=r"the LLM failed: .*should not exceed max_num_tokens \(8\)"):
        answer(engine)
    assert answer(engine, "ha", 3, temperature=0.0)


@pytest.mark.parametrize(
    ("unchecked", "message"),
    [
        ({"unheard_of": 1}, "LLM got invalid argument: unheard_of"),
        ({"kv_cache_config": {"unheard_of": 1}}, "Extra inputs are not permitted"),
    ],
)
def test_a_model_that_does_not_load_says_why(load: Load, unchecked: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineFailed, match=f"cannot load .*engine: (.|\n)*{message}"):
        load(unchecked=unchecked)


def test_requests_run_together_and_wait_for_a_place(load: Load) -> None:
    engine = load(slots=2)

    def timed(_: int) -> tuple[float, float]:
        moments = [time.monotonic() for _ in engine.start(request(LONG, 40, stream=True, temperature=0.0))]
        return moments[0], moments[-1]

    with ThreadPoolExecutor(3) as pool:
        one, two, three = sorted(pool.map(timed, range(3)))
    assert two[0] < one[1] and three[0] > min(one[1], two[1])


def test_cancelling_ends_at_once_and_frees_the_place(load: Load) -> None:
    engine = load(slots=1, token_seconds=0.005)
    running = engine.start(request(LONG, 400, stream=True, temperature=0.0))
    next(iter(running))
    waiting = engine.start(request(LONG, 400, temperature=0.0))
    never = engine.start(request(LONG, 400, temperature=0.0))
    never.cancel()
    assert [piece.text for piece in never if piece.text] == []
    started = time.monotonic()
    threading.Timer(0.1, waiting.cancel).start()
    assert not any(piece.text for piece in waiting)
    running.cancel()
    running.cancel()
    list(running)
    assert answer(engine, max_tokens=2, temperature=0.0)
    assert time.monotonic() - started < 1  # each of the others takes 2 s


def test_an_llm_that_ends_answers_before_their_time_has_failed(load: Load) -> None:
    engine = load()
    generation = iter(engine.start(request(LONG, 400, stream=True, temperature=0.0)))
    next(generation)
    threading.Thread(target=engine.engine._llm.shutdown).start()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(EngineFailed, match="ended the answer before its time: cancelled"):
        list(generation)
    with pytest.raises(EngineFailed, match="LLM is shutting down"):
        answer(engine)


def test_nothing_is_fetched(load: Load) -> None:
    load()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
