"""A draft model guesses and the engine checks: the answer is the engine's own, whatever was guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pytest

from tasks.serving.backend_inputs import as_input
from tasks.serving.contract import GenerationRequest, RequestRefused, Tensor
from tasks.serving.drafts import check_drafted, checked_guesses
from tasks.serving.settings import ServingSettings
from tasks.serving.tokens import Tokens

SETTINGS = ServingSettings(
    "tensorrt_llm", "tokenizer", 8, 64, False, 60.0, tensorrt_llm="1.2.1", max_input_tokens=63, draft_tokens=4
)
PROMPT, END = (1, 2, 3), 0
Next = Callable[[Sequence[int]], int]


def rightly(said: Sequence[int]) -> int:
    """What the engine says next: counts on, and ends after 20."""
    return END if said[-1] == 20 else said[-1] + 1


def wrongly(said: Sequence[int]) -> int:
    return 99


def every_third_wrongly(said: Sequence[int]) -> int:
    return 99 if len(said) % 3 == 0 else rightly(said)


@dataclass
class Models:
    """Both models of the backend, as 0.10 and later answer: without the token that ends, at most what was asked for."""

    guesses: Next
    steps: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    closed: int = 0

    async def guess(self, inputs: dict[str, Tensor]) -> AsyncGenerator[list[Tokens]]:
        said = inputs["input_ids"][0].tolist()
        assert inputs["min_tokens"].item() == inputs["request_output_len"].item()
        for _ in range(inputs["request_output_len"].item()):
            said.append(max(1, self.guesses(said)))  # it may not end before
        yield [Tokens(tuple(said[inputs["input_ids"].size :]))]

    async def check(self, inputs: dict[str, Tensor]) -> AsyncGenerator[list[Tokens]]:
        said = inputs["input_ids"][0].tolist()
        guessed: list[int] = inputs["draft_input_ids"][0].tolist() if "draft_input_ids" in inputs else []
        assert len(said) + len(guessed) <= 63 and inputs["request_output_len"].item() == len(guessed) + 1
        self.steps.append({name: value.reshape(-1).tolist() for name, value in inputs.items()})
        new: list[int] = []
        for expected in (*guessed, None):
            token = rightly([*said, *new])
            if token == END:
                break
            new.append(token)
            if token != expected:
                break
        try:
            yield [Tokens(tuple(new))] if new else []
        finally:
            self.closed += 1


def answer(models: Models, most: int, *, least: int = 0, settings: ServingSettings = SETTINGS) -> list[int]:
    inputs = {"seed": as_input("seed", 2**64 - 1), "streaming": as_input("streaming", True)}
    inputs["min_tokens"] = as_input("min_tokens", least)

    async def run() -> list[int]:
        batches = checked_guesses(
            inputs,
            PROMPT,
            settings,
            guess=models.guess,
            check=models.check,
            end_ids=[END],
            most_tokens=most,
            min_tokens=least,
        )
        found = [batch async for batch in batches]
        return list(chain.from_iterable(tokens.ids for batch in found for tokens in batch))

    return asyncio.run(run())


@pytest.mark.parametrize("guesses", [rightly, wrongly, every_third_wrongly])
@pytest.mark.parametrize("most", [1, 2, 5, 16, 17, 40])
def test_the_answer_is_the_engines_own(guesses: Next, most: int) -> None:
    models = Models(guesses)
    assert answer(models, most) == list(range(4, 21))[:most]
    assert models.closed == len(models.steps)


def test_right_guesses_save_steps() -> None:
    right, wrong = Models(rightly), Models(wrongly)
    answer(right, 15)
    answer(wrong, 15)
    assert (len(right.steps), len(wrong.steps)) == (3, 15)


def test_each_step_has_a_seed_of_its_own_and_what_is_left_of_the_least() -> None:
    models = Models(rightly)
    answer(models, 12, least=7)
    assert [step["seed"] for step in models.steps] == [[2**64 - 1], [0], [1]]
    assert [step.get("min_tokens") for step in models.steps] == [[5], [2], None]
    assert all("streaming" not in step for step in models.steps)


def test_older_versions_have_their_own_names() -> None:
    models, before = Models(rightly), replace(SETTINGS, tensorrt_llm="0.12.0")

    async def run() -> None:
        inputs = {"random_seed": as_input("seed", 7)}
        batches = checked_guesses(
            inputs, PROMPT, before, guess=named, check=models.check, end_ids=[END], most_tokens=6, min_tokens=0
        )
        async for _ in batches:
            pass

    async def named(inputs: dict[str, Tensor]) -> AsyncGenerator[list[Tokens]]:
        assert "min_length" in inputs and "min_tokens" not in inputs
        yield [Tokens((4, 5, 6, 7)[: inputs["request_output_len"].item()])]

    asyncio.run(run())
    assert [step["random_seed"] for step in models.steps] == [[7], [8]]


def test_a_prompt_that_leaves_little_room_is_guessed_less() -> None:
    models = Models(rightly)
    settings = replace(SETTINGS, max_input_tokens=5)
    assert answer(models, 4, settings=settings) == [4, 5, 6, 7]
    assert [len(step.get("draft_input_ids", [])) for step in models.steps] == [2, 0]


@pytest.mark.parametrize("field", ["return_log_probs", "presence_penalty", "frequency_penalty"])
def test_what_steps_would_count_wrongly_is_refused(field: str) -> None:
    wanted: dict[str, Any] = {field: True if field == "return_log_probs" else 0.5}
    request = GenerationRequest("How?", **wanted)
    with pytest.raises(RequestRefused, match=field):
        check_drafted(request, SETTINGS)
    check_drafted(GenerationRequest("How?", repetition_penalty=1.2), SETTINGS)
