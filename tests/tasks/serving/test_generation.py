"""What ends an answer, and how it is sampled, as the files of a model say it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.serving.generation import GenerationConfig


def read(generation: Any = None, config: Any = None) -> GenerationConfig:
    files = {"generation_config.json": generation, "config.json": config}
    return GenerationConfig.of(lambda name: None if files[name] is None else json.dumps(files[name]).encode())


@pytest.mark.parametrize(
    ("generation", "config", "end_ids"),
    [
        ({"eos_token_id": [1, 107]}, None, (1, 107)),
        ({"eos_token_id": 2}, {"eos_token_id": 3}, (2,)),
        ({"eos_token_id": [151645, 151643, 151645]}, None, (151645, 151643)),
        ({"eos_token_id": None}, {"eos_token_id": 3}, ()),
        ({}, None, ()),
        # transformers and vLLM make a generation config of the model's own where there is none.
        (None, {"eos_token_id": [151329, 151336]}, (151329, 151336)),
        (None, None, ()),
    ],
)
def test_every_id_ends_an_answer(generation: Any, config: Any, end_ids: tuple[int, ...]) -> None:
    assert read(generation, config).end_ids == end_ids


def test_sampling_is_what_the_file_sets() -> None:
    qwen = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert read(qwen).sampling == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert read({"top_k": -1, "temperature": None, "max_length": 4096, "top_p": 1}).sampling == {"top_k": 0, "top_p": 1}
    assert read(None, {"temperature": 0.5}).sampling == {}


@pytest.mark.parametrize(
    ("generation", "named"),
    [
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [1, True]}, "eos_token_id"),
        ({"eos_token_id": [1, -1]}, "eos_token_id"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": True}, "repetition_penalty"),
        ([], "no object"),
    ],
)
def test_what_makes_no_sense_is_named(generation: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"generation_config.json.*{named}"):
        read(generation)


def test_a_number_of_json_that_is_none_is_named() -> None:
    for text in (b'{"temperature": NaN}', b'{"temperature": Infinity}', b"{"):
        with pytest.raises(ValueError, match="generation_config"):
            GenerationConfig.of(lambda _, text=text: text)
