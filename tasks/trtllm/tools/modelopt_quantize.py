"""Quantizes a Hugging Face model with ModelOpt and writes it in Hugging Face form.

A toolchain's interpreter runs it, which has torch, transformers, datasets and modelopt. It imports nothing of
Enginehouse. TensorRT-LLM's PyTorch backend loads its output from 1.0 on.
"""

from __future__ import annotations

import argparse
import copy
import importlib
from typing import Any, cast

# Names of ModelOpt's configurations in `modelopt.torch.quantization`.
CONFIGURATIONS = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
KV_CACHES = {"fp8": "FP8_KV_CFG", "nvfp4": "NVFP4_KV_CFG"}


def main() -> None:
    options = parser().parse_args()
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    quantization: Any = importlib.import_module("modelopt.torch.quantization")
    export: Any = importlib.import_module("modelopt.torch.export")

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model_dir, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.model_dir, torch_dtype=getattr(torch, options.dtype), device_map="auto", local_files_only=True
    )
    configuration = copy.deepcopy(getattr(quantization, CONFIGURATIONS[options.qformat]))
    if options.qformat in ("int4_awq", "w4a8_awq"):
        _set_block_size(configuration["quant_cfg"], options.awq_block_size)
    if options.kv_cache_dtype:
        weights = configuration["quant_cfg"]
        cache = getattr(quantization, KV_CACHES[options.kv_cache_dtype])["quant_cfg"]
        # A dictionary by quantizer. In later versions of ModelOpt a list, whose last entry for a quantizer counts.
        configuration["quant_cfg"] = {**weights, **cache} if isinstance(weights, dict) else [*weights, *cache]
    texts = _texts(options.calib_dataset, options.calib_size)

    def calibrate(calibrated: Any) -> None:
        with torch.no_grad():
            for start in range(0, len(texts), options.batch_size):
                print(f"Calibrating {start} of {len(texts)} texts", flush=True)
                batch = tokenizer(
                    texts[start : start + options.batch_size],
                    return_tensors="pt",
                    padding=options.batch_size > 1,
                    truncation=True,
                    max_length=options.calib_max_seq_length,
                )
                calibrated(**batch.to(model.device))

    model = quantization.quantize(model, configuration, forward_loop=calibrate)
    with torch.inference_mode():
        export.export_hf_checkpoint(model, export_dir=options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


def _set_block_size(node: Any, size: int) -> None:
    """Set the last axis of every `block_sizes`, at any depth. In AWQ's configurations only weights have block sizes."""
    if isinstance(node, dict):
        for key, value in cast("dict[Any, Any]", node).items():
            if key == "block_sizes":
                value[-1] = size
            else:
                _set_block_size(value, size)
    elif isinstance(node, list):
        for value in cast("list[Any]", node):
            _set_block_size(value, size)


def _texts(dataset: str, size: int) -> list[str]:
    """The first `size` texts of a set with a split `train`: cnn_dailymail's articles, or the column `text`."""
    datasets: Any = importlib.import_module("datasets")
    if "cnn_dailymail" in dataset:
        return datasets.load_dataset(dataset, name="3.0.0", split="train")["article"][:size]
    return datasets.load_dataset(dataset, split="train")["text"][:size]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    made.add_argument("--model_dir", required=True)
    made.add_argument("--output_dir", required=True)
    made.add_argument("--dtype", required=True, choices=("float16", "bfloat16"))
    made.add_argument("--qformat", required=True, choices=tuple(CONFIGURATIONS))
    made.add_argument("--kv_cache_dtype", choices=tuple(KV_CACHES))
    made.add_argument("--awq_block_size", type=int, default=128)
    made.add_argument("--calib_dataset", required=True)
    made.add_argument("--calib_size", type=int, required=True)
    made.add_argument("--calib_max_seq_length", type=int, required=True)
    made.add_argument("--batch_size", type=int, required=True)
    return made


if __name__ == "__main__":
    main()
