"""The defaults of configuration classes, against transformers' own classes."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from tasks.weights.classes import is_known, language_model
from tasks.weights.fields import Fields

TABLE = Path(__file__).parents[3] / "tasks/weights/class_defaults.json"

# The values that `tasks.weights` reads.
NAMES = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads"),
    *("num_kv_heads", "multi_query", "new_decoder_architecture", "head_dim", "hidden_size", "n_embd", "d_model"),
    *("vocab_size", "max_position_embeddings", "n_positions", "max_seq_len", "tie_word_embeddings", "sliding_window"),
    *("attention_window_size", "use_sliding_window", "max_window_layers", "attention_chunk_size"),
    *("no_rope_layer_interval", "kv_lora_rank", "qk_rope_head_dim", "num_local_experts", "num_experts"),
    "n_routed_experts",
)


def test_the_table_is_what_the_classes_say() -> None:
    """A new type is a new name in the table, with nothing in it; ENGINEHOUSE_WRITE_SNAPSHOTS=1 then fills it."""
    import transformers

    classes: Any = transformers.CONFIG_MAPPING

    def defaults(name: str) -> str:
        found = {field.name: field.default for field in dataclasses.fields(classes[name])}
        return json.dumps({key: found[key] for key in NAMES if isinstance(found.get(key), int)})

    table = json.loads(TABLE.read_text())
    lines = ",\n".join(f'  "{name}": {defaults(name)}' for name in sorted(table["defaults"]))
    language = {name: classes[name]().get_text_config().model_type for name in sorted(table["language"])}
    made = f'{{"defaults": {{\n{lines}\n}},\n"language": {json.dumps(language)}}}\n'
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        TABLE.write_text(made)
    assert table == json.loads(made)


def test_a_language_model_within_another_has_its_own_class() -> None:
    model_type, fields = language_model(
        Fields({"model_type": "gemma3", "num_hidden_layers": 3, "text_config": {"num_hidden_layers": 34}})
    )
    assert model_type == "gemma3_text" and fields.integer("num_hidden_layers") == 34
    assert fields.integer("num_attention_heads") == 8 and is_known(model_type)
    # A null is a value, and not what the class says.
    assert language_model(Fields({"model_type": "mistral", "sliding_window": None}))[1].get("sliding_window") is None
    assert language_model(Fields({"model_type": "mistral"}))[1].get("sliding_window") == 4096
    assert not is_known("some_new_model")
