"""Adapters merged into weights, against what PEFT itself makes of them.

`peft/` was written by PEFT 0.21.2 on transformers 5.24.0: a model of one layer with random weights (`save_pretrained`),
adapters to it of several kinds, and the tensors that differ after `merge_and_unload`.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray
from pydantic import ValidationError

from infra.errors import StepFailed
from tasks.gguf.conversion import dequantize
from tasks.gguf.reader import read_gguf
from tasks.kinds.llmapi import LlmApiKind
from tasks.lora import patterns
from tasks.lora.gguf_merge import merge_gguf
from tasks.lora.merge import merged
from tasks.lora.names import short_name
from tasks.lora.tensors import tensors_of
from tasks.models.spec import Model
from tasks.steps.plan import Plan
from tasks.store.identity import Identity
from tasks.store.reporter import Reporter

PEFT = Path(__file__).with_name("peft")
HEADS, KEY_HEADS, HEAD = 4, 2, 4
Array = NDArray[Any]


def values(folder: Path) -> dict[str, Array]:
    found = (tensor for path in sorted(folder.glob("*.safetensors")) for tensor in tensors_of(path))
    return {tensor.name: np.array(tensor.mapped()) for tensor in found}


def write(path: Path, tensors: dict[str, Array]) -> None:
    """The library has no numpy of bfloat16."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": names[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(each.tobytes() for each in tensors.values()))


def adapter(folder: Path, change: dict[str, Array | None] | None = None, **config: Any) -> Path:
    """A copy of `patterns`, with other tensors (None: without one) and another configuration."""
    shutil.copytree(PEFT / "patterns", folder)
    tensors = values_of(folder / "adapter_model.safetensors") | (change or {})
    write(folder / "adapter_model.safetensors", {name: each for name, each in tensors.items() if each is not None})
    changed = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    return folder


def values_of(path: Path) -> dict[str, Array]:
    return {tensor.name: np.array(tensor.mapped()) for tensor in tensors_of(path)}


@pytest.mark.parametrize("kind", ["patterns", "rslora", "dora", "embedding"])
def test_the_same_as_peft(kind: str, tmp_path: Path) -> None:
    before, expected = values(PEFT / "base"), values_of(PEFT / kind / "merged.safetensors")
    after = values(merged(PEFT / "base", PEFT / kind, tmp_path / "merged"))
    assert {name for name in after if not np.array_equal(after[name], before[name])} == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(after[name], tensor, rtol=1e-6, atol=1e-7)
    assert (tmp_path / "merged" / "config.json").read_bytes() == (PEFT / "base" / "config.json").read_bytes()


def test_a_pattern_that_takes_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MATCHING_SECONDS", 0.5)
    processes = set(psutil.Process().children())
    with pytest.raises(StepFailed) as caught:
        patterns.by_pattern("alpha_pattern", {"(a+)+b": 8}, ["a" * 40])
    assert caught.value.code == "adapter-unfit" and not caught.value.retryable
    assert set(psutil.Process().children()) <= processes


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_sums_are_rounded_once(dtype: Any, tmp_path: Path) -> None:
    """In files of several tensors; those that the adapter does not touch are the same files."""
    base = {name: tensor.astype(dtype) for name, tensor in values(PEFT / "base").items()}
    touched = {name: tensor for name, tensor in base.items() if "layers" in name}
    rest = {name: tensor for name, tensor in base.items() if "layers" not in name}
    snapshot = tmp_path / "snapshot"
    write(snapshot / "deep" / "model-1.safetensors", touched)
    write(snapshot / "model-2.safetensors", rest)
    write(tmp_path / "exact" / "model.safetensors", {name: each.astype(np.float32) for name, each in base.items()})
    original = (snapshot / "deep" / "model-1.safetensors").read_bytes()

    exact = values(merged(tmp_path / "exact", PEFT / "patterns", tmp_path / "of-exact"))
    output = merged(snapshot, PEFT / "patterns", tmp_path / "merged")
    for name, tensor in values(output / "deep").items():
        assert np.array_equal(tensor, exact[name].astype(dtype)), name
    assert (snapshot / "deep" / "model-1.safetensors").read_bytes() == original
    assert (output / "model-2.safetensors").samefile(snapshot / "model-2.safetensors")


QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
# What PEFT calls the first of two parameters of one module (`target_parameters`).
WRAPPED = QUERY.replace("lora_{}", "base_layer.lora_A")


@pytest.mark.parametrize(
    ("change", "config", "named"),
    [
        ({}, {"peft_type": "IA3"}, "IA3"),
        ({}, {"lora_alpha": None}, "lora_alpha"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({}, {"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({}, {"layer_replication": [[0, 1]]}, "layer_replication"),
        ({}, {"alpha_pattern": {"(": 8}}, "alpha_pattern '(' is no regular expression"),
        ({}, {"alpha_pattern": {"(" * 5000 + ")" * 5000: 8}}, "is no regular expression"),
        ({}, {"use_dora": True}, "has the tensors lora_A, lora_B"),
        ({}, {"target_parameters": ["self_attn.q_proj.one", "q_proj.other"]}, "which is which is not known"),
        ({}, {"target_parameters": ["self_attn.q_proj.one"]}, "the model has no model.layers.0.self_attn.q_proj.one"),
        ({WRAPPED: np.zeros((4, 16), np.float32)}, {}, WRAPPED),
        ({QUERY.format("A"): None}, {}, "has the tensors lora_B"),
        ({QUERY.format("A"): np.zeros((3, 16), np.float32)}, {}, "matrices of"),
        (
            {QUERY.format(side): np.zeros(shape, np.float32) for side, shape in (("A", (0, 16)), ("B", (16, 0)))},
            {},
            "matrices of",
        ),
        ({QUERY.format("A"): np.zeros((4, 12), np.float32)}, {}, "[16, 12] in it and [16, 16] in the model"),
        ({QUERY.format("A"): np.zeros((4, 16), np.int8)}, {}, "I8"),
        ({"transformer.h.0.lora_A.weight": np.zeros((4, 16), np.float32)}, {}, "transformer.h.0"),
        ({"base_model.model.lm_head.lora_bias": np.zeros(4, np.float32)}, {}, "lora_bias"),
        ({"base_model.model.embed.token_adapter.trainable_tokens_delta": np.zeros(4, np.float32)}, {}, "delta"),
        ({"base_model.model.score.weight": np.zeros((2, 16), np.float32)}, {}, "the model has no score.weight"),
        ({"base_model.model.lm_head.weight": np.zeros((25, 16), np.float32)}, {}, "[25, 16]"),
    ],
)
def test_an_adapter_that_does_not_fit(
    change: dict[str, Any], config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    wrong = adapter(tmp_path / "adapter", change, **config)
    with pytest.raises(StepFailed) as caught:
        merged(PEFT / "base", wrong, tmp_path / "merged")
    assert caught.value.code == "adapter-unfit" and named in caught.value.message and "source" in caught.value.hint


def test_a_shape_that_is_longer_than_its_bytes(tmp_path: Path) -> None:
    wrong = adapter(tmp_path / "adapter")
    content = (wrong / "adapter_model.safetensors").read_bytes()
    (wrong / "adapter_model.safetensors").write_bytes(content.replace(b"[4, 16]", b"[9, 16]", 1))
    with pytest.raises(StepFailed) as caught:
        merged(PEFT / "base", wrong, tmp_path / "merged")
    assert caught.value.code == "adapter-unfit" and "[9, 16] and 256 bytes" in caught.value.message


def test_weights_that_are_already_quantized(tmp_path: Path) -> None:
    write(tmp_path / "snapshot/model.safetensors", {n: t.astype(np.int8) for n, t in values(PEFT / "base").items()})
    with pytest.raises(StepFailed) as caught:
        merged(tmp_path / "snapshot", PEFT / "patterns", tmp_path / "merged")
    assert caught.value.code == "adapter-unfit" and "I8" in caught.value.message


@pytest.mark.parametrize("number", [np.nan, 1e9])
def test_sums_that_the_weights_cannot_hold(number: float, tmp_path: Path) -> None:
    half = {name: tensor.astype(np.float16) for name, tensor in values(PEFT / "base").items()}
    write(tmp_path / "snapshot" / "model.safetensors", half)
    wrong = adapter(tmp_path / "adapter", {QUERY.format("A"): np.full((4, 16), number, np.float32)})
    with pytest.raises(StepFailed) as caught:
        merged(tmp_path / "snapshot", wrong, tmp_path / "merged")
    assert caught.value.code == "weights-out-of-range" and "q_proj" in caught.value.message


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def own_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
    return whole.get(name) or f"blk.0.{GGUF_NAMES[name.removeprefix('model.layers.0.').removesuffix('.weight')]}.weight"


def neighbours(rows: Array, heads: int) -> Array:
    """Rows of a published query or key as llama.cpp has them: the halves of each head taken in turns."""
    halves = [np.split(head, 2) for head in np.split(rows, heads)]
    return np.concatenate([np.stack(both, axis=1).reshape(-1, rows.shape[1]) for both in halves])


def gguf(path: Path, architecture: str = "llama") -> Path:
    """The matrices of `base` as llama.cpp converts them."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    for name, tensor in values(PEFT / "base").items():
        if tensor.ndim == 2:
            if "q_proj" in name or "k_proj" in name:
                tensor = neighbours(tensor, HEADS if "q_proj" in name else KEY_HEADS)
            writer.add_tensor(own_name(name), np.ascontiguousarray(tensor), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_values(path: Path) -> dict[str, Array]:
    file = read_gguf(path)
    types = {"F16": np.float16, "F32": np.float32}
    return {
        each.name: np.frombuffer(file.data, types[each.type.name], each.elements, each.offset)
        .reshape(each.shape[1], each.shape[0])
        .astype(np.float32)
        for each in file.tensors
    }


def scores(query: Array, key: Array, tokens: Array, *, by_halves: bool) -> Array:
    """What every token's query says to every token's key, by head, with rotary embeddings (theta 10,000)."""
    places = np.arange(len(tokens))[:, None]
    angles = places * 10_000.0 ** (-np.arange(0, HEAD, 2) / HEAD)

    def rotated(weight: Array, heads: int) -> Array:
        states = (tokens @ weight.T).reshape(len(tokens), heads, HEAD)
        pairs = (
            states.reshape(*states.shape[:2], 2, HEAD // 2) if by_halves else states.reshape(*states.shape[:2], -1, 2)
        )
        one, other = (pairs[:, :, 0], pairs[:, :, 1]) if by_halves else (pairs[..., 0], pairs[..., 1])
        sine, cosine = np.sin(angles)[:, None], np.cos(angles)[:, None]
        return np.concatenate([one * cosine - other * sine, one * sine + other * cosine], axis=-1)

    keys = np.repeat(rotated(key, KEY_HEADS), HEADS // KEY_HEADS, axis=1)
    return rotated(query, HEADS).swapaxes(0, 1) @ keys.transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["patterns", "rslora", "dora", "embedding"])
def test_a_gguf_of_llama_attends_as_the_published_model(kind: str, tmp_path: Path) -> None:
    expected = values(PEFT / "base") | values_of(PEFT / kind / "merged.safetensors")
    checkpoint = tmp_path / "model.gguf"
    dequantize(gguf(tmp_path / "base.gguf"), checkpoint, "float16", lambda done, total: None)
    merge_gguf(checkpoint, PEFT / kind)
    after = gguf_values(checkpoint)

    query, key = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    for name, tensor in expected.items():
        if tensor.ndim == 2 and name not in (query, key):
            np.testing.assert_allclose(after[own_name(name)], tensor, atol=2e-3)
    tokens = np.random.default_rng(1).standard_normal((5, 16))
    published = scores(expected[query], expected[key], tokens, by_halves=True)
    ours = scores(after[own_name(query)], after[own_name(key)], tokens, by_halves=False)
    np.testing.assert_allclose(ours, published, rtol=0.02, atol=0.02 * float(np.abs(published).max()))


def test_a_gguf_of_other_shapes_stays_as_it_is(tmp_path: Path) -> None:
    checkpoint = gguf(tmp_path / "base.gguf")
    before = checkpoint.read_bytes()
    wrong = adapter(tmp_path / "adapter", {QUERY.format("B"): np.zeros((12, 4), np.float32)})
    with pytest.raises(StepFailed) as caught:
        merge_gguf(checkpoint, wrong)
    assert caught.value.code == "adapter-unfit" and "[12, 16]" in caught.value.message
    assert checkpoint.read_bytes() == before


def test_a_gguf_that_nobody_can_vouch_for(tmp_path: Path) -> None:
    for architecture, kind, named in (("falcon", "patterns", "falcon"), ("qwen3", "whole", "model.norm.weight")):
        path, folder = tmp_path / f"{architecture}.gguf", PEFT / kind
        gguf(path, architecture)
        if kind == "whole":
            norm = {"base_model.model.model.norm.weight": np.zeros(16, np.float32)}
            folder = adapter(tmp_path / "adapter", {**norm})
        before = path.read_bytes()
        with pytest.raises(StepFailed) as caught:
            merge_gguf(path, folder)
        assert caught.value.code == "adapter-unfit" and named in caught.value.message
        assert path.read_bytes() == before


def renamed(folder: Path, source: Path, prefix: str, form: str) -> Path:
    """A copy whose tensors are named as in a multimodal model. `form` is what stands for `model.`"""
    shutil.copytree(source, folder)
    (path,) = folder.glob("*model.safetensors")
    head = "language_model.lm_head." if form == "language_model.model." else "lm_head."
    write(
        path,
        {
            prefix + re.sub("^lm_head.", head, re.sub("^model.", form, name.removeprefix(prefix))): tensor
            for name, tensor in values_of(path).items()
        },
    )
    return folder


FORMS = ("model.", "model.language_model.", "language_model.model.", "")


@pytest.mark.parametrize("kind", ["patterns", "embedding"])
@pytest.mark.parametrize(("base", "ours"), [pair for pair in product(FORMS, FORMS) if pair != ("model.", "model.")])
def test_a_multimodal_model_has_the_same_matrices_under_other_names(
    kind: str, base: str, ours: str, tmp_path: Path
) -> None:
    snapshot = renamed(tmp_path / "base", PEFT / "base", "", base)
    tuned = renamed(tmp_path / "adapter", PEFT / kind, "base_model.model.", ours)
    before, after = values(snapshot), values(merged(snapshot, tuned, tmp_path / "merged"))
    expected = values_of(PEFT / kind / "merged.safetensors")
    changed = {short_name(name): each for name, each in after.items() if not np.array_equal(each, before[name])}
    assert after.keys() == before.keys() and changed.keys() == {short_name(name) for name in expected}
    for name, tensor in expected.items():
        np.testing.assert_allclose(changed[short_name(name)], tensor, rtol=1e-6, atol=1e-7)


def ones(folder: Path, *modules: str) -> Path:
    sides = {f"base_model.model.{module}.lora_{side}.weight": side for module in modules for side in "AB"}
    shapes = {"A": (1, 8), "B": (8, 1)}
    write(folder / "adapter_model.safetensors", {name: np.ones(shapes[side], "f4") for name, side in sides.items()})
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
    return folder


TEXT, MULTIMODAL, OLDER = (f"{form}layers.0.self_attn.q_proj" for form in FORMS[:3])


@pytest.mark.parametrize(
    ("weights", "modules"),
    [
        ((MULTIMODAL, OLDER), (TEXT,)),  # which of the two is meant?
        ((TEXT,), (MULTIMODAL, OLDER)),
        ((TEXT,), (TEXT, OLDER)),
        ((f"vision_tower.{TEXT}",), (TEXT,)),
    ],
)
def test_a_name_that_means_no_one_matrix(weights: tuple[str, ...], modules: tuple[str, ...], tmp_path: Path) -> None:
    snapshot = {f"{name}.weight": np.zeros((8, 8), np.float32) for name in weights}
    write(tmp_path / "base" / "model.safetensors", snapshot)
    with pytest.raises(StepFailed) as caught:
        merged(tmp_path / "base", ones(tmp_path / "adapter", *modules), tmp_path / "merged")
    assert caught.value.code == "adapter-unfit" and "self_attn.q_proj" in caught.value.message
    assert not (tmp_path / "merged").exists()


def test_the_model_s_own_name_comes_first(tmp_path: Path) -> None:
    """A model that names two of its parts so: each gets what the adapter has for it, and nothing else."""
    write(tmp_path / "base" / "model.safetensors", {f"{n}.weight": np.zeros((8, 8), "f4") for n in (TEXT, OLDER)})
    after = values(merged(tmp_path / "base", ones(tmp_path / "adapter", OLDER), tmp_path / "merged"))
    assert after[f"{OLDER}.weight"].min() == 2 and not after[f"{TEXT}.weight"].any()


def test_another_part_of_a_multimodal_model(tmp_path: Path) -> None:
    write(tmp_path / "base" / "model.safetensors", {"vision_tower.q_proj.weight": np.zeros((8, 8), np.float32)})
    tuned = ones(tmp_path / "adapter", "model.vision_tower.q_proj")
    assert (values(merged(tmp_path / "base", tuned, tmp_path / "merged"))["vision_tower.q_proj.weight"] == 2).all()


def small_gguf(path: Path, architecture: str) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("module", [TEXT, MULTIMODAL, OLDER])
def test_a_gguf_of_a_multimodal_model(module: str, tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "model.gguf", "gemma3")
    merge_gguf(path, ones(tmp_path / "adapter", module))
    assert (gguf_values(path)["blk.0.attn_q.weight"] == 2).all()


def test_two_names_for_one_matrix_of_a_gguf(tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "model.gguf", "gemma3")
    with pytest.raises(StepFailed) as caught:
        merge_gguf(path, ones(tmp_path / "adapter", MULTIMODAL, OLDER))
    assert caught.value.code == "adapter-unfit" and "self_attn.q_proj" in caught.value.message
    assert not gguf_values(path)["blk.0.attn_q.weight"].any()


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("kind", ["patterns", "embedding"])
def test_a_gguf_of_llama_has_the_same_order_under_every_name(kind: str, form: str, tmp_path: Path) -> None:
    """LLaVA's text model is a llama. A query merged in its published order would be wrong in silence."""
    plain, other = gguf(tmp_path / "plain.gguf"), gguf(tmp_path / "other.gguf")
    merge_gguf(plain, PEFT / kind)
    merge_gguf(other, renamed(tmp_path / "adapter", PEFT / kind, "base_model.model.", form))
    assert plain.read_bytes() == other.read_bytes()


def model(adapter: str | None = None) -> Model:
    runtime = {"tensorrt_llm": "1.3.0", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "adapter": adapter,
            "recipe": {"kind": "llmapi", "runtime": runtime},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def test_a_kind_that_converts_nothing_serves_the_merged_weights(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    base = shutil.copytree(PEFT / "base", tmp_path / "base")
    (base / "tokenizer.json").write_text("{}")
    LlmApiKind(model()).convert(base, PEFT / "patterns", checkpoint, tmp_path, Reporter())
    expected = values_of(PEFT / "patterns" / "merged.safetensors")
    after = values(checkpoint)
    assert all(np.allclose(after[name], tensor, atol=1e-6) for name, tensor in expected.items())


def test_an_adapter_is_an_input_of_the_checkpoint() -> None:
    base, one, other = (Identity({"source": name}) for name in ("base", "one", "other"))
    plans = [Plan.of(model(), base, tuned) for tuned in (None, one, other)]
    assert [list(plan.snapshots) for plan in plans] == [["snapshot"], ["snapshot", "adapter"], ["snapshot", "adapter"]]
    assert len({plan.checkpoint.digest for plan in plans}) == 3
    assert plans[1].refs[:2] == tuple(plans[1].snapshots.values())


def test_an_adapter_in_a_model_s_file() -> None:
    assert model("s3://acme/lora/").origin == "hf://some/llama@main with s3://acme/lora"
    for wrong in ("pip://llm@1/x.gguf", "https://example.org/lora"):
        with pytest.raises(ValidationError) as caught:
            model(wrong)
        assert [error["loc"] for error in caught.value.errors()] == [("adapter",)]
