"""Small models of several families in PyTorch, with random numbers, as transformers saves them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.small_tokenizers import byte_level

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
}
FAMILIES: Mapping[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    # Every second layer looks back so far, which is less than the tests' answers are long.
    "Gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 12},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
"""What differs between the configurations of each family."""


def write_model(folder: Path, family: str, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
    """A model of that family, with a tokenizer that has every byte; `changes` go into its configuration."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    tokenizer = byte_level()
    end = tokenizer.tokenizer.token_to_id("</s>")
    config = getattr(transformers, f"{family}Config")(
        **{**_SIZES, **FAMILIES[family], **changes}, vocab_size=tokenizer.size, bos_token_id=1, eos_token_id=end
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype))
    model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    return write_tokenizer(folder, tokenizer.tokenizer)
