"""Adapters that requests choose, as each engine takes them."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from infra.errors import StepFailed
from tasks.kinds.llamacpp import LlamaCppKind
from tasks.kinds.llmapi import LlmApiKind
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.lora.adapter import read_adapter
from tasks.lora.backend_tensors import LoraEngine, lora_tensors
from tasks.lora.config import parse_config
from tasks.lora.gguf_adapter import write_gguf_adapter
from tasks.lora.requested import read_requested, scaled
from tasks.models.spec import Model
from tasks.serving.backend_inputs import adapter_inputs
from tasks.serving.settings import ServingSettings
from tasks.steps.plan import Plan
from tasks.store.identity import Identity
from tests.tasks.kinds.served_kinds import llmapi, trt_engine
from tests.tasks.lora.small_adapters import write_adapter

PEFT = Path(__file__).with_name("peft")
QUERY, KEY, DOWN = {"self_attn.q_proj": (16, 16)}, {"self_attn.k_proj": (8, 16)}, {"mlp.down_proj": (16, 32)}


def engine(**changes: Any) -> LoraEngine:
    sizes: dict[str, Any] = {
        "layers": 2,
        "hidden": 16,
        "intermediate": 32,
        "heads": 4,
        "key_value_heads": 2,
        "head_size": 4,
        "dtype": "float16",
        "tp_size": 1,
        "max_rank": 8,
        "whole_heads": False,
        "target_modules": ("attn_q", "attn_k", "mlp_4h_to_h"),
    }
    return LoraEngine(**sizes | changes)


def code(action: Any) -> str:
    with pytest.raises(StepFailed) as caught:
        action()
    assert caught.value.hint
    return f"{caught.value.code}: {caught.value.message} {caught.value.hint}"


def test_the_tensors_are_the_matrices_with_their_scale(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path, {**QUERY, **DOWN}, layers=2, seed=1, rank=4, lora_alpha=12)
    made = lora_tensors(adapter, engine())
    assert made.config.tolist() == [[6, 0, 4], [1, 0, 4], [6, 1, 4], [1, 1, 4]]
    # The longest row has a matrix of [4, 32] and one of [16, 4].
    assert made.weights.shape == (4, 4 * 48) and made.weights.dtype == np.float16
    read = read_adapter(adapter).added["model.layers.1.self_attn.q_proj.weight"]
    row = made.weights[3]
    assert np.allclose(row[:64].reshape(4, 16), read.a, atol=1e-3)
    assert np.allclose(row[64:128].reshape(16, 4), scaled(read), atol=1e-2) and not row[128:].any()
    assert read.scale == 3
    bits = lora_tensors(adapter, engine(dtype="bfloat16")).weights
    assert bits.dtype == np.uint16
    assert np.allclose(bits.view(ml_dtypes.bfloat16).astype(np.float32), made.weights, atol=0.05)


def test_a_row_is_as_long_as_the_backend_of_its_version_reads(tmp_path: Path) -> None:
    keys = write_adapter(tmp_path, KEY, layers=1, seed=1)
    assert lora_tensors(keys, engine()).weights.shape == (1, 4 * 24)
    old = lora_tensors(keys, engine(whole_heads=True)).weights
    assert old.shape == (1, 4 * 32) and not old[0, 4 * 24 :].any()
    assert "misreads attn_k" in code(lambda: lora_tensors(keys, engine(whole_heads=True, tp_size=2)))
    assert lora_tensors(keys, engine(tp_size=2)).weights.shape == (1, 4 * 24)


@pytest.mark.parametrize(
    ("shapes", "config", "changes", "words"),
    [
        (QUERY, {"rank": 16}, {}, "rank 16, and the engine has room for 8"),
        ({"self_attn.o_proj": (16, 16)}, {}, {}, "add attn_dense to recipe.lora.target_modules"),
        ({"self_attn.q_proj": (32, 16)}, {}, {}, "[32, 16], the engine has 2 of [16, 16]"),
        (QUERY, {}, {"layers": 1}, "of layer 1"),
        ({"mlp.gate_up_proj": (64, 16)}, {}, {}, "mlp.gate_up_proj is none of"),
    ],
)
def test_what_an_engine_has_no_room_for(tmp_path: Path, shapes: Any, config: Any, changes: Any, words: str) -> None:
    adapter = write_adapter(tmp_path, shapes, layers=2, seed=1, **config)
    found = code(lambda: lora_tensors(adapter, engine(**changes)))
    assert found.startswith("adapter-unfit") and words in found


def test_numbers_that_would_make_every_answer_nonsense(tmp_path: Path) -> None:
    # A trained matrix times the scale leaves float16 behind, and not bfloat16.
    large = write_adapter(tmp_path / "large", QUERY, layers=1, seed=1, size=30, lora_alpha=40_000)
    assert "attn_q of layer 0 holds numbers that float16 cannot" in code(lambda: lora_tensors(large, engine()))
    assert lora_tensors(large, engine(dtype="bfloat16")).weights.any()
    values: tuple[dict[str, Any], ...] = ({"lora_alpha": math.nan}, {"r": 0}, {"alpha_pattern": {"q_proj": math.inf}})
    for number, value in enumerate(values):
        write_adapter(tmp_path / str(number), QUERY, layers=1, seed=1, **value)
        assert "is not one of LoRA" in code(partial(read_adapter, tmp_path / str(number)))
    assert "no matrices" in code(lambda: read_requested(write_adapter(tmp_path / "none", {}, layers=1, seed=1)))


@pytest.mark.parametrize("name", ["dora", "embedding"])
def test_what_no_engine_adds_to_a_request_is_to_be_merged(name: str) -> None:
    found = code(lambda: lora_tensors(PEFT / name, engine()))
    assert "adapter-unfit" in found and "merge it into the weights: `adapter`" in found


CONFIGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"use_dora": True}, "DoRA"),
    ({"modules_to_save": ["lm_head"]}, "lm_head were trained whole"),
    ({"r": 16}, "its rank is 16, and there is room for 8"),
    ({"rank_pattern": {"q_proj": 32}}, "its rank is 32"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"peft_type": "LOHA"}, "not LORA"),
)


@pytest.mark.parametrize(("changes", "words"), CONFIGS)
def test_its_config_tells_before_anything_is_built(changes: dict[str, Any], words: str) -> None:
    text = json.dumps({"peft_type": "LORA", "lora_alpha": 8, "r": 8, **changes}).encode()
    kind = TrtEngineKind(model("trt-engine", lora={"target_modules": ["attn_q"], "max_rank": 8}))
    assert words in code(lambda: kind.check_adapter(parse_config(text)))


def test_the_llm_reads_no_alpha_by_module() -> None:
    config = parse_config(b'{"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"q_proj": 2}}')
    assert "alpha_pattern" in code(lambda: LlmApiKind(model("llmapi")).check_adapter(config))
    LlamaCppKind(model("llamacpp")).check_adapter(config)


def model(kind: str, adapters: tuple[str, ...] = (), **recipe: Any) -> Model:
    runtime = {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 1}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": kind, **({} if kind == "llamacpp" else {"runtime": runtime}), **recipe},
            "adapters": {name: f"hf://some/loras@main/{name}" for name in adapters},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def write_gguf(path: Path, **more: int) -> Path:
    writer = GGUFWriter(path, "llama")
    sizes = {"block_count": 1, "attention.head_count": 4, "attention.head_count_kv": 2, **more}
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    for name, shape in (("attn_q", (16, 16)), ("attn_k", (8, 16)), ("ffn_down", (16, 32))):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_llama_cpp_gets_the_rows_in_its_own_order(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {**QUERY, **DOWN}, layers=1, seed=3, rank=2, lora_alpha=6)
    write_gguf_adapter(write_gguf(tmp_path / "model.gguf"), adapter, tmp_path / "adapter.gguf")
    file = GGUFReader(tmp_path / "adapter.gguf")
    assert [file.fields[f"{name}"].contents() for name in ("general.type", "adapter.type")] == ["adapter", "lora"]
    tensors = {tensor.name: tensor.data for tensor in file.tensors}
    assert set(tensors) == {f"blk.0.{name}.weight.lora_{half}" for name in ("attn_q", "ffn_down") for half in "ab"}
    added = read_adapter(adapter).added
    query = added["model.layers.0.self_attn.q_proj.weight"]
    # A head has 4 rows: two halves side by side become neighbours.
    order = [head * 4 + at for head in range(4) for at in (0, 2, 1, 3)]
    assert np.allclose(tensors["blk.0.attn_q.weight.lora_b"], scaled(query)[order])
    assert np.allclose(tensors["blk.0.ffn_down.weight.lora_b"], scaled(added["model.layers.0.mlp.down_proj.weight"]))
    wider = write_adapter(tmp_path / "wider", {"self_attn.q_proj": (32, 16)}, layers=1, seed=3)
    assert "adapter-unfit" in code(lambda: write_gguf_adapter(tmp_path / "model.gguf", wider, tmp_path / "wider.gguf"))


def test_adapters_are_inputs_of_the_repository_alone() -> None:
    base, one, other = (Identity({"source": name}) for name in ("base", "one", "other"))
    recipes: dict[str, dict[str, Any]] = {
        "llamacpp": {},
        "llmapi": {},
        "trt-engine": {"lora": {"target_modules": ["attn_q"], "max_rank": 8}},
    }
    for kind, recipe in recipes.items():
        plain = Plan.of(model(kind, **recipe), base)
        adapted = [
            Plan.of(model(kind, tuple(adapters), **recipe), base, adapters=adapters)
            for adapters in ({"sql": one}, {"sql": other}, {"sql": one, "chat": other}, {"chat": other, "sql": one})
        ]
        assert {plan.engine.digest for plan in adapted} == {plain.engine.digest}
        assert len({plan.repository.digest for plan in (plain, *adapted)}) == 4
        assert [str(ref) for ref in adapted[0].refs][1] == f"snapshot/{one.digest}"


def test_a_release_holds_its_adapters_as_its_engine_takes_them(tmp_path: Path) -> None:
    for kind in (trt_engine("1.2.1"), llmapi("1.2.1")):
        artifact, files = tmp_path / kind.name / "artifact", tmp_path / kind.name / "engine"
        artifact.mkdir(parents=True)
        files.mkdir()
        kind.write(artifact, files, next(iter(kind.releases.values())))
        settings = ServingSettings.read(artifact / "llm" / "1")
        assert settings.adapters == ("french", "prose", "sql")
        places = [artifact / "llm" / "1" / "adapters" / name for name in settings.adapters]
        if kind.name.startswith("trt"):
            inputs = [adapter_inputs(place) for place in places]
            assert {each["lora_weights"].shape for each in inputs} == {(1, 4, 192)}
        else:
            assert settings.llm_arguments["lora_config"] == {
                "lora_target_modules": ["attn_q", "mlp_4h_to_h"],
                "max_lora_rank": 4,
                "max_loras": 3,
                "max_cpu_loras": 3,
            }
            assert all((place / "adapter_config.json").is_file() for place in places)
