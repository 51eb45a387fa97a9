"""The smoke gate: a candidate answers the model's test prompts by its own name on every live node."""

from __future__ import annotations

import json
import re
import time
from textwrap import shorten
from typing import ClassVar

from infra.errors import TritonError
from infra.triton.client import Completion, TritonClient
from tasks.gates.protocol import Trial
from tasks.models.spec import Model, Prompt
from tasks.targets.gate_record import Evidence, PromptResult

_MOST_CHARACTERS = 120
"""Of an answer in the reason of a refusal. The whole of it is in the record."""


class SmokeGate:
    """Sends every prompt to the candidate on every node, one at a time. One that fails refuses the candidate."""

    compares: ClassVar[bool] = False

    def run(self, trial: Trial) -> Evidence:
        results: list[PromptResult] = []
        for node in trial.nodes:
            client = trial.client(node)
            results += [
                check_prompt(client, trial.candidate.name, trial.model, prompt, node.node)
                for prompt in trial.model.prompts
            ]
        failures = [_failure(each) for each in results if not each.passed]
        return Evidence(prompts=tuple(results), failures=tuple(failures))


def _failure(result: PromptResult) -> str:
    """What did not hold, and the answer as far as it fits into a sentence: whoever reads the reason asks for it."""
    answer = f"; it answered {shorten(result.answer, _MOST_CHARACTERS, placeholder=' …')!r}" if result.answer else ""
    return f"prompt '{result.prompt}': {', '.join(result.failures)}{answer}"


def check_prompt(client: TritonClient, name: str, model: Model, prompt: Prompt, node: str = "") -> PromptResult:
    """Ask one prompt as often as its expectations need, and list those that do not hold."""
    expect = prompt.expect
    request: dict[str, str | float] = {"text_input": prompt.text, "max_tokens": prompt.max_tokens}
    if prompt.seed is not None:
        request["seed"] = prompt.seed
    if prompt.temperature is not None:
        request["temperature"] = prompt.temperature
    counts = expect.min_tokens is not None and model.serving.contract > 1
    if counts:
        request["return_num_output_tokens"] = True
    failures: list[str] = []
    started = time.monotonic()
    try:
        answer = client.generate(name, request)
        failures += _unmet(prompt, answer, counts=counts)
        if expect.repeats_with_seed and (again := client.generate(name, request).text) != answer.text:
            failures.append(f"repeats_with_seed: the second answer was {again!r}")
        if expect.stream_equals or (expect.min_tokens is not None and not counts):
            pieces = [piece.text for piece in client.generate_stream(name, {**request, "stream": True}) if piece.text]
            failures += _unmet_by_stream(prompt, answer, pieces, counts=counts)
    except TritonError as error:
        answer = Completion("", (), time.monotonic() - started)
        failures.append(f"no answer: {error}")
    return PromptResult(
        prompt=prompt.name,
        node=node,
        passed=not failures,
        answer=answer.text,
        seconds=round(answer.seconds, 3),
        failures=tuple(failures),
    )


def _unmet(prompt: Prompt, answer: Completion, *, counts: bool) -> list[str]:
    expect = prompt.expect
    failures: list[str] = []
    failures += [f"contains: no {text!r}" for text in expect.contains if text not in answer.text]
    if expect.matches is not None and re.search(expect.matches, answer.text) is None:
        failures.append(f"matches: nothing like {expect.matches!r}")
    if expect.is_json:
        try:
            json.loads(answer.text)
        except ValueError as error:
            failures.append(f"json: {error}")
    if counts and expect.min_tokens is not None and (answer.tokens or 0) < expect.min_tokens:
        failures.append(f"min_tokens: {answer.tokens or 0} of {expect.min_tokens}")
    if expect.max_latency_s is not None and answer.seconds > expect.max_latency_s:
        failures.append(f"max_latency_s: {answer.seconds:.2f} s")
    return failures


def _unmet_by_stream(prompt: Prompt, answer: Completion, pieces: list[str], *, counts: bool) -> list[str]:
    expect = prompt.expect
    failures: list[str] = []
    if expect.stream_equals and (streamed := "".join(pieces)) != answer.text:
        failures.append(f"stream_equals: streamed, it was {streamed!r}")
    # Contract 1 has no counts, and each piece of its streams is one token or more. Log probabilities would count too,
    # but not every engine has one for each token of a character that spans several.
    if not counts and expect.min_tokens is not None and len(pieces) < expect.min_tokens:
        failures.append(f"min_tokens: {len(pieces)} of {expect.min_tokens}")
    return failures
