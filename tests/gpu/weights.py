"""Models for the campaign, in Hugging Face form. A program of its own: what it takes of the GPU ends with it.

python -m tests.gpu.weights smollm2 GGUF OUTPUT
python -m tests.gpu.weights random FAMILY TOKENIZER OUTPUT CONFIG     # arguments of its configuration, as JSON
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

_SHARD = "2GB"


def dequantize(gguf: Path, output: Path) -> None:
    """The GGUF of a Llama as transformers itself reads it, in bfloat16, with its tokenizer and chat template."""
    torch, transformers = _libraries()
    plain = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=plain, dtype=torch.bfloat16
    )
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    model.hf_quantizer = None  # what is saved is plain
    model.is_quantized = False
    _save(model, transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name), output)


def random(family: str, tokenizer: Path, output: Path, config: dict[str, Any]) -> None:
    """A model of random weights in bfloat16, made on the GPU if there is one, with the tokenizer in that folder."""
    torch, transformers = _libraries()
    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    made = getattr(transformers, f"{family}Config")(
        **config, vocab_size=len(loaded), bos_token_id=loaded.bos_token_id, eos_token_id=loaded.eos_token_id
    )
    torch.manual_seed(7)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = getattr(transformers, f"{family}ForCausalLM")(made)
    _save(model, loaded, output)


def _save(model: Any, tokenizer: Any, output: Path) -> None:
    """Both, as transformers below 5 reads them too, which TensorRT-LLM's releases pin."""
    model.save_pretrained(output, max_shard_size=_SHARD)
    tokenizer.save_pretrained(output)
    rope: dict[str, Any] = json.loads((output / "config.json").read_text()).get("rope_parameters") or {}
    theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    _change(output / "config.json", torch_dtype="bfloat16", **theta)
    _change(output / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def _libraries() -> tuple[Any, Any]:
    return importlib.import_module("torch"), importlib.import_module("transformers")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["smollm2", gguf, output]:
            dequantize(Path(gguf), Path(output))
        case ["random", family, tokenizer, output, config]:
            random(family, Path(tokenizer), Path(output), json.loads(config))
        case _:
            sys.exit(__doc__)
