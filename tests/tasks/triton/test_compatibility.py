"""Models of one release that do not fit together are refused, naming both models and the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from packaging.version import Version

from infra.errors import UsageError
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.compatibility import CalledTensor, Calls, check_compatibility
from tasks.triton.config import llm_config, release_config
from tasks.triton.protobuf import data_type, new_config, parse_config
from tasks.trtllm.serving import TensorRtServing

CALLS = Calls(
    sends=(
        CalledTensor("input_ids", "INT32", (-1,), always=True),
        CalledTensor("input_lengths", "INT32", (1,), always=True),
        CalledTensor("request_output_len", "INT32", (1,), always=True),
        CalledTensor("stop_words_list", "INT32", (2, -1)),
    ),
    reads=(CalledTensor("output_ids", "INT32", (-1, -1)),),
)


Configs = dict[str, Any]
"""Messages by the models' names. Without types, for the tests change any of their fields."""


def models() -> Configs:
    engine = tensorrt_llm_config(
        Version("1.2.1"), TensorRtServing(), engine_folder="engine", max_batch_size=64, kv_cache_tokens=8192
    )
    texts = {"tensorrt_llm": engine, "llm": llm_config(contract=1, calls="tensorrt_llm"), "release": release_config(1)}
    return {name: parse_config(text) for name, text in texts.items()}


def tensor(config: Any, sort: str, name: str) -> Any:
    return next(tensor for tensor in getattr(config, sort) if tensor.name == name)


def without(sort: str, model: str, name: str) -> Callable[[Configs], None]:
    return lambda configs: getattr(configs[model], sort).remove(tensor(configs[model], sort, name))


def changed(sort: str, model: str, name: str, **values: Any) -> Callable[[Configs], None]:
    def change(configs: Configs) -> None:
        found = tensor(configs[model], sort, name)
        for key, value in values.items():
            if key == "dims":
                found.ClearField("dims")
                found.dims.extend(value)
            else:
                setattr(found, key, value)

    return change


def no_prompt(configs: Configs) -> None:
    tensor(configs["llm"], "input", "text_input").optional = False
    configs["release"].ensemble_scheduling.step[0].input_map.pop("text_input")


def larger_batch(configs: Configs) -> None:
    configs["release"].max_batch_size = 65


def no_engine(configs: Configs) -> None:
    del configs["tensorrt_llm"]


def step(change: Callable[[Any], None]) -> Callable[[Configs], None]:
    return lambda configs: change(configs["release"].ensemble_scheduling.step[0])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("input", "llm", "seed"), "release gives 'seed' as 'seed', and llm has no such input"),
        (without("input", "release", "seed"), "llm is to get 'seed' as 'seed', and nothing in release makes it"),
        (without("output", "llm", "text_output"), "from 'text_output', and llm has no such output"),
        (
            changed("input", "llm", "seed", data_type=data_type("INT32")),
            "release has 'seed' of UINT64 [1], and llm 'seed' of INT32 [1]",
        ),
        (changed("input", "llm", "seed", dims=[2]), "UINT64 [1], and llm 'seed' of UINT64 [2]"),
        (changed("output", "release", "cum_log_probs", dims=[-1, -1]), "llm has 'cum_log_probs' of FP32 [-1]"),
        (changed("input", "llm", "seed", optional=False), "optional input 'seed', and llm needs its 'seed'"),
        (no_prompt, "llm needs text_input, and release does not give it"),
        (step(lambda step: step.output_map.pop("text_output")), "output 'text_output', and none of its steps makes it"),
        (step(lambda step: setattr(step, "model_name", "other")), "release has a step 'other'"),
        (larger_batch, "takes batches of 65"),
        (no_engine, "llm calls the model 'tensorrt_llm'"),
        (without("input", "tensorrt_llm", "stop_words_list"), "llm sends 'stop_words_list', and tensorrt_llm has no"),
        (without("output", "tensorrt_llm", "output_ids"), "llm reads 'output_ids', and tensorrt_llm has no"),
        (changed("input", "tensorrt_llm", "input_ids", data_type=data_type("INT64")), "tensorrt_llm has INT64 [-1]"),
        (
            changed("input", "tensorrt_llm", "end_id", optional=False),
            "tensorrt_llm needs end_id, and llm does not always send it",
        ),
    ],
)
def test_models_that_do_not_fit_are_named(change: Callable[[Configs], object], expected: str) -> None:
    configs = models()
    check_compatibility(configs, CALLS)
    change(configs)
    with pytest.raises(UsageError) as caught:
        check_compatibility(configs, CALLS)
    assert caught.value.code == "models-disagree"
    assert expected in caught.value.message


def test_outputs_of_a_step_go_to_the_next() -> None:
    first = new_config("first", max_batch_size=1)
    first.input.add(name="TEXT", data_type=data_type("BYTES"), dims=[1])
    first.output.add(name="IDS", data_type=data_type("INT32"), dims=[-1])
    second = new_config("second", max_batch_size=1)
    second.input.add(name="TOKENS", data_type=data_type("INT32"), dims=[-1])
    second.output.add(name="OUT", data_type=data_type("BYTES"), dims=[1])
    both = new_config("both", max_batch_size=1)
    both.input.add(name="text", data_type=data_type("BYTES"), dims=[1])
    both.output.add(name="out", data_type=data_type("BYTES"), dims=[1])
    for name, inputs, outputs in (
        ("first", {"TEXT": "text"}, {"IDS": "ids"}),
        ("second", {"TOKENS": "ids"}, {"OUT": "out"}),
    ):
        both.ensemble_scheduling.step.add(model_name=name, input_map=inputs, output_map=outputs)
    configs = {"first": first, "second": second, "both": both}
    check_compatibility(configs)
    second.input[0].data_type = data_type("INT64")
    with pytest.raises(UsageError) as caught:
        check_compatibility(configs)
    assert caught.value.code == "models-disagree" and "first has 'IDS' of INT32" in caught.value.message
