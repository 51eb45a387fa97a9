"""The facts of weights, read from the texts of their small files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from tasks.weights.classes import is_known, language_model
from tasks.weights.facts import CacheLayer, WeightsFacts
from tasks.weights.fields import Fields, parsed, unreadable
from tasks.weights.files import with_files
from tasks.weights.layers import HEADS, HIDDEN, LAYERS, NotUnderstood, cache_layers, head_size, state_layers
from tasks.weights.quantized import QUANTIZATION_FILES, quantized
from tasks.weights.states import state_bytes

CONFIG = "config.json"
CONFIG_FILES = (CONFIG, *QUANTIZATION_FILES)
"""The files that the facts are read from. All but the first may be missing."""

_CONTEXT = (
    *("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length"),
    "model_max_length",
)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# How positions are scaled, where the file gives the context before that.
_SCALED = frozenset({"linear", "dynamic"})


def read_facts(texts: Mapping[str, bytes]) -> WeightsFacts:
    """The facts by the texts of CONFIG_FILES, by name. Raises SourceError `config-unreadable`."""
    config = parsed(texts[CONFIG], CONFIG)
    others = [parsed(texts[name], name) if name in texts else Fields({}) for name in QUANTIZATION_FILES]
    model_type, fields = language_model(config)
    cache, unclear = _cache(model_type, config.text("model_type"), fields)
    names = config.texts("architectures")
    heads = fields.integer(*HEADS)
    tied = next((each for each in (fields, config) if "tie_word_embeddings" in each.values), fields)
    return WeightsFacts(
        architecture=names[0] if names else "",
        model_type=model_type,
        dtype=config.text("torch_dtype", "dtype") or fields.text("torch_dtype", "dtype"),
        layers=fields.integer(*LAYERS),
        heads=heads,
        head_size=head_size(fields) if heads and fields.integer(*HIDDEN) else None,
        hidden_size=fields.integer(*HIDDEN),
        vocabulary=fields.integer("vocab_size", "padded_vocab_size"),
        context=_context(model_type, fields),
        experts=fields.integer(*_EXPERTS) or fields.object("ffn_config").integer("moe_num_experts") or 0,
        tied_embeddings=tied.flag("tie_word_embeddings"),
        quantization=quantized(config, fields, *others),
        cache=cache,
        state_bytes=state_bytes(model_type, fields, state_layers(model_type, fields)) if cache is not None else 0,
        unclear=unclear,
    )


def facts_of(folder: Path) -> WeightsFacts:
    """The facts of the weights in `folder`. Raises SourceError `config-unreadable`, also without `config.json`."""
    if not (folder / CONFIG).is_file():
        raise unreadable(CONFIG, "is missing")
    texts = {name: (folder / name).read_bytes() for name in CONFIG_FILES if (folder / name).is_file()}
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.safetensors")}
    return with_files(read_facts(texts), files)


def _cache(model_type: str, whole: str, fields: Fields) -> tuple[tuple[CacheLayer | None, ...] | None, str]:
    if whole and not is_known(model_type):
        return None, f"models of type {model_type or whole} are not known"
    try:
        return cache_layers(model_type, fields), ""
    except NotUnderstood as error:
        return None, str(error)


def _context(model_type: str, fields: Fields) -> int | None:
    context = fields.integer(*_CONTEXT)
    scaling = fields.object("rope_scaling") or fields.object("rope_parameters")
    kind, factor = scaling.text("rope_type", "type"), scaling.number("factor") or 1.0
    original = scaling.integer("original_max_position_embeddings")
    if context is None or model_type == "gemma3_text":  # whose file gives the context with its scaling
        return context
    if kind == "yarn":
        # Some files give the context before the scaling, some after it.
        return max(context, math.floor((original or context) * factor))
    return math.floor(context * factor) if kind in _SCALED else context
