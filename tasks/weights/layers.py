"""What each layer of a language model keeps in the KV cache.

Sources: the configuration and modelling classes of transformers 5.24; for the models that bring code of their own, that
code; what TensorRT-LLM keeps of them: `KVCacheManager` of its `_torch/pyexecutor/resource_manager.py` (1.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tasks.weights.facts import CacheLayer
from tasks.weights.fields import Fields, unreadable

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model")

_MOST_LAYERS = 10_000

# If no list of layers says it, every N-th one looks back to the first token and the others look back `sliding_window`.
_FULL_EVERY = {"gemma2": 2, "gpt_oss": 2, "cohere2": 4, "exaone4": 4, "olmo3": 4, "gemma3_text": 6}
_EVERY_LAYER_SLIDES = frozenset({"mistral", "mixtral", "phi3", "phi4_multimodal", "phimoe", "starcoder2", "qwen3_moe"})
# Types of which most layers keep a state by request, and nothing by token.
_HYBRID_EVERY = {"qwen3_next": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4}
_WITHOUT_ATTENTION = frozenset({"mamba", "mamba2", "falcon_mamba"})

_FULL = frozenset({"full_attention", "attention", "*"})
_SLIDING = frozenset({"sliding_attention", "chunked_attention"})
_STATE = frozenset({"linear_attention", "mamba", "recurrent", "M"})
_NOTHING = _STATE | {"linear", "no_op", "mlp", "moe", "-", "E"}
# Fields by which a model keeps something else than these rules say: layers that share a cache, heads whose size differs
# by layer, keys of an indexer beside, cross attention.
_OTHER_RULES = (
    *("num_kv_shared_layers", "use_cla", "global_head_dim", "num_global_key_value_heads", "index_topk"),
    *("compress_ratios", "linear_attn_config", "attn_type_list", "cross_attention_layers", "is_encoder_decoder"),
)


class NotUnderstood(Exception):
    """What the layers keep does not follow from the file. The message says why."""


def cache_layers(model_type: str, fields: Fields) -> tuple[CacheLayer | None, ...]:
    """What each layer keeps of a token. None for a layer that keeps nothing by token.

    Raises NotUnderstood; and SourceError `config-unreadable` if a size is missing or makes no sense.
    """
    for name in _OTHER_RULES:
        if fields.get(name):
            raise NotUnderstood(f"what {name} means for the KV cache of a {model_type} is not known")
    count = layer_count(fields)
    if model_type in _WITHOUT_ATTENTION:
        return (None,) * count
    if model_type == "nemotron-nas":
        return _by_blocks(fields, count)
    heads, numbers = _head(model_type, fields)
    windows = _windows(model_type, fields, count)
    return tuple(None if window == 0 else CacheLayer(heads, numbers, window) for window in windows)


def state_layers(model_type: str, fields: Fields) -> int:
    """How many layers keep a state of each request in place of its tokens."""
    return sum(kind in _STATE for kind in _layer_types(model_type, fields, layer_count(fields)) or ())


def layer_count(fields: Fields) -> int:
    return fields.needed(*LAYERS, most=_MOST_LAYERS)


def head_size(fields: Fields) -> int:
    """Numbers of one head of a query."""
    given = fields.integer("head_dim", "head_size", "attention_head_dim", "kv_channels")
    hidden, heads = (0, 1) if given else (fields.needed(*HIDDEN), fields.needed(*HEADS))
    if not (size := given or hidden // heads):
        raise unreadable("config.json", f"{heads} heads share a hidden_size of {hidden}")
    return size


def _head(model_type: str, fields: Fields) -> tuple[int, int]:
    """Heads of keys and values, and the numbers that each keeps of a token."""
    if latent := fields.integer("kv_lora_rank"):
        # Multi-head latent attention keeps one vector for all heads, and the part of the key that has a position.
        return 1, latent + fields.needed("qk_rope_head_dim")
    return _key_value_heads(model_type, fields), 2 * head_size(fields)


def _key_value_heads(model_type: str, fields: Fields) -> int:
    heads = fields.needed(*HEADS)
    match model_type:
        case "falcon" if fields.flag("new_decoder_architecture"):
            return fields.integer("num_kv_heads") or heads
        case "falcon" | "gpt_bigcode":
            return 1 if fields.flag("multi_query") else heads
        case "chatglm":
            return fields.needed("multi_query_group_num") if fields.flag("multi_query_attention") else heads
        case "dbrx" | "mpt":
            return fields.object("attn_config").integer("kv_n_heads") or (1 if model_type == "dbrx" else heads)
        case _:
            return fields.integer("num_key_value_heads", "num_kv_heads") or heads


def _windows(model_type: str, fields: Fields, count: int) -> list[int | None]:
    """The attention window of each layer: None for all tokens, 0 for a layer without attention."""
    # 0 and -1, as in other libraries, are no window.
    window = max(fields.integer("sliding_window", "attention_window_size", least=-1) or 0, 0) or None
    chunk = fields.integer("attention_chunk_size") or None
    if fields.get("use_sliding_window") is False:
        window = None
    kinds = _layer_types(model_type, fields, count)
    if kinds is None:
        slides = _slides(model_type, fields, window or chunk)
        return [(window or chunk) if slides(layer) else None for layer in range(count)]
    if len(kinds) != count:
        raise unreadable("config.json", f"it names the types of {len(kinds)} layers and has {count}")
    return [_window_of(kind, window, chunk) for kind in kinds]


def _window_of(kind: str, window: int | None, chunk: int | None) -> int | None:
    if kind in _FULL:
        return None
    if kind in _SLIDING:
        return chunk if kind == "chunked_attention" else window
    if kind in _NOTHING:
        return 0
    raise NotUnderstood(f"what a layer of type {kind!r} keeps is not known")


def _layer_types(model_type: str, fields: Fields, count: int) -> Sequence[str] | None:
    """The type of each layer, where the file or the type of the model lists them."""
    for name in ("layer_types", "layers_block_type"):
        if listed := fields.texts(name):
            return listed
    if model_type == "nemotron_h":
        return fields.text("hybrid_override_pattern")
    if model_type in _HYBRID_EVERY:
        every = fields.integer("full_attention_interval") or _HYBRID_EVERY[model_type]
        return ["linear_attention" if (layer + 1) % every else "full_attention" for layer in range(count)]
    if model_type == "recurrent_gemma":
        group = fields.texts("block_types") or ("recurrent", "recurrent", "attention")
        kinds = ["sliding_attention" if kind == "attention" else kind for kind in group]
        return [kinds[layer % len(kinds)] for layer in range(count)]
    return None


def _slides(model_type: str, fields: Fields, window: int | None) -> Callable[[int], bool]:
    """Which layers look back no further than `window`, of a model whose file lists no types."""
    if window is None:
        return lambda layer: False
    if model_type in _EVERY_LAYER_SLIDES:
        return lambda layer: True
    if model_type == "llama4_text":
        # The layers without positions are those that look back to the first token.
        every = fields.integer("no_rope_layer_interval") or 4
        rotated = fields.integers("no_rope_layers")
        return lambda layer: bool(rotated[layer] if layer < len(rotated) else (layer + 1) % every)
    if model_type in _FULL_EVERY:
        # EXAONE writes the pattern as a text: LLLG.
        written = fields.text("sliding_window_pattern")
        every = len(written) or fields.integer("sliding_window_pattern") or _FULL_EVERY[model_type]
        return lambda layer: bool((layer + 1) % every)
    # Qwen2 and Qwen3: the first ones look back to the first token.
    first = fields.integer("max_window_layers")
    return (lambda layer: False) if first is None else (lambda layer: layer >= first)


def _by_blocks(fields: Fields, count: int) -> tuple[CacheLayer | None, ...]:
    """The layers of a nemotron-nas: the search has given each its own heads, or no attention."""
    heads, size = fields.needed(*HEADS), head_size(fields)
    blocks = fields.objects("block_configs")
    if len(blocks) != count:
        raise unreadable("config.json", f"block_configs has {len(blocks)} blocks for {count} layers")
    layers: list[CacheLayer | None] = []
    for block in blocks:
        attention = block.object("attention")
        group = attention.integer("n_heads_in_group")
        if not group or attention.flag("no_op") or attention.flag("replace_with_linear"):
            layers.append(None)
        elif heads % group:
            raise unreadable("config.json", f"block_configs: groups of {group} do not divide {heads} heads")
        else:
            layers.append(CacheLayer(heads // group, 2 * size))
    return tuple(layers)
