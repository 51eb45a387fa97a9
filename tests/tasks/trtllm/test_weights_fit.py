"""Weights that cannot be divided as the recipe says."""

from __future__ import annotations

from typing import Any

import pytest

from infra.errors import UsageError
from tasks.trtllm.recipe import TensorRtLlmFields
from tasks.trtllm.weights_fit import require_parallel
from tasks.weights.config import read_facts
from tests.tasks.trtllm.test_limits import model
from tests.tasks.weights.configs import CACHE_BYTES, Config, text

LLAMA = CACHE_BYTES["llama-3.1-8b"][0]
MIXTRAL = CACHE_BYTES["mixtral-8x7b"][0]


def require(config: Config, kind: str, **recipe: Any) -> None:
    fields = model(kind, **recipe).recipe
    assert isinstance(fields, TensorRtLlmFields)
    require_parallel(fields, read_facts({"config.json": text(config)}))


@pytest.mark.parametrize("kind", ["trt-engine", "llmapi"])
@pytest.mark.parametrize(
    ("config", "recipe", "words"),
    [
        (LLAMA, {"tp_size": 3}, ("32 heads", "tp_size 3", "1, 2, 4, 8, 16, 32")),
        (CACHE_BYTES["qwen2.5-7b"][0], {"tp_size": 7}, ("4 heads of keys and values", "tp_size 7")),
        (MIXTRAL, {"tp_size": 6}, ("32 heads",)),
        (MIXTRAL | {"num_local_experts": 6}, {"tp_size": 4, "moe_tp_size": 1, "moe_ep_size": 4}, ("6 experts",)),
        (LLAMA, {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2}, ("no experts", "moe_ep_size 2")),
        (LLAMA | {"num_hidden_layers": 2}, {"pp_size": 4}, ("2 layers", "pp_size 4")),
    ],
)
def test_what_does_not_divide_is_named(
    kind: str, config: Config, recipe: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        require(config, kind, **recipe)
    assert caught.value.code == "weights-unfit"
    assert all(word in f"{caught.value.message} {caught.value.hint}" for word in words)


@pytest.mark.parametrize("kind", ["trt-engine", "llmapi"])
@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        (LLAMA, {"tp_size": 8}),
        (LLAMA, {"tp_size": 4, "pp_size": 2}),
        (CACHE_BYTES["falcon-40b"][0], {"tp_size": 8}),
        (CACHE_BYTES["gemma-3-4b"][0], {"tp_size": 8}),  # 4 heads of keys and values on 8 GPUs, each twice
        (CACHE_BYTES["deepseek-v3"][0], {"tp_size": 8, "moe_tp_size": 1, "moe_ep_size": 8}),
        (MIXTRAL, {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2}),
        ({"model_type": "new"}, {"tp_size": 3}),  # its tool knows it
    ],
)
def test_what_divides(kind: str, config: Config, recipe: dict[str, Any]) -> None:
    require(config, kind, **recipe)


def test_an_engine_has_equal_stages_and_pytorch_has_not() -> None:
    with pytest.raises(UsageError) as caught:
        require(CACHE_BYTES["deepseek-v3"][0], "trt-engine", pp_size=4)
    assert caught.value.code == "weights-unfit" and "61 layers" in caught.value.message
    require(CACHE_BYTES["deepseek-v3"][0], "llmapi", pp_size=4)


def test_attention_of_its_own_requests_is_not_divided() -> None:
    require(LLAMA, "llmapi", tp_size=3, llm_args={"enable_attention_dp": True})
    require(LLAMA, "llmapi", tp_size=3, llm_args={"enable_attention_dp": "true"})
