"""The limits of an engine of any version, and its memory, by `config.json` and the sizes of its files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from infra.errors import SourceError, UsageError
from tasks.trtllm.releases import FIRST, LAST
from tasks.weights.facts import CacheLayer
from tasks.weights.fields import Fields

LogitsType = Literal["FP32", "FP16", "BF16"]

# Bits of a number in the KV cache; an NVFP4 block of 16 has a scale of 8 bits beside them.
_CACHE_BITS = {"FP8": 8.0, "INT8": 8.0, "NVFP4": 4.5}
_WITHOUT_CACHE = frozenset({"recurrent", "linear", "no_op"})
"""Types of layers of an engine without attention."""
_NETWORKS = {"Medusa": "medusa", "Eagle": "eagle", "ReDrafter": "redrafter"}
_MODES: Mapping[int | str, str] = {
    4: "medusa",
    8: "lookahead",
    16: "redrafter",
    32: "eagle",
    "MEDUSA": "medusa",
    "LOOKAHEAD_DECODING": "lookahead",
    "EXPLICIT_DRAFT_TOKENS": "redrafter",
    "EAGLE": "eagle",
}
_LOGITS: dict[str, LogitsType] = {"float16": "FP16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class EngineLimits:
    """Lengths are tokens. The sizes are those of the GPU that takes the most: `cache_bytes_per_token` is one token in
    its KV cache, keys and values of all its layers and heads, and None if that is not understood; `weight_bytes` is its
    part of the engine.

    An engine that was built for speculation takes `max_draft_len` guessed tokens at once, and needs the C++ backend's
    `decoding_mode`; empty for an engine without, or with a draft model.
    """

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_beam_width: int
    tokens_per_block: int
    paged_kv_cache: bool
    paged_context_fmha: bool
    logits_type: LogitsType
    cache_bytes_per_token: int | None
    weight_bytes: int
    state_bytes: int = 0
    """Of each request that runs, beside the KV cache: layers without attention keep a state."""
    max_num_tokens: int | None = None
    """Tokens of a forward pass. Not in `to_json`, whose readers of before do not know it: the recipe has it too."""
    max_draft_len: int = 0
    decoding_mode: str = ""

    def prompt_tokens(self, *, chunked: bool) -> int:
        """What a prompt may have: one that is not cut into chunks goes through the model in one pass.

        From 0.12 on the runtime itself takes `min(max_seq_len - 1, max_num_tokens)`, whatever the engine was built for
        (its log: `TRTGptModel maxInputLen`). Here the limit of the recipe stays one.
        """
        return self.max_input_len if chunked else min(self.max_input_len, self.max_num_tokens or self.max_input_len)

    def with_draft(self, draft: EngineLimits) -> EngineLimits:
        """With the engine of a draft model in the same folder: both caches hold the same tokens."""
        caches = (self.cache_bytes_per_token, draft.cache_bytes_per_token)
        return replace(
            self,
            cache_bytes_per_token=None if None in caches else sum(filter(None, caches)),
            weight_bytes=self.weight_bytes + draft.weight_bytes,
        )

    def to_json(self) -> str:
        """Without `state_bytes` where there are none, as those who wrote it before had none."""
        document = asdict(self)
        del document["max_num_tokens"]
        if not self.state_bytes:
            del document["state_bytes"]
        return json.dumps(document, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> EngineLimits:
        return cls(**json.loads(text))

    @classmethod
    def of(cls, config: str | bytes, sizes: Mapping[str, int]) -> EngineLimits:
        """The limits by the text of an engine's `config.json`, and the sizes in bytes by file name.

        Raises KeyError, TypeError or ValueError for any other text.
        """
        document = json.loads(config)
        model, build = document["pretrained_config"], document["build_config"]
        mapping, plugins, quantization = model["mapping"], build["plugin_config"], model.get("quantization")
        return cls(
            max_batch_size=build["max_batch_size"],
            max_input_len=build["max_input_len"],
            # Up to 0.10 prompt and answer have a limit each.
            max_seq_len=build.get("max_seq_len") or build["max_input_len"] + build["max_output_len"],
            max_beam_width=build["max_beam_width"],
            tokens_per_block=plugins["tokens_per_block"],
            # From 0.13 on the type counts, and plugins["paged_kv_cache"] may be None.
            paged_kv_cache=str(build.get("kv_cache_type") or "paged").lower() == "paged"
            and plugins.get("paged_kv_cache") is not False,
            paged_context_fmha=bool(plugins.get("use_paged_context_fmha")),
            logits_type=_LOGITS.get(model.get("logits_dtype", ""), "FP32"),
            cache_bytes_per_token=cache_bytes_per_token(
                _engine_layers(model),
                kept_as=quantization.get("kv_cache_quant_algo") if quantization else None,
                tp_size=mapping["tp_size"],
                pp_size=mapping["pp_size"],
            ),
            weight_bytes=_largest_rank(sizes, mapping["world_size"]),
            state_bytes=_engine_state_bytes(model, mapping["pp_size"]),
            max_num_tokens=build.get("max_num_tokens"),
            max_draft_len=build.get("max_draft_len") or 0,
            decoding_mode=_decoding_mode(model, build),
        )


def engine_limits(folder: Path) -> EngineLimits:
    """The limits of the engine in `folder`. Raises UsageError `engine-unreadable`."""
    path = folder / "config.json"
    try:
        return EngineLimits.of(path.read_text(), {file.name: file.stat().st_size for file in folder.glob("rank*")})
    except (OSError, ValueError, KeyError, TypeError, SourceError) as error:
        raise UsageError(
            f"{path} does not describe an engine: {error!r}",
            hint=f"it must be the file that trtllm-build wrote, of version {FIRST} to {LAST}",
            code="engine-unreadable",
        ) from error


def cache_bytes_per_token(
    layers: Sequence[CacheLayer | None], *, kept_as: str | None, tp_size: int, pp_size: int
) -> int:
    """Bytes of one token on the GPU that holds the most. `kept_as` FP8, INT8 or NVFP4; any other number has 16 bits."""
    # With more GPUs than heads some hold the same head.
    numbers = max(
        sum(math.ceil(layer.heads / tp_size) * layer.numbers for layer in stage if layer is not None)
        for stage in _stages(layers, pp_size)
    )
    return math.ceil(numbers * _CACHE_BITS.get(kept_as or "", 16.0) / 8)


def _stages(layers: Sequence[CacheLayer | None], pp_size: int) -> Iterable[Sequence[CacheLayer | None]]:
    """The layers of each stage of the pipeline. The first ones take those that are left over."""
    each, more = divmod(len(layers), pp_size)
    starts = [stage * each + min(stage, more) for stage in range(pp_size + 1)]
    return (layers[start:end] for start, end in pairwise(starts))


def _engine_layers(model: Mapping[str, JsonValue]) -> list[CacheLayer | None]:
    """The layers of an engine, read as `gptJsonConfig.cpp` of 0.16 does."""
    fields = Fields(model)
    heads, kinds = fields.needed("num_attention_heads"), _layer_types(fields)
    if (latent := fields.integer("kv_lora_rank")) is not None:
        # DeepSeek V2 names its heads too, and keeps one vector for all of them.
        return [CacheLayer(1, latent + fields.needed("qk_rope_head_dim"))] * len(kinds)
    size = fields.integer("head_size") or fields.needed("hidden_size") // heads
    # Of those that have attention alone.
    own = iter(fields.integers("num_kv_heads_per_layer"))
    shared = fields.integer("num_key_value_heads") or heads
    return [None if kind in _WITHOUT_CACHE else CacheLayer(next(own, shared), 2 * size) for kind in kinds]


def _layer_types(fields: Fields) -> list[str]:
    """The type of each layer. The file has those of a group of layers, which is repeated."""
    group = fields.texts("layer_types") or ("attention",)
    return [group[layer % len(group)] for layer in range(fields.needed("num_hidden_layers"))]


def _engine_state_bytes(model: Mapping[str, JsonValue], pp_size: int) -> int:
    """Bytes of one request in the recurrent layers of a GPU, as `rnnStateBuffers.cpp` of 0.16 makes room for them."""
    fields = Fields(model)
    layers = math.ceil(_layer_types(fields).count("recurrent") / pp_size)
    if not layers:
        return 0
    # The states of RecurrentGemma are float32, and convolutions have two buffers.
    kept_as = 4 if fields.text("architecture") == "RecurrentGemmaForCausalLM" else 2
    state = fields.needed("state_size") * fields.needed("rnn_hidden_size") * kept_as
    return layers * (state + 2 * 2 * (fields.needed("conv_kernel") - 1) * fields.needed("rnn_conv_dim_size"))


def _decoding_mode(model: Mapping[str, Any], build: Mapping[str, Any]) -> str:
    """By the network, or from 0.10 on by the mode that trtllm-build was given (`SpeculativeDecodingMode`, a flag)."""
    network = _NETWORKS.get(str(model.get("architecture")).removesuffix("ForCausalLM"))
    mode = build.get("speculative_decoding_mode")
    return network or _MODES.get(mode if isinstance(mode, int) else str(mode).upper(), "")


def _largest_rank(sizes: Mapping[str, int], ranks: int) -> int:
    return max(
        sizes.get(f"rank{rank}.engine", 0) + sizes.get(f"rank{rank}_managed_weights.safetensors", 0)
        for rank in range(ranks)
    )
