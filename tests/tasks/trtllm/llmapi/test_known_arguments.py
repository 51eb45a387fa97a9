"""Names and types of `llm_args`, version by version: what a version does not take is an error of the model's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from pydantic import ValidationError

from infra.errors import SpecError
from tasks.models.catalogue import load_model
from tasks.models.recipe import LlmApiRecipe
from tasks.trtllm.llmapi.known_arguments import check_known, known_names
from tests.standin import llm_args

FILE = """\
name: tiny
source: {uri: hf://some/llama@main}
recipe:
  kind: llmapi
  runtime: {tensorrt_llm: VERSION, gpu: NVIDIA H200, arch: sm90, gpus: 1}
  llm_args:
    kv_cahce_config: {}
    stream_interval: four
    kv_cache_config:
      enable_block_resue: true
      max_attention_window: [4096, wide]
    sampler_type: TRTLLMSampler
prompts:
  - {name: count, text: Count., max_tokens: 4, expect: {min_tokens: 1}}
"""


def mistakes(version: str, arguments: dict[str, Any]) -> dict[str, str]:
    """What is said of each place."""
    try:
        check_known(Version(version), arguments)
    except ValidationError as error:
        return {".".join(map(str, detail["loc"])): detail["msg"] for detail in error.errors()}
    return {}


def test_each_mistake_of_a_file_has_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(FILE.replace("VERSION", "1.3.0"))
    with pytest.raises(SpecError) as caught:
        load_model(tmp_path / "tiny.yaml")
    lines = [line.removeprefix(f"  {tmp_path}/tiny.yaml:") for line in caught.value.message.splitlines()[1:]]
    assert lines == [
        "7: recipe.llm_args.kv_cahce_config: is unknown to the LLM API of TensorRT-LLM 1.3.0; "
        "the nearest is kv_cache_config",
        "8: recipe.llm_args.stream_interval: Input should be a valid integer, unable to parse string as an integer",
        "10: recipe.llm_args.kv_cache_config.enable_block_resue: is unknown to KvCacheConfig of TensorRT-LLM 1.3.0; "
        "the nearest is enable_block_reuse",
        "11: recipe.llm_args.kv_cache_config.max_attention_window.1: "
        "Input should be a valid integer, unable to parse string as an integer",
        "12: recipe.llm_args.sampler_type: is not in TensorRT-LLM 1.3.0: 1.1.0rc1 to before 1.3.0rc26 have it",
    ]


@pytest.mark.parametrize(
    ("version", "arguments", "place", "fact"),
    [
        ("1.0.0", {"kv_cache_config": {"tokens_per_block": 64}}, "kv_cache_config.tokens_per_block", "1.1 and later"),
        ("1.2.1", {"enable_trtllm_sampler": True}, "enable_trtllm_sampler", "1.0 to before 1.1.0rc1"),
        ("1.4.0rc1", {"sampler_type": "TRTLLMSampler"}, "sampler_type", "1.1.0rc1 to before 1.3.0rc26"),
        ("1.2.1", {"moe_config": {"backend": "MARLIN"}}, "moe_config.backend", "CUTLASS, CUTEDSL"),
        ("1.2.1", {"cuda_graph_config": {"max_bach_size": 8}}, "cuda_graph_config.max_bach_size", "max_batch_size"),
        ("1.2.1", {"cuda_graph_config": [8]}, "cuda_graph_config", "the fields of a CudaGraphConfig"),
        ("1.2.1", {"kv_cache_config": None}, "kv_cache_config", "the fields of a KvCacheConfig"),
        ("1.2.1", {"mpi_session": "world"}, "mpi_session", "an object of Python"),
        ("1.2.1", {"speculative_config": {"max_draft_len": 3}}, "speculative_config", "needs decoding_type"),
        ("1.2.1", {"speculative_config": {"decoding_type": "Medusa"}}, "speculative_config.decoding_type", "NGram"),
        (
            "1.2.1",
            {"speculative_config": {"decoding_type": "NGram", "max_matching_ngram_sise": 2}},
            "speculative_config.max_matching_ngram_sise",
            "max_matching_ngram_size",
        ),
        (
            "1.2.1",
            {"speculative_config": {"decoding_type": "NGram", "relaxed_topk": 2}},
            "speculative_config.relaxed_topk",
            "unknown to SpeculativeConfig",
        ),
        (
            "1.2.1",
            {"scheduler_config": {"dynamic_batch_config": {"enable_batch_size_tuning": "often"}}},
            "scheduler_config.dynamic_batch_config.enable_batch_size_tuning",
            "boolean",
        ),
    ],
)
def test_a_version_refuses_by_name_and_type(version: str, arguments: dict[str, Any], place: str, fact: str) -> None:
    ((where, said),) = mistakes(version, arguments).items()
    assert where == place and fact in said


@pytest.mark.parametrize(
    ("version", "arguments"),
    [
        ("1.0.0", {"speculative_config": {"decoding_type": "NGram", "max_draft_len": 3}, "cuda_graph_config": None}),
        ("1.2.1", {"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 1}}),
        ("1.3.0", {"speculative_config": {"decoding_type": "MTP", "max_draft_len": 3}}),
        ("1.3.0", {"kv_cache_config": {"free_gpu_memory_fraction": 0.5, "host_cache_size": None}, "max_seq_len": 8}),
        ("1.3.0", {"sparse_attention_config": {"algorithm": "rocket", "topr": 0.5}, "model_kwargs": {"any": [1]}}),
        # A version that came after the table may have what the table has not, but not under nearly the same name.
        ("1.6.0", {"a_thing_of_tomorrow": 1}),
    ],
)
def test_what_a_version_takes_passes(version: str, arguments: dict[str, Any]) -> None:
    assert mistakes(version, arguments) == {}


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"tensor_parallel_size": 4}, "use tp_size"),
        ({"moe_expert_parallel_size": 2}, "use moe_ep_size"),
        ({"backend": "tensorrt"}, "backend is pytorch or _autodeploy"),
        ({"kv_cache_config": {"tokens_per_block": -5}}, "not -5"),
        ({"kv_cache_config": {"tokens_per_block": True}}, "not True"),
        ({"kv_cache_config": {"tokens_per_block": 10**30}}, "tokens_per_block"),
    ],
)
def test_what_a_plan_goes_by_is_not_changed_behind_it(arguments: dict[str, Any], fact: str) -> None:
    runtime = {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 8}
    LlmApiRecipe.model_validate({"kind": "llmapi", "runtime": runtime, "llm_args": {"backend": "pytorch"}})
    with pytest.raises(ValidationError, match=fact):
        LlmApiRecipe.model_validate({"kind": "llmapi", "runtime": runtime, "llm_args": arguments})


def test_a_version_of_tomorrow_has_the_typos_of_today() -> None:
    assert list(mistakes("1.6.0", {"stream_intervall": 1})) == ["stream_intervall"]


@pytest.mark.parametrize("version", ["1.0.0", "1.2.1", "1.3.0rc3", "1.3.0rc25", "1.3.0rc26", "1.4.0"])
def test_the_table_has_what_the_stand_in_was_given_apart_from_it(version: str) -> None:
    for table, names in llm_args.known_names(version).items():
        assert names <= known_names(Version(version), table), table
