"""Validate a candidate: the smoke gate. It answers the model's test prompts by its own name on every live node."""

from __future__ import annotations

import json
import re
import time

from infra.errors import TritonError
from infra.triton.client import Completion, TritonClient
from tasks.models.spec import Model, Prompt
from tasks.steps.context import Context
from tasks.steps.nodes import live_nodes
from tasks.steps.plan import Plan
from tasks.steps.roll_out import conclude, require_wanted
from tasks.targets.gate_record import PromptResult
from tasks.targets.release import Result
from tasks.triton.config import RELEASE
from tasks.triton.placement import release_names


def validate(context: Context, plan: Plan, target_name: str, release: int) -> Result:
    """Send every prompt to the candidate on every live node of the target, one at a time, and record the result.

    A release that has passed is not asked again: a run may have died after it wrote the result. Raises GateRefused if
    a prompt failed. The candidate is then no longer wanted, and the live release was never touched. Raises
    EnginehouseError `release-withdrawn` if it was taken away meanwhile.
    """
    target = context.target(target_name)
    model = plan.model
    if (known := target.result(model.name, release)) is not None:
        return conclude(target, model.name, known)
    name = release_names(model.name, release)[RELEASE]
    results: list[PromptResult] = []
    for node in live_nodes(target):
        client = TritonClient(node.http, timeout_s=model.serving.request_timeout_s + 30)
        results += [check_prompt(client, name, model, prompt, node.node) for prompt in model.prompts]
    failed = [result for result in results if not result.passed]
    if failed:
        require_wanted(target, model.name, release)
        reason = "; ".join(f"prompt '{result.prompt}': {', '.join(result.failures)}" for result in failed)
        result = Result(release=release, state="refused", reason=reason, prompts=tuple(results))
    else:
        result = Result(release=release, state="passed", prompts=tuple(results))
    return conclude(target, model.name, result)


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
