"""The smoke gate: each expectation can fail, and reports what it saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.errors import TritonError
from infra.triton.client import Completion, TritonClient
from tasks.gates.smoke import check_prompt
from tasks.models.catalogue import load_model
from tasks.models.spec import Expectations, Model, Prompt

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"


class Scripted(TritonClient):
    """Answers from a list, in order; streams the last text in two pieces, with `torn` a wrong one."""

    def __init__(self, *answers: Completion | TritonError, torn: bool = False) -> None:
        super().__init__("127.0.0.1:9")
        self._answers = list(answers)
        self._torn = torn
        self.requests: list[Mapping[str, Any]] = []

    def generate(self, model: str, request: Mapping[str, Any]) -> Completion:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, TritonError):
            raise answer
        return answer

    def generate_stream(self, model: str, request: Mapping[str, Any]) -> Iterator[Completion]:
        self.requests.append(request)
        yield Completion("one ", (), 0.1)
        yield Completion("2" if self._torn else "two", (), 0.2)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(CATALOGUE / "smollm2-135m.yaml")


ANSWER = Completion("one two", (-0.1, -0.2), 0.5, tokens=2)


@pytest.mark.parametrize(
    ("expect", "client", "failure"),
    [
        ({"contains": ("one", "two")}, Scripted(ANSWER), None),
        ({"contains": ("one", "three")}, Scripted(ANSWER), "contains: no 'three'"),
        ({"matches": "^one"}, Scripted(ANSWER), None),
        ({"matches": "^two"}, Scripted(ANSWER), "matches: nothing like '^two'"),
        ({"json": True}, Scripted(Completion('{"a": 1}', (), 0.1)), None),
        ({"json": True}, Scripted(ANSWER), "json: "),
        ({"min_tokens": 2}, Scripted(ANSWER), None),
        ({"min_tokens": 3}, Scripted(ANSWER), "min_tokens: 2 of 3"),
        ({"max_latency_s": 0.6}, Scripted(ANSWER), None),
        ({"max_latency_s": 0.4}, Scripted(ANSWER), "max_latency_s: 0.50 s"),
        ({"stream_equals": True}, Scripted(ANSWER), None),
        ({"stream_equals": True}, Scripted(ANSWER, torn=True), "stream_equals: streamed, it was 'one 2'"),
        ({"repeats_with_seed": True}, Scripted(ANSWER, ANSWER), None),
        (
            {"repeats_with_seed": True},
            Scripted(ANSWER, Completion("other", (), 0.1)),
            "repeats_with_seed: the second answer was 'other'",
        ),
        ({"contains": ("one",)}, Scripted(TritonError("gone")), "no answer: gone"),
    ],
)
def test_expectations(model: Model, expect: dict[str, Any], client: Scripted, failure: str | None) -> None:
    prompt = Prompt(name="p", text="Count.", max_tokens=8, seed=7, expect=Expectations.model_validate(expect))
    result = check_prompt(client, "tiny--r1", model, prompt)
    assert result.passed is (failure is None)
    if failure is not None:
        assert result.failures[0].startswith(failure)
    assert {request["seed"] for request in client.requests} == {7}


def test_tokens_are_counted_by_the_release_or_by_the_pieces_of_its_stream(model: Model) -> None:
    prompt = Prompt(name="p", text="Count.", max_tokens=8, expect=Expectations(min_tokens=2))
    question = {"text_input": "Count.", "max_tokens": 8}
    client = Scripted(ANSWER)
    assert check_prompt(client, "tiny--r1", model, prompt).passed
    assert client.requests == [{**question, "return_num_output_tokens": True}]
    # A release of contract 1 has no counts.
    client = Scripted(Completion("one two", (), 0.5))
    first = model.model_copy(update={"serving": model.serving.model_copy(update={"contract": 1})})
    assert check_prompt(client, "tiny--r1", first, prompt).passed
    assert client.requests == [question, {**question, "stream": True}]
