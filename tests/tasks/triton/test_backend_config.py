"""The `config.pbtxt` of the C++ backend for versions, against snapshots; and what is refused.

After an intended change: `ENGINEHOUSE_WRITE_SNAPSHOTS=1 pytest tests/tasks/triton/test_backend_config.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from infra.errors import UsageError
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.protobuf import ModelConfig, data_type, parse_config
from tasks.trtllm.limits import LogitsType
from tasks.trtllm.releases import MINORS
from tasks.trtllm.serving import LoraCache, TensorRtServing

SNAPSHOTS = Path(__file__).parent / "snapshots" / "backend_config"


def rendered(version: str, *, tokens: int | None = 2560, logits: LogitsType = "FP32", **serving: Any) -> str:
    return tensorrt_llm_config(
        Version(version),
        TensorRtServing(**serving),
        engine_folder="/models/engine",
        max_batch_size=64,
        kv_cache_tokens=tokens,
        logits_type=logits,
    )


def parsed(version: str, **changes: Any) -> ModelConfig:
    return parse_config(rendered(version, **changes))


def parameters(version: str, **changes: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in parsed(version, **changes).parameters.items()}


@pytest.mark.parametrize("version", ["0.8.0", "0.12.0", "0.16.0", "0.19.0", "1.2.1"])
def test_rendered_as_in_the_snapshot(version: str) -> None:
    text = rendered(version)
    snapshot = SNAPSHOTS / f"{version}.pbtxt"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.write_text(text)
    assert text == snapshot.read_text()


@pytest.mark.parametrize("minor", MINORS)
def test_every_version_has_each_tensor_once(minor: str) -> None:
    config = parsed(f"{minor}.0")
    for tensors in (config.input, config.output):
        names = [tensor.name for tensor in tensors]
        assert len(names) == len(set(names))
    assert {tensor.name for tensor in config.input if not tensor.optional} <= {
        "input_ids",
        "input_lengths",
        "request_output_len",
    }
    assert config.backend == "tensorrtllm"
    assert config.model_transaction_policy.decoupled


def test_by_hand_at_0_8_the_published_values() -> None:
    """The values of the published `fill_template.py`, but decoupled, which streaming needs."""
    values = parameters("0.8.0", kv_cache_fraction=0.5, attention_window=(2560,), kv_cache_reuse=False)
    assert values == {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "enable_chunked_context": "False",
        "enable_kv_cache_reuse": "False",
        "enable_trt_overlap": "False",
        "exclude_input_in_output": "True",
        "gpt_model_path": "/models/engine",
        "gpt_model_type": "inflight_fused_batching",
        "gpu_device_ids": "",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "max_attention_window_size": "2560",
        "max_beam_width": "1",
        "max_tokens_in_paged_kv_cache": "2560",
        "normalize_log_probs": "True",
    }


def test_without_a_size_the_kv_cache_has_the_fraction_of_the_backend() -> None:
    values = parameters("1.2.1", tokens=None)
    assert (values["max_tokens_in_paged_kv_cache"], values["kv_cache_free_gpu_mem_fraction"]) == ("", "0.9")
    assert parameters("1.2.1")["kv_cache_free_gpu_mem_fraction"] == ""


def test_settings_become_the_names_of_the_version() -> None:
    values = parameters(
        "1.2.1",
        host_cache_bytes=2**33,
        scheduler_policy="max_utilization",
        attention_window=(1024, 4096),
        gpu_device_ids=((0, 1), (2, 3)),
        lora_cache=LoraCache(max_adapter_size=16, prefetch_folder="/adapters"),
        guided_decoding="xgrammar",
        xgrammar_tokenizer_info="/models/xgrammar.json",
    )
    assert values["kv_cache_host_memory_bytes"] == "8589934592"
    assert values["batch_scheduler_policy"] == "max_utilization"
    assert values["max_attention_window_size"] == "1024,4096"
    assert values["gpu_device_ids"] == "0,1;2,3"
    assert values["lora_cache_max_adapter_size"] == "16"
    assert values["lora_prefetch_dir"] == "/adapters"
    assert values["guided_decoding_backend"] == "xgrammar"
    assert values["xgrammar_tokenizer_info_path"] == "/models/xgrammar.json"
    assert parsed("1.2.1", gpu_device_ids=((0, 1), (2, 3))).instance_group[0].count == 2


@pytest.mark.parametrize("version", ["0.12.0", "0.13.0", "0.14.0"])
def test_multi_block_mode_is_written_as_the_backend_reads_it(version: str) -> None:
    values = parameters(version, multi_block_mode=False)
    assert (values["multi_block_mode"], values["multiBlockMode"]) == ("False", "False")
    assert "multiBlockMode" not in parameters("0.15.0")


@pytest.mark.parametrize("version", ["0.19.0", "1.0.0", "1.2.1"])
def test_keys_that_must_be_there_are(version: str) -> None:
    assert parameters(version).keys() >= {"tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path"}


@pytest.mark.parametrize("minor", MINORS[2:])
def test_the_key_that_is_refused_from_0_10_on_is_not_there(minor: str) -> None:
    assert "worker_path" not in parameters(f"{minor}.0")


def test_logits_have_the_type_of_the_build_where_the_backend_follows_it() -> None:
    kinds = {version: parsed(version, logits="FP16").output[4] for version in ("0.16.0", "0.17.0")}
    assert {tensor.name for tensor in kinds.values()} == {"context_logits"}
    assert kinds["0.16.0"].data_type == data_type("FP32")
    assert kinds["0.17.0"].data_type == data_type("FP16")


@pytest.mark.parametrize(
    ("version", "changes", "expected"),
    [
        ("0.9.0", {"host_cache_bytes": 1}, "no host_cache_bytes: 0.10 and later have it"),
        ("0.9.0", {"sink_tokens": 4}, "no sink_tokens: 0.10 and later have it"),
        ("0.9.0", {"gpu_weights_fraction": 0.5}, "no gpu_weights_fraction: 0.10 and later have it"),
        ("0.8.0", {"decoding_mode": "top_k"}, "no decoding_mode: 0.9 and later have it"),
        ("0.8.0", {"lora_cache": LoraCache()}, "no lora_cache: 0.9 and later have it"),
        ("0.18.2", {"lora_cache": LoraCache(prefetch_folder="/a")}, "lora_cache.prefetch_folder: 0.19 and later"),
        ("0.16.0", {"guided_decoding": "xgrammar"}, "no guided_decoding: 0.19 and later have it"),
        ("0.11.0", {"multi_block_mode": True}, "no multi_block_mode: 0.12 and later have it"),
        ("0.11.0", {"context_fmha_fp32_acc": True}, "no context_fmha_fp32_acc: 0.12 and later have it"),
        ("0.11.0", {"scheduler_policy": "max_utilization"}, "max_utilization for a decoupled model"),
        ("0.11.0", {"gpu_device_ids": ((0,), (1,))}, "several instances: 0.12 and later"),
        ("0.11.0", {"queue_size": 0}, "no queue_size: 0.12 and later"),
        ("0.12.0", {"attention_window": (1, 2)}, "several sizes: 0.13 and later"),
        ("1.3.0", {}, "0.8 to 1.2"),
        ("0.7.1", {}, "0.8 to 1.2"),
    ],
)
def test_a_setting_that_the_version_lacks_is_an_error_that_names_the_versions_with_it(
    version: str, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        rendered(version, **changes)
    assert caught.value.code == "serving-unfit"
    assert expected in f"{caught.value.message}: {caught.value.hint}"
