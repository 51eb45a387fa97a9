"""`convert_checkpoint.py` of Medusa and of Eagle: a Llama, and the heads that guess its tokens."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.standin import checkpoint, failures, llama
from tests.standin.checkpoint import Mapping, Quantization
from tests.standin.context import Context, Log

MEDUSA, EAGLE = "medusa/convert_checkpoint.py", "eagle/convert_checkpoint.py"
TOOLS = (MEDUSA, EAGLE)

_WEIGHTS = {
    MEDUSA: ("medusa_lm_head.pt", "medusa_lm_head.safetensors"),
    EAGLE: ("pytorch_model.bin", "model.safetensors"),
}
_WEIGHT_ONLY = {"int8": "W8A16", "int4": "W4A16"}


def run_medusa(arguments: argparse.Namespace, context: Context) -> None:
    _run(MEDUSA, arguments, context)


def run_eagle(arguments: argparse.Namespace, context: Context) -> None:
    _run(EAGLE, arguments, context)


def with_heads(config: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """`config.json` of a network with the heads of Medusa, also as quantize.py writes it."""
    most = getattr(arguments, "max_medusa_token_len", None) or arguments.max_draft_len
    heads = _found(MEDUSA, arguments.medusa_model_dir)
    if arguments.num_medusa_heads > heads.get("medusa_num_heads", 4):
        raise KeyError(f"{arguments.num_medusa_heads - 1}.0.linear.weight")
    return config | {
        "architecture": "MedusaForCausalLM",
        "max_draft_len": most,
        "num_medusa_heads": arguments.num_medusa_heads,
        "num_medusa_layers": arguments.num_medusa_layers,
    }


def _run(tool: str, arguments: argparse.Namespace, context: Context) -> None:
    log = Log("warning")
    folder, source = Path(arguments.output_dir), Path(arguments.model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    hugging_face = llama.read_config(source)
    if hugging_face["architectures"][0] not in ("LlamaForCausalLM", "MistralForCausalLM"):
        raise NotImplementedError(f"the heads are those of a Llama, not of {hugging_face['architectures'][0]}")
    mapping = Mapping(arguments.tp_size, arguments.pp_size)
    dtype = llama.dtype(hugging_face) if arguments.dtype == "auto" else arguments.dtype
    algorithm = _WEIGHT_ONLY[arguments.weight_only_precision] if arguments.use_weight_only else None
    cache = "INT8" if arguments.int8_kv_cache else None
    config = checkpoint.config(hugging_face, context, dtype, mapping, Quantization(algorithm, cache), {})
    if tool == MEDUSA:
        config = with_heads(config, arguments)
    else:
        found = _found(EAGLE, arguments.eagle_model_dir)
        if found["hidden_size"] != hugging_face["hidden_size"]:
            raise RuntimeError("the size of tensor a must match the size of tensor b at the fully connected layer")
        config |= {
            "architecture": "EagleForCausalLM",
            "max_draft_len": arguments.max_draft_len,
            "num_eagle_layers": arguments.num_eagle_layers,
        }
    loaded = llama.load(source, context, log, by_transformers=True)
    failures.fail_if_chosen(tool, context)
    for rank in range(mapping.files):
        tensors = checkpoint.rank_tensors(loaded, rank, mapping, dtype, algorithm)
        checkpoint.save_rank(folder, rank, tensors, tool, last=rank == mapping.files - 1)
    checkpoint.save_config(folder, config)


def _found(tool: str, folder: str | None) -> dict[str, Any]:
    """The config of the heads. Raises as the real script does where there are none."""
    if folder is None:
        raise TypeError("expected str, bytes or os.PathLike object, not NoneType")
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"[Errno 2] No such file or directory: '{config}'")
    if not any((Path(folder) / name).is_file() for name in _WEIGHTS[tool]):
        raise FileNotFoundError(f"[Errno 2] No such file or directory: '{Path(folder) / _WEIGHTS[tool][0]}'")
    return json.loads(config.read_text())
