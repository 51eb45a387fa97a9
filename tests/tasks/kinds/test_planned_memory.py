"""The memory of a release before anything is fetched: as others published it, and refused where nothing holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infra.errors import UsageError
from tasks.kinds.choice import engine_kind
from tasks.kinds.transformers import TransformersKind
from tasks.models.spec import Model
from tasks.weights.config import read_facts
from tasks.weights.facts import WeightsFacts
from tests.tasks.weights.configs import LLAMA_3_1_8B, Config, plain, text

GIB = 2**30
H100 = "NVIDIA H100 80GB HBM3"
# The bytes of their files on the hub; Llama 3 and 3.1 have the same layers.
LLAMA_8B: tuple[Config, int] = (LLAMA_3_1_8B, 16_060_522_496)
LLAMA_70B: tuple[Config, int] = (
    plain("LlamaForCausalLM", "llama", 80, 64, 8, 8192, vocab_size=128256, max_position_embeddings=131072),
    141_107_412_992,
)
LLAMA_405B: tuple[Config, int] = (
    plain("LlamaForCausalLM", "llama", 126, 128, 8, 16384, vocab_size=128256, max_position_embeddings=131072),
    811_706_777_600,
)


def facts(llama: tuple[Config, int]) -> WeightsFacts:
    config, size = llama
    return replace(read_facts({"config.json": text(config)}), bytes=size)


def model(recipe: dict[str, Any] | None = None, gpu: str = H100, **serving: Any) -> Model:
    given: dict[str, Any] = {"kind": "trt-engine", **(recipe or {})}
    gpus: int = given.get("tp_size", 1) * given.get("pp_size", 1)
    runtime = {"tensorrt_llm": "1.2.1", "gpu": gpu, "arch": "sm90", "gpus": gpus}
    return Model.model_validate(
        {
            "name": "m",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {**given, "runtime": runtime} if given["kind"] != "transformers" else given,
            "serving": serving,
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


# GiB of weights, which these pages call GB.
@pytest.mark.parametrize(
    ("llama", "quantization", "published"),
    [
        # docs.nvidia.com/nim/large-language-models/1.3.0/support-matrix.html: memory of "llama 8b", "llama 70b".
        (LLAMA_8B, "none", 15.0),
        (LLAMA_70B, "none", 131.0),
        # docs.nvidia.com/nim/large-language-models/24.05.rc15/support-matrix.html: "Llama 3 8B Instruct", H100, FP8.
        (LLAMA_8B, "fp8", 8.5),
        # github.com/sgl-project/sglang/pull/664: memory of Meta-Llama-3-70B loaded with fp8 weights.
        (LLAMA_70B, "fp8", 70.0),
    ],
)
@pytest.mark.parametrize("kind", ["trt-engine", "llmapi"])
def test_weights_are_within_a_tenth_of_what_was_published(
    kind: str, llama: tuple[Config, int], quantization: str, published: float
) -> None:
    planned = engine_kind(model({"kind": kind, "quantization": quantization, "tp_size": 4})).planned_memory(
        facts(llama)
    )
    assert planned is not None
    assert 4 * planned.weights / GIB == pytest.approx(published, rel=0.1)


# huggingface.co/blog/llama31, "Inference Memory Requirements": GiB of the cache with 16 bits, by its number of tokens.
@pytest.mark.parametrize(
    ("llama", "tokens", "published"),
    [
        (LLAMA_8B, 1_000, 0.125),
        (LLAMA_8B, 16_000, 1.95),
        (LLAMA_8B, 128_000, 15.62),
        (LLAMA_70B, 1_000, 0.313),
        (LLAMA_70B, 16_000, 4.88),
        (LLAMA_70B, 128_000, 39.06),
    ],
)
def test_the_cache_is_within_a_tenth_of_what_was_published(
    llama: tuple[Config, int], tokens: int, published: float
) -> None:
    limits = {"max_seq_len": 512, "max_input_len": 256, "tp_size": 4}
    for kept_as, share in (("auto", 1.0), ("fp8", 0.5)):
        asked = model({**limits, "kv_cache_dtype": kept_as}, tensorrt_llm={"kv_cache_tokens": tokens})
        planned = engine_kind(asked).planned_memory(facts(llama))
        assert planned is not None and 4 * planned.cache / GIB == pytest.approx(share * published, rel=0.1)


def test_llama_405b_does_not_fit_one_h100() -> None:
    with pytest.raises(UsageError) as caught:
        engine_kind(model({"quantization": "fp8"})).require_weights(facts(LLAMA_405B))
    assert caught.value.code == "gpu-too-small"
    assert "tp_size 8, on 8 x NVIDIA H100 80GB HBM3" in caught.value.hint and "quantization" not in caught.value.hint
    engine_kind(model({"quantization": "fp8", "tp_size": 8})).require_weights(facts(LLAMA_405B))


@pytest.mark.parametrize(
    ("llama", "gpu", "arch", "tokens", "hint"),
    [
        # 68 GiB with fp8, which leave a GPU of 80 no room for a sequence.
        (LLAMA_70B, H100, "sm90", 8192, f"it fits with tp_size 2, on 2 x {H100} or with quantization int4_awq"),
        (LLAMA_8B, "NVIDIA L4", "sm89", 32768, "it fits with tp_size 2, on 2 x NVIDIA L4 or with quantization fp8"),
        (LLAMA_8B, "NVIDIA A10", "sm86", 32768, "it fits with tp_size 2, on 2 x NVIDIA A10 or with quantization int8"),
        (LLAMA_405B, "NVIDIA L4", "sm89", 8192, "neither 16 of these GPUs nor another quantization holds it"),
    ],
)
def test_what_would_fit_is_named(llama: tuple[Config, int], gpu: str, arch: str, tokens: int, hint: str) -> None:
    asked = model({"max_seq_len": tokens}).model_dump(by_alias=True)
    asked["recipe"]["runtime"] |= {"gpu": gpu, "arch": arch}
    with pytest.raises(UsageError) as caught:
        engine_kind(Model.model_validate(asked)).require_weights(facts(llama))
    assert caught.value.code == "gpu-too-small" and caught.value.hint.startswith(hint)


def test_a_cache_that_was_asked_for_must_fit() -> None:
    asked = model(tensorrt_llm={"kv_cache_tokens": 600_000})
    with pytest.raises(UsageError) as caught:
        engine_kind(asked).require_weights(facts(LLAMA_8B))
    assert caught.value.code == "gpu-too-small" and "KV cache" in caught.value.message


def test_a_batch_beyond_the_memory_is_capped_and_the_plan_says_so() -> None:
    asked = engine_kind(model({"max_batch_size": 4096}, slots=1024, context_tokens=8192))
    asked.require_weights(facts(LLAMA_8B))
    planned, cache = asked.planned_memory(facts(LLAMA_8B)), asked.planned_cache(facts(LLAMA_8B))
    assert planned is not None and planned.capacity is not None and 2 * planned.total <= planned.capacity
    assert cache.tokens is not None
    capped = f"room for {cache.tokens // 8192} requests of 8192 tokens at once, and 1024 may run"
    assert any(capped in note for note in cache.notes)
    assert any("max_batch_size is 4096, and serving.slots lets 1024" in note for note in cache.notes)
    few = engine_kind(model({"max_batch_size": 4}, slots=64)).planned_cache(facts(LLAMA_8B))
    assert any("max_batch_size lets 4 requests run" in note for note in few.notes)


def test_pytorch_takes_what_its_weights_and_cache_take() -> None:
    asked = model({"kind": "transformers", "dtype": "float32"}, slots=2, context_tokens=1000)
    planned = TransformersKind(asked).planned_memory(facts(LLAMA_8B))
    assert planned is not None and planned.weights == 2 * LLAMA_8B[1]  # twice the bytes of a number
    assert planned.cache == 2 * 1000 * 2 * 131_072 and 0 < planned.rest < 2 * GIB


def test_what_is_not_known_is_not_refused() -> None:
    unknown = replace(facts(LLAMA_405B), bytes=None)
    asked = engine_kind(model())
    asked.require_weights(unknown)
    assert asked.planned_memory(unknown) is None
