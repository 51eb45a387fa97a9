"""How a checkpoint is quantized already, by the file that its tool has left."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.weights.fields import Fields

QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json")
"""Of ModelOpt; and of AutoGPTQ, until `config.json` got `quantization_config` at the end of 2023."""


@dataclass(frozen=True)
class Quantized:
    """`method` as transformers names it (`gptq`, `awq`, `fp8`, `mxfp4`, `compressed-tensors`), or `modelopt`."""

    method: str
    format: str = ""
    """Of ModelOpt the algorithm (`NVFP4`), of compressed-tensors the format (`pack-quantized`)."""
    bits: int | None = None
    group_size: int | None = None
    """Weights that share a scale; None for all of a row."""
    block_size: tuple[int, ...] = ()
    """Rows and columns that share a scale."""
    reordered: bool = False
    """Whether GPTQ has sorted columns by their activations (`desc_act`)."""
    cache: str | None = None
    """The format of the KV cache that goes with it: `FP8`."""

    def __str__(self) -> str:
        details = [self.format] if self.format else [f"{self.bits} bits"] if self.bits else []
        details += [f"groups of {self.group_size}"] if self.group_size else []
        details += [f"blocks of {' x '.join(map(str, self.block_size))}"] if self.block_size else []
        details += ["desc_act"] if self.reordered else []
        return f"{self.method} ({', '.join(details)})" if details else self.method


def quantized(config: Fields, text: Fields, modelopt: Fields, autogptq: Fields) -> Quantized | None:
    """The quantization that these name. Empty fields for a file that is not there; None if the weights have none."""
    if modelopt:
        return _by_modelopt(modelopt.object("quantization") or modelopt)
    for fields in (config, text):
        for name in ("quantization_config", "compression_config"):
            if found := fields.object(name):
                return _by_transformers(found)
    if autogptq:
        return _by_transformers(autogptq, "gptq")
    return None


def _by_modelopt(fields: Fields) -> Quantized | None:
    algorithm, cache = fields.text("quant_algo"), fields.text("kv_cache_quant_algo")
    if not algorithm and not cache:
        return None
    return Quantized("modelopt", algorithm, group_size=fields.integer("group_size", least=-1), cache=cache or None)


def _by_transformers(fields: Fields, method: str = "") -> Quantized | None:
    method = method or fields.text("quant_method")
    if method == "modelopt" or (not method and fields.text("quant_algo")):
        return _by_modelopt(fields)
    kept = fields.object("kv_cache_scheme")
    group = fields.integer("group_size", "q_group_size", least=-1)
    return Quantized(
        method or "unnamed",
        fields.text("format"),
        bits=fields.integer("bits", "w_bit") or (4 if fields.flag("load_in_4bit") else None),
        group_size=group if group is not None and group > 0 else None,
        block_size=fields.integers("weight_block_size"),
        reordered=fields.flag("desc_act"),
        cache="FP8" if kept and kept.integer("num_bits") == 8 else None,
    )
