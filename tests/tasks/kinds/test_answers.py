"""What a release says of prompts and answers: the model's file first, below it the files of the weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.errors import UsageError
from tasks.kinds.answers import require_template, sampling_of
from tasks.models.spec import Serving
from tasks.serving.generation import Files
from tasks.serving.settings import Sampling

QWEN = {"eos_token_id": [151645, 151643], "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def files(**documents: Any) -> Files:
    return {f"{name}.json": json.dumps(document).encode() for name, document in documents.items()}.get


def serving(**fields: Any) -> Serving:
    return Serving.model_validate(fields)


@pytest.mark.parametrize(
    ("defaults", "weights", "sampling"),
    [
        ({}, {}, Sampling()),
        ({}, QWEN, Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)),
        ({"temperature": 0.0}, QWEN, Sampling(temperature=0.0, top_p=0.8, top_k=20, repetition_penalty=1.05)),
        # Each can be set back to what changes nothing.
        ({"temperature": 1, "top_p": 1, "top_k": 0, "repetition_penalty": 1}, QWEN, Sampling()),
        ({"presence_penalty": 0.5}, {"top_k": -1}, Sampling(presence_penalty=0.5)),
    ],
)
def test_the_weights_are_below_the_models_file(defaults: Any, weights: Any, sampling: Sampling) -> None:
    assert sampling_of(serving(defaults=defaults), files(generation_config=weights)) == sampling


def test_values_that_make_no_sense_stop_the_release_and_not_its_requests() -> None:
    with pytest.raises(UsageError, match="top_p is 7") as caught:
        sampling_of(serving(), files(generation_config={"top_p": 7}))
    assert caught.value.code == "generation-unfit"


def test_a_missing_template_is_found_before_the_first_request() -> None:
    require_template(serving(), files(tokenizer_config={"chat_template": "{{ messages }}"}))
    require_template(serving(), {"chat_template.jinja": b"{{ messages }}"}.get)
    require_template(serving(chat_template=False), files())
    for found in (files(), files(tokenizer_config={}), files(chat_template={"chat_template": [{"name": "rag"}]})):
        with pytest.raises(UsageError) as caught:
            require_template(serving(), found)
        assert caught.value.code == "template-missing" and "chat_template to false" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        require_template(serving(), {"tokenizer_config.json": b"{"}.get)
    assert caught.value.code == "template-missing"
