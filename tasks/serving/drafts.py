"""A draft model guesses and the engine checks: step by step, each asked with the prompt and all of the answer so far.

As NVIDIA's BLS model does it (`tensorrt_llm_bls/1/lib/decode.py` of 0.10 to 1.2): the engine takes the guesses that it
would have said itself, and says one token more. So the answer is the engine's own, whatever was guessed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing

from .backend_inputs import as_input, input_name
from .contract import GenerationRequest, RequestRefused, Tensor
from .settings import ServingSettings
from .tokens import Tokens

Ask = Callable[[dict[str, Tensor]], AsyncGenerator[list[Tokens]]]
"""Hands one request to a model of the backend: its tokens as they come."""


def check_drafted(request: GenerationRequest, settings: ServingSettings) -> None:
    """Raise RequestRefused for what an answer in steps cannot have: the engine counts each step as an answer."""
    sampling = settings.sampling.of(request)
    for name, wanted in (
        ("return_log_probs", request.return_log_probs),
        ("presence_penalty", sampling.presence_penalty != 0),
        ("frequency_penalty", sampling.frequency_penalty != 0),
    ):
        if wanted:
            raise RequestRefused(f"'{name}' cannot be honoured: this model is served with a draft model")


async def checked_guesses(
    inputs: Mapping[str, Tensor],
    prompt: Sequence[int],
    settings: ServingSettings,
    *,
    guess: Ask,
    check: Ask,
    end_ids: Collection[int],
    most_tokens: int,
    min_tokens: int,
) -> AsyncGenerator[list[Tokens]]:
    """The answer, as many tokens at once as a step gives. `inputs` are those of the whole request.

    `end_ids`, `most_tokens` and `min_tokens` are those of the answer. An answer ends where the engine ended it: it then
    says nothing beyond the guesses that it took.
    """
    said, left, step = list(prompt), most_tokens, 0
    while left > 0:
        # The engine says one more than it took, and cuts in silence what is more than a prompt may have.
        room = min(settings.draft_tokens, left - 1, settings.most_checked_tokens - len(said))
        guessed = await _whole(guess, _guessing(inputs, said, room, settings)) if room > 0 else ()
        least = max(0, min_tokens - (most_tokens - left))
        answer = await _whole(check, _checking(inputs, said, guessed, step, least, settings))
        if answer:
            yield [Tokens(answer)]
        if answer == guessed[: len(answer)] or any(end in answer for end in end_ids):
            return
        said += answer
        left -= len(answer)
        step += 1


async def _whole(ask: Ask, inputs: dict[str, Tensor]) -> tuple[int, ...]:
    async with aclosing(ask(inputs)) as batches:
        return tuple([token_id async for batch in batches for tokens in batch for token_id in tokens.ids])


def _guessing(
    inputs: Mapping[str, Tensor], said: Sequence[int], room: int, settings: ServingSettings
) -> dict[str, Tensor]:
    """The likeliest tokens: what was guessed does not change the answer, only how soon it comes."""
    wanted: dict[str, object] = {
        "input_ids": said,
        "input_lengths": len(said),
        "request_output_len": room,
        "min_tokens": room,
        "runtime_top_k": 1,
        "runtime_top_p": 1.0,
    }
    ends = {name: inputs[name] for name in ("end_id",) if name in inputs}
    return ends | _named(wanted, settings)


def _checking(
    inputs: Mapping[str, Tensor],
    said: Sequence[int],
    guessed: Sequence[int],
    step: int,
    least: int,
    settings: ServingSettings,
) -> dict[str, Tensor]:
    wanted: dict[str, object] = {
        "input_ids": said,
        "input_lengths": len(said),
        "request_output_len": len(guessed) + 1,
    }
    if guessed:
        wanted["draft_input_ids"] = guessed
    seed, minimum = (input_name(name, settings.tensorrt_llm) for name in ("seed", "min_tokens"))
    if seed in inputs:
        # The same seed in each step would draw the same numbers in each.
        wanted["seed"] = (int(inputs[seed].item()) + step) % 2**64
    if least:
        wanted["min_tokens"] = min(least, len(guessed) + 1)
    kept = {name: value for name, value in inputs.items() if name not in ("streaming", minimum)}
    return kept | _named(wanted, settings)


def _named(wanted: Mapping[str, object], settings: ServingSettings) -> dict[str, Tensor]:
    return {input_name(name, settings.tensorrt_llm): as_input(name, value) for name, value in wanted.items()}
