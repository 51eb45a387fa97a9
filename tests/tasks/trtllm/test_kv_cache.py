"""How large a KV cache is, and what a release then takes on its GPUs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import UsageError
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.spec import Model
from tasks.triton.protobuf import parse_config
from tasks.trtllm.kv_cache import SHARE_ALONE, SHARE_BESIDE, WORKSPACE_BYTES, kv_cache_tokens
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.products import gpu_memory_bytes
from tests.standin.engine import LIMITS
from tests.tasks.models.mistakes import mistakes

H200 = "NVIDIA H200"
GIB = 2**30
TOKENIZER = {"chat_template.jinja": b"{{ messages[0].content }}"}


def model(runtime: dict[str, Any] | None = None, recipe: dict[str, Any] | None = None, **serving: Any) -> Model:
    shared = {key: serving.pop(key) for key in ("slots", "context_tokens") if key in serving}
    return Model.model_validate(
        {
            "name": "m",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {
                "kind": "trt-engine",
                "runtime": {"tensorrt_llm": "1.2.1", "gpu": H200, "arch": "sm90", "gpus": 1, **(runtime or {})},
                **(recipe or {}),
            },
            "serving": {**shared, "tensorrt_llm": serving},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def cache_tokens(model: Model, limits: EngineLimits) -> int | None:
    return TrtEngineKind(model).cache_tokens(limits)


def release_memory_bytes(model: Model, limits: EngineLimits) -> int:
    return TrtEngineKind(model).memory_bytes(0, limits.to_json().encode())


def tokens(**changes: Any) -> int:
    given: dict[str, Any] = {"bytes_per_token": 131072, "weight_bytes": 8 * GIB, "wanted_tokens": 10**9, "gpu": H200}
    return kv_cache_tokens(**given | changes)


def test_two_releases_fit_beside_each_other() -> None:
    memory = gpu_memory_bytes(H200)
    assert memory is not None
    taken = 8 * GIB + tokens() * 131072 + WORKSPACE_BYTES
    assert memory * SHARE_BESIDE - 131072 < taken <= memory * SHARE_BESIDE
    assert tokens(wanted_tokens=1000) == 1000


def test_adapters_have_their_place_beside_the_kv_cache() -> None:
    memory = gpu_memory_bytes(H200)
    assert memory is not None
    recipe = {"lora": {"target_modules": ["attn_q"]}}
    for fraction in (0.05, 0.3):
        wanted = model(recipe=recipe, slots=64, context_tokens=8192, lora_cache={"gpu_fraction": fraction})
        limits = replace(LIMITS, cache_bytes_per_token=2**20)
        assert release_memory_bytes(wanted, limits) == pytest.approx(memory * SHARE_BESIDE, rel=1e-3)
        own = limits.weight_bytes + WORKSPACE_BYTES + 2**20 * (cache_tokens(wanted, limits) or 0)
        assert release_memory_bytes(wanted, limits) - own == pytest.approx(fraction * (memory - own), rel=1e-3)
    # Without room for adapters in the engine nothing could be kept for them.
    with pytest.raises(ValidationError, match="built with room for them"):
        model(slots=64, context_tokens=8192, lora_cache={"gpu_fraction": 0.3})


def test_what_cannot_stand_beside_another_gets_the_gpu_for_itself() -> None:
    memory = gpu_memory_bytes(H200)
    assert memory is not None
    weights = 70 * GIB
    alone = tokens(weight_bytes=weights, sequence_tokens=8192)
    assert alone == (int(memory * SHARE_ALONE) - weights - WORKSPACE_BYTES) // 131072
    with pytest.raises(UsageError) as caught:
        tokens(weight_bytes=130 * GIB, sequence_tokens=8192)
    assert caught.value.code == "gpu-too-small"


def test_a_product_that_is_not_known_needs_its_memory() -> None:
    with pytest.raises(UsageError) as caught:
        tokens(gpu="NVIDIA X1000")
    assert caught.value.code == "gpu-unknown" and "gpu_memory_bytes" in caught.value.hint
    assert tokens(gpu="NVIDIA X1000", memory_bytes=gpu_memory_bytes(H200)) == tokens()


def test_the_default_is_room_for_all_slots_in_whole_blocks() -> None:
    assert cache_tokens(model(slots=4, context_tokens=100), LIMITS) == 8192  # one sequence of the engine is more
    assert cache_tokens(model(slots=8, context_tokens=2000), LIMITS) == 8 * math.ceil(2000 / 64) * 64
    # An engine for 2 requests at once never holds more.
    assert cache_tokens(model(slots=8, context_tokens=8192), replace(LIMITS, max_batch_size=2)) == 2 * 8192
    beams = model(recipe={"max_beam_width": 4}, slots=2, context_tokens=8192, max_beam_width=4)
    assert cache_tokens(beams, replace(LIMITS, max_beam_width=4)) == 4 * 2 * 8192


def test_what_the_file_says_counts() -> None:
    assert cache_tokens(model(kv_cache_tokens=20000), LIMITS) == 20000
    assert cache_tokens(model(kv_cache_bytes=131072 * 10000 + 5), LIMITS) == 10000
    assert cache_tokens(model(kv_cache_fraction=0.5), LIMITS) is None
    assert cache_tokens(model(kv_cache_fraction=0.5, kv_cache_tokens=9000), LIMITS) == 9000


def test_an_engine_on_disk_is_held_against_the_file(tmp_path: Path) -> None:
    for served, limits, fact in (
        (model(kv_cache_bytes=131072 * 100), LIMITS, "8192"),
        (model(kv_cache_reuse=True), replace(LIMITS, paged_context_fmha=False), "paged_context_fmha"),
        (model(), replace(LIMITS, paged_kv_cache=False), "paged KV cache"),
    ):
        with pytest.raises(UsageError) as caught:
            TrtEngineKind(served).write_release(limits, TOKENIZER.get, tmp_path / "release")
        assert caught.value.code == "serving-unfit" and fact in caught.value.message
    assert not (tmp_path / "release").exists()


def test_an_engine_that_cannot_reuse_its_cache_is_not_left_to_the_default(tmp_path: Path) -> None:
    TrtEngineKind(model()).write_release(replace(LIMITS, paged_context_fmha=False), TOKENIZER.get, tmp_path / "release")
    config = parse_config((tmp_path / "release/tensorrt_llm/config.pbtxt").read_text())
    assert config.parameters["enable_kv_cache_reuse"].string_value == "False"


def test_the_memory_of_a_release() -> None:
    assert release_memory_bytes(model(kv_cache_tokens=20000), LIMITS) == 11 * GIB + 20000 * 131072
    memory = gpu_memory_bytes(H200)
    assert memory is not None
    # A fraction of what is free leaves no room for another release: the roll-out asks for --recreate.
    assert release_memory_bytes(model(kv_cache_fraction=0.9), LIMITS) > 0.9 * memory
    assert release_memory_bytes(model(), LIMITS) < 0.46 * memory


@pytest.mark.parametrize(
    ("made", "fact"),
    [
        ({"host_cache_bytes": 1, "runtime": {"tensorrt_llm": "0.9.0"}}, "0.10"),
        ({"kv_cache_tokens": 8000}, "8192"),
        ({"kv_cache_tokens": 20000, "kv_cache_bytes": 1}, "size in tokens"),
        ({"max_beam_width": 2}, "max_beam_width"),
        ({"kv_cache_reuse": True, "recipe": {"paged_context_fmha": False}}, "paged_context_fmha"),
        ({"recipe": {"kv_cache_type": "continuous"}}, "kv_cache_type"),
        ({"guided_decoding": "xgrammar"}, "xgrammar_tokenizer_info"),
        ({"xgrammar_tokenizer_info": "/x"}, "guided_decoding"),
        ({"lora_cache": {"prefetch_folder": "adapters"}}, "prefetch_folder"),
        ({"runtime": {"gpu": "NVIDIA X1000"}}, "recipe.runtime.gpu_memory_bytes"),
    ],
)
def test_what_cannot_be_served_is_an_error_of_the_file(made: dict[str, Any], fact: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**made)
    (place,) = mistakes(caught.value)
    assert place.startswith("serving") and fact in str(caught.value)


def test_a_size_does_for_a_product_that_is_not_known() -> None:
    assert cache_tokens(model(runtime={"gpu": "NVIDIA X1000"}, kv_cache_tokens=8192), LIMITS) == 8192
    sized = model(runtime={"gpu": "NVIDIA X1000", "gpu_memory_bytes": 40 * GIB}, slots=64, context_tokens=8192)
    assert release_memory_bytes(sized, LIMITS) == pytest.approx(40 * GIB * SHARE_BESIDE, rel=1e-3)
