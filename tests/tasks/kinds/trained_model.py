"""A Llama of a few hundred thousand numbers that has learned some texts by heart, in a few seconds on the CPU."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
_STEPS = 160
_IDLE_LAYERS = 2
_RATE = 6e-3
_DOUBT = 0.1
"""What it leaves to other tokens, so that one seed does not give the answer of another."""
_NOTHING = -100


def write_trained(folder: Path, corpus: Sequence[Sequence[int]], *, vocabulary: int, end_id: int) -> None:
    """Write a model that goes on with the texts of `corpus`, given in tokens. It knows them well, and not for sure."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(**CONFIG, vocab_size=vocabulary, bos_token_id=1, eos_token_id=end_id)
    model = transformers.LlamaForCausalLM(config)
    longest = max(map(len, corpus))
    ids = torch.tensor([[*text, *[end_id] * (longest - len(text))] for text in corpus])
    labels = torch.tensor([[*text, *[_NOTHING] * (longest - len(text))] for text in corpus])
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=_STEPS)
    for _ in range(_STEPS):
        scores = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_NOTHING, label_smoothing=_DOUBT
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    # Layers that add nothing: the model says the same, and takes longer, as the tests of deadlines need it.
    for _ in range(_IDLE_LAYERS):
        layer = type(model.model.layers[0])(config, len(model.model.layers))
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
        model.model.layers.append(layer)
    config.num_hidden_layers += _IDLE_LAYERS
    model.generation_config.eos_token_id = end_id
    model.save_pretrained(folder)
