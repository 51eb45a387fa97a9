"""The limits of an engine of any version, and its memory, by `config.json` and the sizes of its files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from infra.errors import UsageError
from tasks.trtllm.releases import FIRST, LAST

LogitsType = Literal["FP32", "FP16", "BF16"]

# Bits of a number in the KV cache; an NVFP4 block of 16 has a scale of 8 bits beside them.
_CACHE_BITS = {"FP8": 8.0, "INT8": 8.0, "NVFP4": 4.5}
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
    its KV cache, keys and values of all its layers and heads; `weight_bytes` is its part of the engine.

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
    cache_bytes_per_token: int
    weight_bytes: int
    max_draft_len: int = 0
    decoding_mode: str = ""

    def with_draft(self, draft: EngineLimits) -> EngineLimits:
        """With the engine of a draft model in the same folder: both caches hold the same tokens."""
        return replace(
            self,
            cache_bytes_per_token=self.cache_bytes_per_token + draft.cache_bytes_per_token,
            weight_bytes=self.weight_bytes + draft.weight_bytes,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

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
                layers=model["num_hidden_layers"],
                heads=model.get("num_key_value_heads") or model["num_attention_heads"],
                head_size=model.get("head_size") or model["hidden_size"] // model["num_attention_heads"],
                kept_as=quantization.get("kv_cache_quant_algo") if quantization else None,
                tp_size=mapping["tp_size"],
                pp_size=mapping["pp_size"],
            ),
            weight_bytes=_largest_rank(sizes, mapping["world_size"]),
            max_draft_len=build.get("max_draft_len") or 0,
            decoding_mode=_decoding_mode(model, build),
        )


def engine_limits(folder: Path) -> EngineLimits:
    """The limits of the engine in `folder`. Raises UsageError `engine-unreadable`."""
    path = folder / "config.json"
    try:
        return EngineLimits.of(path.read_text(), {file.name: file.stat().st_size for file in folder.glob("rank*")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} does not describe an engine: {error!r}",
            hint=f"it must be the file that trtllm-build wrote, of version {FIRST} to {LAST}",
            code="engine-unreadable",
        ) from error


def cache_bytes_per_token(
    *, layers: int, heads: int, head_size: int, kept_as: str | None, tp_size: int, pp_size: int
) -> int:
    """Bytes of one token on the GPU that holds the most. `kept_as` FP8, INT8 or NVFP4; any other number has 16 bits."""
    # With more GPUs than heads some hold the same head.
    numbers = 2 * math.ceil(layers / pp_size) * math.ceil(heads / tp_size) * head_size
    return math.ceil(numbers * _CACHE_BITS.get(kept_as or "", 16.0) / 8)


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
