"""A Llama in Hugging Face form: its config, and the tensors that a Llama of this config needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.standin.context import Context, Log
from tests.standin.safetensors import ITEM_BYTES, Tensor, read

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_POINTER = b"version "
"""How a Git LFS pointer begins."""


@dataclass(frozen=True)
class Llama:
    config: dict[str, Any]
    """`config.json`, as Hugging Face has it."""
    tensors: dict[str, Tensor]
    """The tensors of `names`, in their shapes."""


def read_config(folder: Path) -> dict[str, Any]:
    """The config in `folder`. Raises OSError in transformers' words if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise OSError(f"{folder} does not appear to have a file named config.json.")
    return json.loads(path.read_text())


def dtype(config: dict[str, Any]) -> str:
    """The dtype that `auto` stands for: the model's, but never float32."""
    stored = config.get("torch_dtype") or config.get("dtype") or "float16"
    return "float16" if stored == "float32" else stored


def tensor_dtype(name: str) -> str:
    """`bfloat16` as safetensors names it."""
    return _DTYPES[name]


def head_size(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def key_value_heads(config: dict[str, Any]) -> int:
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def names(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each tensor and its shape."""
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], head_size(config)
    queries, pairs = config["num_attention_heads"] * size, key_value_heads(config) * size
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.q_proj.weight", (queries, hidden)
        yield prefix + "self_attn.k_proj.weight", (pairs, hidden)
        yield prefix + "self_attn.v_proj.weight", (pairs, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, queries)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (inner, hidden)
        yield prefix + "mlp.up_proj.weight", (inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (config["vocab_size"], hidden)


def stored_names(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], None]]:
    """Each tensor and its shape, all of the model's own type."""
    return ((name, shape, None) for name, shape in names(config))


def load(folder: Path, context: Context, log: Log, *, by_transformers: bool) -> Llama:
    """Read a Llama as transformers does, or as TensorRT-LLM's own loader, which came with 0.12."""
    config = read_config(folder)
    quantized: dict[str, Any] = config.get("quantization_config") or {}
    if by_transformers and quantized.get("quant_method") == "gptq":
        raise ImportError("Loading a GPTQ quantized model requires optimum (`pip install optimum`)")
    found: dict[str, Tensor] = {}
    for path in _files(folder, by_transformers):
        found.update(read(path, sentences=context.since("1.0")))
    if by_transformers:
        _fit_as_transformers(config, found, folder)
    else:
        _fit_as_loader(config, found, log)
    return Llama(config, {name: found[name] for name, _ in names(config)})


def _files(folder: Path, by_transformers: bool) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if by_transformers and index.is_file():
        listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = [folder / name for name in sorted(set(listed.values()))]
        for path in files:
            if not path.is_file():
                raise OSError(f"{folder} does not appear to have a file named {path.name}.")
    if files:
        return files
    for path in folder.glob("*.bin"):
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER and by_transformers:
                raise OSError(
                    "You seem to have cloned a repository without having git-lfs installed. Please install git-lfs "
                    "and run `git lfs install` followed by `git lfs pull` in the folder you cloned."
                )
    if by_transformers:
        raise OSError(f"Error no file named pytorch_model.bin, model.safetensors found in directory {folder}.")
    raise NotImplementedError("Only safetensors/pickle/binary directories are supported.")


def _fit_as_transformers(config: dict[str, Any], found: dict[str, Tensor], folder: Path) -> None:
    wrong = [
        f"\tsize mismatch for {name}: copying a param with shape torch.Size({list(found[name].shape)}) from "
        f"checkpoint, the shape in current model is torch.Size({list(shape)})."
        for name, shape in names(config)
        if name in found and found[name].shape != shape
    ]
    if wrong:
        raise RuntimeError("Error(s) in loading state_dict for LlamaForCausalLM:\n" + "\n".join(wrong))
    missing = [(name, shape) for name, shape in names(config) if name not in found]
    if missing:
        print(
            f"Some weights of LlamaForCausalLM were not initialized from the model checkpoint at {folder} and are "
            f"newly initialized: {[name for name, _ in missing]}",
            file=sys.stderr,
        )
    for name, shape in missing:
        found[name] = _zeros(tensor_dtype(dtype(config)), shape)


def _fit_as_loader(config: dict[str, Any], found: dict[str, Tensor], log: Log) -> None:
    for name, shape in names(config):
        if name not in found:
            # Query, key and value are joined before their existence is checked.
            if any(part in name for part in ("q_proj", "k_proj", "v_proj")):
                raise TypeError("expected Tensor as element 0 in argument 0, but got NoneType")
            raise KeyError(ours(name))
        had = found[name].shape
        if had == shape:
            continue
        log.warning(f"{ours(name)} has invalid shape torch.Size({list(had)}). Expected torch.Size({list(shape)}).")
        if any(have > want for have, want in zip(had, shape, strict=True)) or had[1:] != shape[1:]:
            raise ValueError(
                f"Parameter {ours(name)} has invalid shape torch.Size({list(had)}) compared with expected shape "
                f"torch.Size({list(shape)}). Auto padding failed."
            )
        zeros = _zeros(found[name].dtype, shape)
        found[name] = Tensor(zeros.dtype, shape, found[name].data.ljust(len(zeros.data), b"\0"))


def ours(name: str) -> str:
    """TensorRT-LLM's name of a tensor, before query, key and value are joined."""
    for theirs, mine in (
        ("model.", "transformer."),
        ("embed_tokens", "vocab_embedding"),
        ("transformer.norm", "transformer.ln_f"),
        ("self_attn.o_proj", "attention.dense"),
        ("self_attn", "attention"),
        ("mlp.gate_proj", "mlp.fc"),
        ("mlp.up_proj", "mlp.gate"),
        ("mlp.down_proj", "mlp.proj"),
        ("post_attention_layernorm", "post_layernorm"),
    ):
        name = name.replace(theirs, mine)
    return name


def _zeros(dtype: str, shape: tuple[int, ...]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return Tensor(dtype, shape, bytes(count * ITEM_BYTES[dtype]))
